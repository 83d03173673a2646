// zlib and liblzma: a text compressed and decompressed.
#include "bench.h"

#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { size = 512 << 10 };

static struct outcome run_gzip(double scale) {
    uint64_t rounds = scaled(7, scale), sum = 0;
    uLongf capacity = compressBound(size);
    uint8_t *text = malloc(size), *packed = malloc(capacity), *unpacked = malloc(size);
    fill_text((char *)text, size);
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        text[i] ^= 1;
        uLongf packed_size = capacity, unpacked_size = size;
        if (compress2(packed, &packed_size, text, size, 6) != Z_OK) fail("compress2");
        if (uncompress(unpacked, &unpacked_size, packed, packed_size) != Z_OK) fail("uncompress");
        if (memcmp(text, unpacked, size) != 0) fail("another text came back");
        sum = sum * 31 + checksum(packed, packed_size);
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

static struct outcome run_xz(double scale) {
    uint64_t rounds = scaled(6, scale), sum = 0;
    size_t capacity = lzma_stream_buffer_bound(size);
    uint8_t *text = malloc(size), *packed = malloc(capacity), *unpacked = malloc(size);
    fill_text((char *)text, size);
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        text[i] ^= 1;
        size_t packed_size = 0, read = 0, unpacked_size = 0;
        uint64_t limit = UINT64_MAX;
        if (lzma_easy_buffer_encode(2, LZMA_CHECK_CRC64, NULL, text, size, packed, &packed_size, capacity) != LZMA_OK)
            fail("lzma_easy_buffer_encode");
        if (lzma_stream_buffer_decode(&limit, 0, NULL, packed, &read, packed_size, unpacked, &unpacked_size, size) !=
            LZMA_OK)
            fail("lzma_stream_buffer_decode");
        if (memcmp(text, unpacked, size) != 0) fail("another text came back");
        sum = sum * 31 + checksum(packed, packed_size);
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

const struct program gzip_program = {"gzip", "compute", "512 KiB there and back", run_gzip};
const struct program xz_program = {"xz", "compute", "512 KiB there and back", run_xz};
