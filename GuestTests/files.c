// Works on the files of a folder and checks what comes of it; the host looks at them afterwards.
//
//   files FOLDER            every kind of operation, then "FILES ok N"
//   files FOLDER random SEED COUNT   random reads, writes, truncations and mappings of one file against a copy in memory
//   files FOLDER speed MEGABYTES     writes and reads so much
//   files FOLDER readonly   nothing can be changed
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static int checks;

#define CHECK(what)                                                                        \
    do {                                                                                   \
        checks++;                                                                          \
        if (!(what)) {                                                                     \
            printf("FILES FAIL line %d: %s: %s\n", __LINE__, #what, strerror(errno));      \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)
#define FAILS(what, why)                                                                   \
    do {                                                                                   \
        errno = 0;                                                                         \
        CHECK((what) == -1);                                                               \
        if (errno != (why)) {                                                              \
            printf("FILES FAIL line %d: %s: errno %d, not %d\n", __LINE__, #what, errno, why); \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

static void put(const char *name, const char *text) {
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0);
    CHECK(write(fd, text, strlen(text)) == (long)strlen(text));
    CHECK(close(fd) == 0);
}

static const char *get(const char *name) {
    static char text[4096];
    int fd = open(name, O_RDONLY);
    CHECK(fd >= 0);
    long got = read(fd, text, sizeof text - 1);
    CHECK(got >= 0);
    text[got] = 0;
    close(fd);
    return text;
}

static int count_entries(const char *name) {
    DIR *folder = opendir(name);
    CHECK(folder);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) count++;
    closedir(folder);
    return count;
}

static void all(void) {
    struct stat status, other;
    struct statvfs system;
    char text[4096];
    // Files: made, read, exclusive, appended to, truncated.
    put("a", "hello");
    CHECK(!strcmp(get("a"), "hello"));
    FAILS(open("a", O_CREAT | O_EXCL | O_WRONLY, 0600), EEXIST);
    FAILS(open("none", O_RDONLY), ENOENT);
    int fd = open("a", O_WRONLY | O_APPEND);
    CHECK(fd >= 0 && write(fd, " world", 6) == 6 && close(fd) == 0);
    CHECK(!strcmp(get("a"), "hello world"));
    CHECK(truncate("a", 5) == 0 && !strcmp(get("a"), "hello"));
    CHECK(truncate("a", 100) == 0 && stat("a", &status) == 0 && status.st_size == 100);
    fd = open("a", O_RDWR);
    CHECK(ftruncate(fd, 7) == 0 && fstat(fd, &status) == 0 && status.st_size == 7);
    CHECK(pwrite(fd, "X", 1, 1 << 20) == 1 && fstat(fd, &status) == 0 && status.st_size == (1 << 20) + 1);
    CHECK(pread(fd, text, 4, 3) == 4 && !memcmp(text, "lo\0\0", 4));
    CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4096) == 0 && fsync(fd) == 0 && fdatasync(fd) == 0);
    CHECK(close(fd) == 0);
    CHECK(open("a", O_RDONLY | O_TRUNC) >= 0 && stat("a", &status) == 0 && status.st_size == 0);
    // Open, and gone.
    put("gone", "still here");
    fd = open("gone", O_RDWR);
    CHECK(unlink("gone") == 0);
    put("gone", "another");
    CHECK(read(fd, text, 100) == 10 && !memcmp(text, "still here", 10));
    CHECK(fstat(fd, &status) == 0 && status.st_nlink == 0 && close(fd) == 0);
    CHECK(!strcmp(get("gone"), "another"));
    // Names.
    CHECK(rename("gone", "b") == 0 && !strcmp(get("b"), "another"));
    put("c", "third");
    CHECK(rename("c", "b") == 0 && !strcmp(get("b"), "third"));
    put("d", "fourth");
    CHECK(renameat2(AT_FDCWD, "b", AT_FDCWD, "d", RENAME_EXCHANGE) == 0);
    CHECK(!strcmp(get("b"), "fourth") && !strcmp(get("d"), "third"));
    FAILS(renameat2(AT_FDCWD, "b", AT_FDCWD, "d", RENAME_NOREPLACE), EEXIST);
    CHECK(link("b", "e") == 0 && stat("b", &status) == 0 && stat("e", &other) == 0);
    CHECK(status.st_ino == other.st_ino && status.st_nlink == 2);
    CHECK(unlink("b") == 0 && !strcmp(get("e"), "fourth"));
    // Folders.
    CHECK(mkdir("f", 0755) == 0 && mkdir("f/g", 0700) == 0);
    FAILS(mkdir("f", 0755), EEXIST);
    FAILS(rmdir("f"), ENOTEMPTY);
    put("f/g/deep", "deep");
    CHECK(rename("f/g", "moved") == 0 && !strcmp(get("moved/deep"), "deep"));
    FAILS(stat("f/g/deep", &status), ENOENT);
    CHECK(rmdir("f") == 0);
    FAILS(unlink("moved"), EISDIR);
    // Symbolic links, that lead out for the guest only.
    CHECK(symlink("/proc/self/status", "outside") == 0 && readlink("outside", text, 100) == 17);
    CHECK(!strncmp(get("outside"), "Name:", 5));
    CHECK(symlink("moved/deep", "inside") == 0 && !strcmp(get("inside"), "deep"));
    CHECK(lstat("inside", &status) == 0 && S_ISLNK(status.st_mode));
    // Attributes.
    CHECK(chmod("a", 0640) == 0 && stat("a", &status) == 0 && (status.st_mode & 07777) == 0640);
    struct timespec times[2] = {{1000000000, 5}, {1100000000, 7}};
    CHECK(utimensat(AT_FDCWD, "a", times, 0) == 0 && stat("a", &status) == 0);
    CHECK(status.st_atim.tv_sec == 1000000000 && status.st_mtim.tv_sec == 1100000000 && status.st_mtim.tv_nsec == 7);
    times[1].tv_nsec = UTIME_NOW;
    CHECK(utimensat(AT_FDCWD, "a", times, 0) == 0 && stat("a", &status) == 0 && status.st_mtim.tv_sec > 1500000000);
    umask(0);
    CHECK((fd = open("wide", O_CREAT | O_WRONLY, 0666)) >= 0 && close(fd) == 0);
    CHECK(stat("wide", &status) == 0 && (status.st_mode & 07777) == 0666);
    CHECK(mkfifo("fifo", 0600) == 0 && stat("fifo", &status) == 0 && S_ISFIFO(status.st_mode));
    FAILS(mknod("device", S_IFBLK | 0600, 0x700), EPERM);
    CHECK(statvfs(".", &system) == 0 && system.f_blocks > 0 && system.f_namemax == 255);
    // Mappings.
    put("mapped", "mapped text");
    fd = open("mapped", O_RDONLY);
    char *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(map != MAP_FAILED && !memcmp(map, "mapped text", 11) && munmap(map, 4096) == 0 && close(fd) == 0);
    fd = open("mapped", O_RDWR);
    map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    map[0] = 'M';
    CHECK(msync(map, 4096, MS_SYNC) == 0 && munmap(map, 4096) == 0 && close(fd) == 0);
    CHECK(!strcmp(get("mapped"), "Mapped text"));
    // Locks are the guest's own.
    fd = open("a", O_RDWR);
    struct flock lock = {.l_type = F_WRLCK};
    CHECK(fcntl(fd, F_SETLK, &lock) == 0 && close(fd) == 0);
    // Many entries, more than may be kept open.
    CHECK(mkdir("many", 0755) == 0);
    for (int i = 0; i < 10000; i++) {
        snprintf(text, sizeof text, "many/%05d", i);
        CHECK((fd = open(text, O_CREAT | O_WRONLY, 0644)) >= 0 && close(fd) == 0);
    }
    CHECK(count_entries("many") == 10000);
    for (int i = 0; i < 10000; i += 97) {
        snprintf(text, sizeof text, "many/%05d", i);
        CHECK(stat(text, &status) == 0 && status.st_size == 0);
    }
    CHECK(count_entries(".") == 11);
    CHECK(!strcmp(get("from-host"), "written by the host\n"));
    printf("FILES ok %d\n", checks);
}

static uint64_t state;
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void random_operations(int count) {
    enum { most = 300000 };
    static char copy[most], buffer[most];
    long size = 0;
    int fd = open("random", O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0);
    for (int i = 0; i < count; i++) {
        long offset = next() % (most / 2), length = next() % (next() % 2 ? 100 : most / 2);
        switch (next() % 6) {
        case 0:
        case 1:
            for (long n = 0; n < length; n++) buffer[n] = (char)next();
            CHECK(pwrite(fd, buffer, length, offset) == length);
            memcpy(copy + offset, buffer, length);
            if (length && offset + length > size) size = offset + length;
            break;
        case 2: {
            long want = offset >= size ? 0 : offset + length > size ? size - offset : length;
            CHECK(pread(fd, buffer, length, offset) == want && !memcmp(buffer, copy + offset, want));
            break;
        }
        case 3:
            CHECK(ftruncate(fd, offset) == 0);
            if (offset < size) memset(copy + offset, 0, size - offset);
            size = offset;
            break;
        case 4: {
            if (size == 0) break;
            char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            CHECK(map != MAP_FAILED && !memcmp(map, copy, size));
            map[offset % size] = copy[offset % size] = (char)i;
            CHECK(munmap(map, size) == 0);
            break;
        }
        default:
            CHECK(close(fd) == 0 && (fd = open("random", O_RDWR)) >= 0);
        }
    }
    CHECK(close(fd) == 0);
    put("size", "");
    FILE *file = fopen("copy", "w");
    CHECK(file && fwrite(copy, 1, size, file) == (size_t)size && fclose(file) == 0);
    printf("FILES random %d\n", count);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void speed(int megabytes) {
    static char buffer[1 << 20];
    memset(buffer, 7, sizeof buffer);
    double start = now();
    int fd = open("big", O_RDWR | O_CREAT | O_TRUNC, 0644);
    for (int i = 0; i < megabytes; i++) CHECK(write(fd, buffer, sizeof buffer) == sizeof buffer);
    close(fd);
    double middle = now();
    fd = open("big", O_RDONLY);
    for (int i = 0; i < megabytes; i++) CHECK(read(fd, buffer, sizeof buffer) == sizeof buffer);
    printf("FILES speed write %.0f MB/s read %.0f MB/s\n", megabytes / (middle - start), megabytes / (now() - middle));
    unlink("big");
}

static void read_only(void) {
    struct stat status;
    CHECK(!strcmp(get("from-host"), "written by the host\n"));
    FAILS(open("new", O_CREAT | O_WRONLY, 0644), EROFS);
    FAILS(open("from-host", O_WRONLY), EROFS);
    FAILS(open("from-host", O_RDONLY | O_TRUNC), EROFS);
    FAILS(truncate("from-host", 0), EROFS);
    FAILS(unlink("from-host"), EROFS);
    FAILS(rename("from-host", "x"), EROFS);
    FAILS(mkdir("x", 0755), EROFS);
    FAILS(symlink("x", "y"), EROFS);
    FAILS(link("from-host", "y"), EROFS);
    FAILS(chmod("from-host", 0600), EROFS);
    CHECK(stat("from-host", &status) == 0);
    printf("FILES readonly %d\n", checks);
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(count > 1 && chdir(words[1]) == 0);
    if (count == 2) all();
    else if (!strcmp(words[2], "random")) {
        state = strtoull(words[3], NULL, 0) | 1;
        random_operations(atoi(words[4]));
    } else if (!strcmp(words[2], "speed")) speed(atoi(words[3]));
    else read_only();
    return 0;
}
