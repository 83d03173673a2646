// How fast a guest's network is: sends and receives over TCP, and says how fast.
//
//   throughput send|receive ADDRESS PORT MEGABYTES     as a client: sends, or receives until the peer closes
//   throughput serve PORT                              as a server: the client's first byte says which way ('s' or 'r')
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[256 << 10];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

// Each byte is told by its place, so that what is lost, doubled or swapped shows.
static void fill(unsigned long long place, long length) {
    for (long i = 0; i < length; i++) buffer[i] = (char)((place + i) * 2654435761u >> 13);
}

static int send_all(int fd, unsigned long long bytes) {
    fill(0, sizeof buffer);
    while (bytes) {
        long length = bytes < sizeof buffer ? (long)bytes : (long)sizeof buffer;
        for (long done = 0; done < length;) {
            long put = write(fd, buffer + done, length - done);
            if (put <= 0) return -1;
            done += put;
        }
        bytes -= length;
    }
    shutdown(fd, SHUT_WR);
    char end;
    return read(fd, &end, 1) < 0 ? -1 : 0;
}

// Bytes received, or -1 if one isn't what was sent. Every sender sends the same buffer over and over.
static long long receive_all(int fd) {
    static char expected[256 << 10];
    fill(0, sizeof buffer);
    memcpy(expected, buffer, sizeof buffer);
    unsigned long long total = 0;
    for (;;) {
        unsigned long at = total % sizeof buffer;
        long got = read(fd, buffer, sizeof buffer - at);
        if (got < 0) return -1;
        if (got == 0) return total;
        if (memcmp(buffer, expected + at, got)) return -1;
        total += got;
    }
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (count >= 3 && !strcmp(words[1], "serve")) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        address.sin_port = htons(atoi(words[2]));
        if (bind(fd, (void *)&address, sizeof address) || listen(fd, 8)) return perror("listen"), 1;
        printf("serving\n");
        fflush(stdout);
        for (;;) {
            int peer = accept(fd, 0, 0);
            unsigned char order[5];
            if (peer >= 0 && read(peer, order, 5) == 5) {
                if (order[0] == 's') {
                    long long got = receive_all(peer);
                    printf("served %lld\n", got);
                } else {
                    send_all(peer, (unsigned long long)(order[1] << 8 | order[2]) << 20);
                }
                fflush(stdout);
            }
            close(peer);
        }
    }
    if (count < 5) return 2;
    int sends = !strcmp(words[1], "send"), megabytes = atoi(words[4]);
    address.sin_port = htons(atoi(words[3]));
    inet_aton(words[2], &address.sin_addr);
    if (connect(fd, (void *)&address, sizeof address)) return perror("connect"), 1;
    char order[5] = {sends ? 's' : 'r', megabytes >> 8, megabytes};
    if (write(fd, order, 5) != 5) return 1;
    double start = now();
    long long bytes = (long long)megabytes << 20;
    if (sends ? send_all(fd, bytes) : receive_all(fd) != bytes) return printf("THROUGHPUT %s FAIL\n", words[1]), 1;
    double took = now() - start;
    printf("THROUGHPUT %s %d MB %.3f s %.1f Mbit/s\n", words[1], megabytes, took, bytes * 8 / took / 1e6);
    return 0;
}
