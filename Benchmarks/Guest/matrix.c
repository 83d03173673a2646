// Multiplication of matrices of doubles, rows in the inner loop.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum { size = 192 };
typedef double matrix[size][size];

static void multiply(matrix *product, const matrix *a, const matrix *b) {
    memset(product, 0, sizeof *product);
    for (int i = 0; i < size; i++)
        for (int k = 0; k < size; k++)
            for (int j = 0; j < size; j++) (*product)[i][j] += (*a)[i][k] * (*b)[k][j];
}

static struct outcome run(double scale) {
    uint64_t rounds = scaled(64, scale), state = 7;
    matrix *a = malloc(sizeof *a), *b = malloc(sizeof *b), *product = malloc(sizeof *product);
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) {
            (*a)[i][j] = (double)(next_random(&state) >> 40) / (1 << 24);
            (*b)[i][j] = (double)(next_random(&state) >> 40) / (1 << 24) / (size / 4);
        }
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        multiply(product, a, b);
        matrix *former = a;
        a = product;
        product = former;
    }
    double seconds = now() - start;
    return (struct outcome){seconds, rounds, checksum(a, sizeof *a), NULL};
}

const struct program matrix_program = {"matrix", "compute", "product of 192x192", run};
