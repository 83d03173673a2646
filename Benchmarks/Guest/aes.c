// AES-128 in counter mode with the AES instructions, eight blocks at a time.
#include "bench.h"

#include <immintrin.h>

__attribute__((target("aes"))) static void expand_key(__m128i keys[11], __m128i key) {
#define STEP(n, constant)                                                                \
    do {                                                                                 \
        __m128i word = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(key, constant), 255); \
        key = _mm_xor_si128(key, _mm_slli_si128(key, 4));                                \
        key = _mm_xor_si128(key, _mm_slli_si128(key, 8));                                \
        keys[n] = key = _mm_xor_si128(key, word);                                        \
    } while (0)
    keys[0] = key;
    STEP(1, 1);
    STEP(2, 2);
    STEP(3, 4);
    STEP(4, 8);
    STEP(5, 16);
    STEP(6, 32);
    STEP(7, 64);
    STEP(8, 128);
    STEP(9, 27);
    STEP(10, 54);
#undef STEP
}

__attribute__((target("aes"))) static void encrypt(__m128i *text, size_t blocks, const __m128i keys[11],
                                                   uint64_t counter) {
    for (size_t i = 0; i < blocks; i += 8) {
        __m128i block[8];
        for (int n = 0; n < 8; n++) block[n] = _mm_xor_si128(_mm_set_epi64x(1, (int64_t)counter++), keys[0]);
        for (int round = 1; round < 10; round++)
            for (int n = 0; n < 8; n++) block[n] = _mm_aesenc_si128(block[n], keys[round]);
        for (int n = 0; n < 8; n++) {
            block[n] = _mm_aesenclast_si128(block[n], keys[10]);
            text[i + (size_t)n] = _mm_xor_si128(text[i + (size_t)n], block[n]);
        }
    }
}

static struct outcome run(double scale) {
    if (!__builtin_cpu_supports("aes")) fail("no AES instructions");
    enum { size = 65536 };
    static __m128i text[size / 16];
    fill_text((char *)text, size);
    uint64_t rounds = scaled(10000, scale);
    __m128i keys[11];
    expand_key(keys, _mm_set_epi64x(0x0123456789ABCDEF, 0x0F1E2D3C4B5A6978));
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) encrypt(text, size / 16, keys, i * (size / 16));
    return (struct outcome){now() - start, rounds, checksum(text, size), "AES-NI"};
}

const struct program aes_program = {"aes", "compute", "64 KiB", run};
