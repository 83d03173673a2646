// Context switches: a byte goes around a ring of processes through pipes.
#include "bench.h"

#include <sys/wait.h>
#include <unistd.h>

static void pass(int from, int to) {
    uint8_t token;
    while (read(from, &token, 1) == 1) {
        token++;
        if (write(to, &token, 1) != 1) break;
    }
    _exit(0);
}

static struct outcome run(int processes, uint64_t rounds) {
    int pipes[16][2];
    for (int i = 0; i < processes; i++)
        if (pipe(pipes[i]) != 0) fail("pipe");
    for (int i = 1; i < processes; i++) {
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child > 0) continue;
        // Only its own two ends: the ring falls apart when the parent closes the first pipe.
        for (int n = 0; n < processes; n++) {
            if (n != i - 1) close(pipes[n][0]);
            if (n != i) close(pipes[n][1]);
        }
        pass(pipes[i - 1][0], pipes[i][1]);
    }
    uint8_t token = 0;
    uint64_t sum = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        if (write(pipes[0][1], &token, 1) != 1 || read(pipes[processes - 1][0], &token, 1) != 1) fail("the ring broke");
        sum += token;
    }
    double seconds = now() - start;
    for (int i = 0; i < processes; i++) {
        close(pipes[i][0]);
        close(pipes[i][1]);
    }
    while (wait(NULL) > 0) {}
    return (struct outcome){seconds, rounds * (uint64_t)processes, sum, NULL};
}

static struct outcome run_2(double scale) { return run(2, scaled(50000, scale)); }
static struct outcome run_16(double scale) { return run(16, scaled(6000, scale)); }

const struct program pipe_2_program = {"pipe-2", "system", "context switch", run_2};
const struct program pipe_16_program = {"pipe-16", "system", "context switch", run_16};
