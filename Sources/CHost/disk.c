#define _GNU_SOURCE
#include "disk.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int roost_fallocate(int fd, int zero_range, int64_t offset, int64_t length) {
    int mode = zero_range ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE;
    return fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, offset, length);
}

static struct flock whole_file(int exclusive) {
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
    lock.l_whence = SEEK_SET;
    return lock;
}

int roost_lock_file(int fd, int exclusive) {
    struct flock lock = whole_file(exclusive);
    return fcntl(fd, F_OFD_SETLK, &lock);
}

int roost_lock_holder(int fd, int exclusive) {
    struct flock lock = whole_file(exclusive);
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK) return -1;
    return lock.l_pid;
}

int roost_is_locked(int fd) {
    struct flock lock = whole_file(1);
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

int roost_block_size(int fd, uint64_t *bytes) { return ioctl(fd, BLKGETSIZE64, bytes); }

int roost_block_discard(int fd, uint64_t offset, uint64_t length) {
    uint64_t range[2] = {offset, length};
    return ioctl(fd, BLKDISCARD, range);
}

int roost_block_zero(int fd, uint64_t offset, uint64_t length) {
    uint64_t range[2] = {offset, length};
    return ioctl(fd, BLKZEROOUT, range);
}

int roost_direct_flag(void) { return O_DIRECT; }

int roost_rename_new(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE); }
