// Processes: fork alone, fork and exec of this program, of a shell, of a C compiler; each waited for.
#define _GNU_SOURCE
#include "bench.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

// Starts `arguments` (nothing if NULL) in a child `rounds` times, one after the other.
static struct outcome run(uint64_t rounds, const char *path, char *const arguments[]) {
    uint64_t sum = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            if (!path) _exit((int)(i & 63));
            execv(path, arguments);
            _exit(127);
        }
        int status = 0;
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) fail("child: %x", status);
        if (path && status != 0) fail("%s: status %d", path, WEXITSTATUS(status));
        sum += (uint64_t)WEXITSTATUS(status) + 1;
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

static struct outcome run_fork(double scale) { return run(scaled(2000, scale), NULL, NULL); }

static struct outcome run_exec(double scale) {
    return run(scaled(800, scale), "/proc/self/exe", (char *[]){"bench", "nothing", NULL});
}

static struct outcome run_shell(double scale) {
    const char *shell = getenv("BENCH_BUSYBOX");
    return run(scaled(400, scale), shell ? shell : "/bin/busybox", (char *[]){"busybox", "sh", "-c", ":", NULL});
}

static struct outcome run_compile(double scale) {
    const char *source = getenv("BENCH_SOURCE");
    return run(scaled(60, scale), "/usr/bin/tcc",
               (char *[]){"tcc", "-c", "-o", "/tmp/bench-compile.o", (char *)(source ? source : "/sample.c"), NULL});
}

const struct program fork_program = {"fork", "system", "fork and wait", run_fork};
const struct program exec_program = {"exec", "system", "fork, exec and wait", run_exec};
const struct program shell_program = {"shell", "system", "busybox sh -c :", run_shell};
const struct program compile_program = {"compile", "system", "tcc of a small C file", run_compile};
