// A linked list in random order, followed to its end: each load waits for the one before it.
#include "bench.h"

#include <stdlib.h>

enum { count = 1 << 13 };

struct node {
    struct node *next;
    uint64_t value;
    uint64_t padding[6];  // a cache line each: 512 KiB in all
};

static struct outcome run(double scale) {
    uint64_t rounds = scaled(4000, scale), state = 5, sum = 0;
    struct node *nodes = malloc(count * sizeof *nodes);
    uint32_t *order = malloc(count * sizeof *order);
    for (uint32_t i = 0; i < count; i++) order[i] = i;
    for (uint32_t i = count - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(next_random(&state) >> 32) % (i + 1), former = order[i];
        order[i] = order[j];
        order[j] = former;
    }
    for (uint32_t i = 0; i < count; i++)
        nodes[order[i]] = (struct node){i + 1 < count ? &nodes[order[i + 1]] : NULL, i * 7, {0}};
    double start = now();
    for (uint64_t i = 0; i < rounds; i++)
        for (struct node *node = &nodes[order[0]]; node; node = node->next) sum += node->value ^ i;
    double seconds = now() - start;
    free(order);
    free(nodes);
    return (struct outcome){seconds, rounds * count, sum, NULL};
}

const struct program list_program = {"list", "compute", "node", run};
