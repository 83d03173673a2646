// Sorting: a quicksort of integers written out here, and the C library's qsort of records with a comparison function.
#include "bench.h"

#include <stdlib.h>

enum { count = 1 << 17 };

struct record {
    uint32_t key, value;
};

static void quicksort(uint32_t *low, uint32_t *high) {
    while (high - low > 16) {
        uint32_t pivot = low[(high - low) / 2], *left = low, *right = high;
        for (;;) {
            while (*left < pivot) left++;
            while (pivot < *right) right--;
            if (left > right) break;
            uint32_t former = *left;
            *left++ = *right;
            *right-- = former;
            if (left > right) break;
        }
        // The smaller half by recursion, so that the stack stays small.
        if (right - low < high - left) {
            quicksort(low, right);
            low = left;
        } else {
            quicksort(left, high);
            high = right;
        }
    }
    for (uint32_t *here = low + 1; here <= high; here++) {
        uint32_t value = *here, *hole = here;
        for (; hole > low && hole[-1] > value; hole--) *hole = hole[-1];
        *hole = value;
    }
}

static int compare(const void *a, const void *b) {
    uint32_t x = ((const struct record *)a)->key, y = ((const struct record *)b)->key;
    return (x > y) - (x < y);
}

static struct outcome run(double scale) {
    uint64_t rounds = scaled(16, scale), state = 3, sum = 0;
    uint32_t *numbers = malloc(count * sizeof *numbers);
    struct record *records = malloc(count * sizeof *records);
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        for (uint32_t n = 0; n < count; n++) {
            numbers[n] = (uint32_t)(next_random(&state) >> 32);
            records[n] = (struct record){numbers[n] ^ 0x5A5A5A5A, n};
        }
        quicksort(numbers, numbers + count - 1);
        qsort(records, count, sizeof *records, compare);
        for (uint32_t n = 0; n < count; n += 97) sum = sum * 31 + numbers[n] + records[n].key;
    }
    double seconds = now() - start;
    free(numbers);
    free(records);
    return (struct outcome){seconds, rounds, sum, NULL};
}

const struct program sort_program = {"sort", "compute", "two sorts of 2^17", run};
