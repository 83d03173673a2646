// Signals that a process sends to itself and handles.
#define _GNU_SOURCE
#include "bench.h"

#include <signal.h>
#include <unistd.h>

static volatile uint64_t handled;

static void handle(int number) { handled += (uint64_t)number; }

static struct outcome run(double scale) {
    uint64_t rounds = scaled(200000, scale);
    struct sigaction action = {.sa_handler = handle};
    sigaction(SIGUSR1, &action, NULL);
    pid_t self = getpid();
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) kill(self, SIGUSR1);
    return (struct outcome){now() - start, rounds, handled, NULL};
}

const struct program signal_program = {"signal", "system", "signal handled", run};
