#include "checksum.h"

#include <string.h>

static uint32_t reference(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n; n--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0x82F63B78u & (0u - (crc & 1)));
    }
    return crc;
}

__attribute__((target("sse4.2"))) static uint64_t words(uint64_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    for (; n; n--) crc = __builtin_ia32_crc32qi((uint32_t)crc, *p++);
    return crc;
}

uint32_t roost_crc32c(uint32_t crc, const void *bytes, size_t length) {
    crc = ~crc;
    crc = __builtin_cpu_supports("sse4.2") ? (uint32_t)words(crc, bytes, length) : reference(crc, bytes, length);
    return ~crc;
}

__attribute__((target("sse4.2"))) static void lanes(uint64_t *sums, const uint8_t *p, size_t n) {
    uint64_t a = sums[0], b = sums[1], c = sums[2], d = sums[3], word[4];
    for (; n; n -= 32, p += 32) {
        memcpy(word, p, 32);
        a = __builtin_ia32_crc32di(a, word[0]);
        b = __builtin_ia32_crc32di(b, word[1]);
        c = __builtin_ia32_crc32di(c, word[2]);
        d = __builtin_ia32_crc32di(d, word[3]);
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

uint32_t roost_lane_sum(const void *bytes, size_t length) {
    uint64_t sums[4] = {1, 2, 3, 4};
    const uint8_t *p = bytes;
    if (__builtin_cpu_supports("sse4.2")) {
        lanes(sums, p, length & ~(size_t)31);
    } else {
        for (size_t n = 0; n + 8 <= length; n += 8) sums[n / 8 % 4] = reference((uint32_t)sums[n / 8 % 4], p + n, 8);
    }
    return roost_crc32c(0, sums, sizeof sums);
}

int roost_is_zero(const void *bytes, size_t length) {
    const uint64_t *p = bytes;
    for (size_t n = 0; n < length / 8; n += 8) {
        if (p[n] | p[n + 1] | p[n + 2] | p[n + 3] | p[n + 4] | p[n + 5] | p[n + 6] | p[n + 7]) return 0;
    }
    return 1;
}
