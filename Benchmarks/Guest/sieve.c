// The sieve of Eratosthenes over a mebibyte: strided stores to bytes.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

static uint64_t count_primes(uint8_t *composite, size_t size) {
    memset(composite, 0, size);
    uint64_t count = 0;
    for (size_t i = 2; i < size; i++) {
        if (composite[i]) continue;
        count++;
        for (size_t j = i * i; j < size; j += i) composite[j] = 1;
    }
    return count;
}

static struct outcome run(double scale) {
    size_t size = 1 << 20;
    uint64_t rounds = scaled(110, scale), sum = 0;
    uint8_t *composite = malloc(size);
    memset(composite, 1, size);
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) sum += count_primes(composite, size - (i & 7));
    double seconds = now() - start;
    free(composite);
    return (struct outcome){seconds, rounds, sum, NULL};
}

const struct program sieve_program = {"sieve", "compute", "sieve of 2^20", run};
