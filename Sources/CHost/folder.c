#define _GNU_SOURCE
#include "folder.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// A place descriptor's name in /proc: opening it leads to that very file, whatever its name is now.
struct place_name {
    char text[32];
};

static struct place_name name_of(int place) {
    struct place_name name;
    snprintf(name.text, sizeof name.text, "/proc/self/fd/%d", place);
    return name;
}

int roost_open_child(int folder, const char *name) {
    struct open_how how;
    memset(&how, 0, sizeof how);
    how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
    long result = syscall(SYS_openat2, folder, name, &how, sizeof how);
    // Before Linux 5.6, or where a filter knows it not: one component, no symbolic link followed, is the same.
    if (result < 0 && (errno == ENOSYS || errno == EPERM)) result = openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return (int)result;
}

// Whether an open descriptor is of a regular file or a folder; else it is closed.
static int plain(int fd) {
    struct stat status;
    if (fd < 0) return fd;
    if (fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return fd;
    close(fd);
    errno = EINVAL;
    return -1;
}

int roost_reopen(int place, int flags) {
    struct stat status;
    if (fstat(place, &status) < 0) return -1;
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
        errno = S_ISLNK(status.st_mode) ? ELOOP : EINVAL;
        return -1;
    }
    struct place_name name = name_of(place);
    return plain(open(name.text, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
}

int roost_create(int folder, const char *name, int flags, unsigned mode) {
    return plain(openat(folder, name, flags | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, mode));
}

int roost_stat_place(int place, void *status) { return fstatat(place, "", status, AT_EMPTY_PATH); }

uint64_t roost_birth(int fd) {
    struct statx status;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &status) < 0 || !(status.stx_mask & STATX_BTIME)) return 0;
    return (uint64_t)status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec;
}

int roost_rename(int from, const char *name, int to, const char *other, unsigned flags) {
    return renameat2(from, name, to, other, flags);
}

int roost_link_place(int place, int folder, const char *name) {
    struct place_name own = name_of(place);
    return linkat(AT_FDCWD, own.text, folder, name, AT_SYMLINK_FOLLOW);
}

int roost_chmod_place(int place, unsigned mode) {
    struct place_name own = name_of(place);
    return chmod(own.text, mode);
}

int roost_chown_place(int place, unsigned user, unsigned group) {
    return fchownat(place, "", user, group, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);
}

int roost_utimens_place(int place, const void *times) {
    struct stat status;
    if (fstat(place, &status) < 0) return -1;
    if (S_ISLNK(status.st_mode)) return utimensat(place, "", times, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);
    struct place_name own = name_of(place);
    return utimensat(AT_FDCWD, own.text, times, 0);
}

long roost_readlink_place(int place, char *buffer, unsigned long size) { return readlinkat(place, "", buffer, size); }

long roost_append(int fd, const void *bytes, unsigned long count) {
    struct iovec part = {(void *)bytes, count};
    return pwritev2(fd, &part, 1, 0, RWF_APPEND);
}

int roost_fallocate_mode(int fd, int mode, int64_t offset, int64_t length) {
    return fallocate(fd, mode, offset, length);
}

unsigned long roost_raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return 1024;
    if (limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        getrlimit(RLIMIT_NOFILE, &limit);
    }
    return limit.rlim_cur;
}
