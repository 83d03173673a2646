// Integer arithmetic in registers: shifts, exclusive or, multiplication, a branch that depends on the data.
#include "bench.h"

static struct outcome run(double scale) {
    uint64_t rounds = scaled(80e6, scale), x = 88172645463325252, sum = 0;
    double start = now();
    for (uint64_t i = 1; i <= rounds; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum += x * i;
        if ((x & 0x700) == 0) sum ^= i >> 3;
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

const struct program integer_program = {"integer", "compute", "round", run};
