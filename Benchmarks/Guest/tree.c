// Binary trees: made node by node with malloc, walked recursively, freed.
#include "bench.h"

#include <stdlib.h>

struct node {
    struct node *left, *right;
    uint64_t value;
};

static struct node *make(int depth, uint64_t value) {
    struct node *node = malloc(sizeof *node);
    *node = (struct node){NULL, NULL, value};
    if (depth > 0) {
        node->left = make(depth - 1, 2 * value);
        node->right = make(depth - 1, 2 * value + 1);
    }
    return node;
}

static uint64_t walk(const struct node *node) {
    return node ? walk(node->left) + 3 * walk(node->right) + node->value : 0;
}

static void destroy(struct node *node) {
    if (!node) return;
    destroy(node->left);
    destroy(node->right);
    free(node);
}

static struct outcome run(double scale) {
    uint64_t rounds = scaled(150, scale), sum = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        struct node *root = make(15, i + 1);
        for (int j = 0; j < 4; j++) sum += walk(root);
        destroy(root);
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

const struct program tree_program = {"tree", "compute", "tree of 2^16 nodes", run};
