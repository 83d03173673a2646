// A hash table with open addressing: inserts, hits and misses over 4 MiB.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum { bits = 18, slots = 1 << bits };

struct slot {
    uint64_t key, value;
};

static struct slot *find(struct slot *table, uint64_t key) {
    uint64_t index = (key * 0x9E3779B97F4A7C15) >> (64 - bits);
    while (table[index].key && table[index].key != key) index = (index + 1) & (slots - 1);
    return &table[index];
}

static struct outcome run(double scale) {
    uint64_t rounds = scaled(40, scale), sum = 0;
    struct slot *table = malloc(slots * sizeof *table);
    memset(table, 1, slots * sizeof *table);
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        memset(table, 0, slots * sizeof *table);
        uint64_t state = i + 1;
        for (int n = 0; n < slots / 2; n++) {
            struct slot *slot = find(table, next_random(&state) >> 40 | 1);
            slot->key = (state * 0x2545F4914F6CDD1D) >> 40 | 1;
            slot->value += (uint64_t)n;
        }
        for (int n = 0; n < slots; n++) sum += find(table, next_random(&state) >> 40 | 1)->value + 1;
    }
    double seconds = now() - start;
    free(table);
    return (struct outcome){seconds, rounds * (slots + slots / 2), sum, NULL};
}

const struct program hash_program = {"hash", "compute", "insert or look-up", run};
