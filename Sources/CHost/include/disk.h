// What the Swift overlay of glibc leaves out of files and block devices.
#ifndef CHOST_DISK_H
#define CHOST_DISK_H
#include <stdint.h>
#include <sys/types.h>

// O_DIRECT.
int roost_direct_flag(void);
// fallocate(2), keeping the size: zero_range writes zeroes, otherwise a hole is punched.
int roost_fallocate(int fd, int zero_range, int64_t offset, int64_t length);
// fcntl(2) F_OFD_SETLK on the whole file; 0, or -1 with errno.
int roost_lock_file(int fd, int exclusive);
// fcntl(2) F_OFD_GETLK: the process that holds a conflicting lock, -1 if unknown.
int roost_lock_holder(int fd, int exclusive);
int roost_is_locked(int fd);
// BLKGETSIZE64, BLKDISCARD, BLKZEROOUT.
int roost_block_size(int fd, uint64_t *bytes);
int roost_block_discard(int fd, uint64_t offset, uint64_t length);
int roost_block_zero(int fd, uint64_t offset, uint64_t length);

// renameat2(2) with RENAME_NOREPLACE.
int roost_rename_new(const char *from, const char *to);

#endif
