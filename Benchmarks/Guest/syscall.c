// The cheapest system call there is.
#define _GNU_SOURCE
#include "bench.h"

#include <sys/syscall.h>
#include <unistd.h>

static struct outcome run(double scale) {
    uint64_t rounds = scaled(1.5e6, scale);
    long first = syscall(SYS_getppid);
    uint64_t same = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) same += syscall(SYS_getppid) == first;
    return (struct outcome){now() - start, rounds, same, NULL};
}

const struct program syscall_program = {"syscall", "system", "system call", run};
