// System calls on folders that Swift cannot say or glibc has no function for.
#ifndef ROOST_FOLDER_H
#define ROOST_FOLDER_H
#include <stdint.h>

// The file of that name in a folder itself, a symbolic link too, as a descriptor for its place only (O_PATH); never
// outside of the folder.
int roost_open_child(int folder, const char *name);
// Opens what a place descriptor stands for; it must be a regular file or a folder.
int roost_reopen(int place, int flags);
// Opens or makes a regular file of that name.
int roost_create(int folder, const char *name, int flags, unsigned mode);
// `status` is a struct stat, `times` two struct timespec: these headers are glibc's module's to Swift.
int roost_stat_place(int place, void *status);
// When a file was made, in nanoseconds; 0 if the file system doesn't know.
uint64_t roost_birth(int fd);
int roost_rename(int from, const char *name, int to, const char *other, unsigned flags);
int roost_link_place(int place, int folder, const char *name);
int roost_chmod_place(int place, unsigned mode);
int roost_chown_place(int place, unsigned user, unsigned group);
int roost_utimens_place(int place, const void *times);
long roost_readlink_place(int place, char *buffer, unsigned long size);
long roost_append(int fd, const void *bytes, unsigned long count);
int roost_fallocate_mode(int fd, int mode, int64_t offset, int64_t length);
// As many descriptors as the host allows; how many that is.
unsigned long roost_raise_descriptor_limit(void);
#endif
