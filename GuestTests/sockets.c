// Streams between a guest and its host, each byte compared. An ADDRESS is one of
//
//   vsock:CID:PORT       a port of a machine's; to listen, CID is any number
//   unix:PATH            a Unix socket
//   connect:PATH:PORT    a port of the guest whose sockets are at PATH
//
//   sockets serve ADDRESS               what the client's first byte says: 'r' receives and tells how much, 's' sends, 'e' echoes
//   sockets send ADDRESS MEGABYTES      sends, ends its direction, reads how much arrived
//   sockets receive ADDRESS MEGABYTES   receives until the end
//   sockets slow ADDRESS MEGABYTES      the same, after five seconds
//   sockets many ADDRESS COUNT          so many connections at once, an echo on each
//   sockets refused ADDRESS             nobody listens
#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char buffer[256 << 10], expected[256 << 10];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what) {
    printf("SOCKETS FAIL %s: %s\n", what, strerror(errno));
    exit(1);
}

static void write_all(int fd, const void *bytes, long length) {
    for (long done = 0; done < length;) {
        long put = write(fd, (const char *)bytes + done, length - done);
        if (put <= 0) fail("write");
        done += put;
    }
}

static void read_all(int fd, void *bytes, long length) {
    for (long done = 0; done < length;) {
        long got = read(fd, (char *)bytes + done, length - done);
        if (got <= 0) fail("read");
        done += got;
    }
}

// Every sender sends the same buffer over and over.
static void send_pattern(int fd, uint64_t bytes) {
    while (bytes) {
        long length = bytes < sizeof expected ? (long)bytes : (long)sizeof expected;
        write_all(fd, expected, length);
        bytes -= length;
    }
    shutdown(fd, SHUT_WR);
}

static uint64_t receive_pattern(int fd) {
    for (uint64_t total = 0;;) {
        long at = total % sizeof buffer, got = read(fd, buffer, sizeof buffer - at);
        if (got < 0) fail("receive");
        if (got == 0) return total;
        if (memcmp(buffer, expected + at, got)) fail("compare");
        total += got;
    }
}

// A socket, connected or listening; -1 if nobody listens.
static int open_address(char *text, int listens) {
    char *kind = strsep(&text, ":");
    union { struct sockaddr any; struct sockaddr_vm vm; struct sockaddr_un un; } address = {0};
    socklen_t size;
    char *port = NULL;
    if (!strcmp(kind, "vsock")) {
        size = sizeof address.vm;
        address.vm.svm_family = AF_VSOCK;
        address.vm.svm_cid = listens ? VMADDR_CID_ANY : atoi(strsep(&text, ":"));
        if (listens) strsep(&text, ":");
        address.vm.svm_port = strtoul(text, NULL, 10);
    } else {
        if (!strcmp(kind, "connect") && (port = strrchr(text, ':'))) *port++ = 0;
        size = sizeof address.un;
        address.un.sun_family = AF_UNIX;
        strncpy(address.un.sun_path, text, sizeof address.un.sun_path - 1);
    }
    int fd = socket(address.any.sa_family, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    if (listens) {
        if (bind(fd, &address.any, size) || listen(fd, 256)) fail("listen");
        return fd;
    }
    if (connect(fd, &address.any, size)) return -1;
    if (!port) return fd;
    dprintf(fd, "CONNECT %s\n", port);
    char answer[32] = {0};
    for (int i = 0; i < 31; i++) {
        if (read(fd, answer + i, 1) != 1) return -1;
        if (answer[i] == '\n') break;
    }
    if (strncmp(answer, "OK ", 3)) fail(answer);
    return fd;
}

static int connect_address(const char *text) {
    int fd = open_address(strdup(text), 0);
    if (fd < 0) fail("connect");
    return fd;
}

static void serve_client(int fd) {
    char command;
    uint32_t megabytes;
    read_all(fd, &command, 1);
    if (command == 'r') {
        uint64_t total = receive_pattern(fd);
        write_all(fd, &total, 8);
    } else if (command == 's') {
        read_all(fd, &megabytes, 4);
        send_pattern(fd, (uint64_t)megabytes << 20);
        read(fd, &command, 1);
    } else {
        for (long got; (got = read(fd, buffer, sizeof buffer)) > 0;) write_all(fd, buffer, got);
    }
}

static void many(const char *address, int count) {
    int *fds = calloc(count, sizeof *fds);
    char line[1000], answer[1000];
    for (int i = 0; i < count; i++) write_all(fds[i] = connect_address(address), "e", 1);
    for (int i = 0; i < count; i++) {
        memset(line, i, sizeof line);
        write_all(fds[i], line, sizeof line);
    }
    for (int i = 0; i < count; i++) {
        memset(line, i, sizeof line);
        read_all(fds[i], answer, sizeof answer);
        if (memcmp(line, answer, sizeof line)) fail("echo");
        shutdown(fds[i], SHUT_WR);
        if (read(fds[i], answer, 1) != 0) fail("end");
        close(fds[i]);
    }
    printf("SOCKETS many %d\n", count);
}

int main(int count, char **words) {
    if (count < 3) return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    for (long i = 0; i < sizeof expected; i++) expected[i] = (char)(i * 2654435761u >> 13);
    char *command = words[1];
    uint64_t number = count > 3 ? atoi(words[3]) : 0;
    if (!strcmp(command, "serve")) {
        int listener = open_address(words[2], 1);
        printf("SOCKETS serving\n");
        for (;;) {
            int fd = accept(listener, NULL, NULL);
            if (fd < 0) fail("accept");
            if (fork() == 0) {
                serve_client(fd);
                exit(0);
            }
            close(fd);
        }
    }
    if (!strcmp(command, "refused")) {
        if (open_address(words[2], 0) >= 0) fail("somebody listens");
        printf("SOCKETS refused\n");
        return 0;
    }
    if (!strcmp(command, "many")) return many(words[2], number), 0;
    int fd = connect_address(words[2]);
    double start = now();
    uint64_t total = 0;
    if (!strcmp(command, "send")) {
        write_all(fd, "r", 1);
        send_pattern(fd, number << 20);
        read_all(fd, &total, 8);
    } else {
        uint32_t megabytes = number;
        write_all(fd, "s", 1);
        write_all(fd, &megabytes, 4);
        if (!strcmp(command, "slow")) {
            printf("SOCKETS waiting\n");
            sleep(5);
        }
        total = receive_pattern(fd);
    }
    if (total != number << 20) fail("length");
    printf("SOCKETS %s %llu MB, %.2f Gbit/s\n", command, (unsigned long long)number, total * 8 / (now() - start) / 1e9);
    return 0;
}
