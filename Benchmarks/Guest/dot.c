// The dot product of vectors of floats with AVX2's registers and FMA.
#include "bench.h"

#include <immintrin.h>

enum { count = 4096 };
static float a[count] __attribute__((aligned(32))), b[count] __attribute__((aligned(32)));

__attribute__((target("avx2,fma"))) static float dot(void) {
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int i = 0; i < count; i += 32)
        for (int n = 0; n < 4; n++)
            sum[n] = _mm256_fmadd_ps(_mm256_load_ps(a + i + 8 * n), _mm256_load_ps(b + i + 8 * n), sum[n]);
    __m256 total = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

static struct outcome run(double scale) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) fail("no AVX2 and FMA");
    uint64_t rounds = scaled(400e3, scale), state = 11, sum = 0;
    for (int i = 0; i < count; i++) {
        a[i] = (float)(next_random(&state) >> 61);
        b[i] = (float)(next_random(&state) >> 61);
    }
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        a[i % count] = (float)(i & 7);
        sum += (uint64_t)dot();
    }
    return (struct outcome){now() - start, rounds, sum, "AVX2+FMA"};
}

const struct program dot_program = {"dot", "compute", "product of 4096 floats", run};
