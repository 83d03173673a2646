// The C library's memcpy and memset, in pieces of 64 bytes, 4 KiB and 1 MiB.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum { span = 2 << 20 };

// Sizes the compiler cannot see, so that it calls the library.
static volatile size_t opaque_size;

static struct outcome run(size_t piece, uint64_t rounds, int copies) {
    opaque_size = piece;
    size_t size = opaque_size;
    // Small pieces walk 32 KiB, which the first-level cache holds; large ones the whole span.
    size_t window = piece < 4096 ? 32768 : piece < 65536 ? 262144 : span;
    uint8_t *source = malloc(span), *target = malloc(span);
    fill_text((char *)source, span);
    memset(target, 1, span);
    size_t offset = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        if (copies)
            memcpy(target + offset, source + offset, size);
        else
            memset(target + offset, (int)i, size);
        offset += piece;
        if (offset >= window) offset = 0;
    }
    double seconds = now() - start;
    struct outcome outcome = {seconds, rounds, checksum(target, span), NULL};
    free(source);
    free(target);
    return outcome;
}

static struct outcome copy_64(double scale) { return run(64, scaled(80e6, scale), 1); }
static struct outcome copy_4k(double scale) { return run(4096, scaled(3e6, scale), 1); }
static struct outcome copy_1m(double scale) { return run(1 << 20, scaled(10000, scale), 1); }
static struct outcome set_64(double scale) { return run(64, scaled(100e6, scale), 0); }
static struct outcome set_4k(double scale) { return run(4096, scaled(6e6, scale), 0); }
static struct outcome set_1m(double scale) { return run(1 << 20, scaled(20000, scale), 0); }

const struct program memcpy_64_program = {"memcpy-64", "compute", "64 bytes", copy_64};
const struct program memcpy_4k_program = {"memcpy-4k", "compute", "4 KiB", copy_4k};
const struct program memcpy_1m_program = {"memcpy-1m", "compute", "1 MiB", copy_1m};
const struct program memset_64_program = {"memset-64", "compute", "64 bytes", set_64};
const struct program memset_4k_program = {"memset-4k", "compute", "4 KiB", set_4k};
const struct program memset_1m_program = {"memset-1m", "compute", "1 MiB", set_1m};
