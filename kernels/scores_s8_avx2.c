#include "scores_s8.h"

#include <immintrin.h>

typedef int32_t __attribute__((aligned(1), may_alias)) four_bytes;

// One query against 32 keys. Pairs of products are at most 2 * 127 * 127 and fit 16 bits where the query's value stands
// as its size, and its sign is the key's.
static inline __attribute__((always_inline)) void half_panel(
    int64_t steps, const uint8_t *q, const int8_t *panel, int64_t first, float *s) {
    const int8_t *values = panel + SCORES_HEAD + first * 4;
    const __m256i flip = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    __m256i acc[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t t = 0; t < steps; t++) {
        __m256i x = _mm256_xor_si256(_mm256_set1_epi32(*(const four_bytes *)(q + t * 4)), flip);
        __m256i size = _mm256_abs_epi8(x);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            __m256i key = _mm256_loadu_si256((const __m256i *)(const void *)(values + t * SCORES_PANEL * 4 + v * 32));
            __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(key, x));
            acc[v] = _mm256_add_epi32(acc[v], _mm256_madd_epi16(pairs, ones));
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        __m256 scales = _mm256_loadu_ps((const float *)(const void *)panel + first + v * 8);
        _mm256_storeu_ps(s + first + v * 8, _mm256_mul_ps(_mm256_cvtepi32_ps(acc[v]), scales));
    }
}

static void scores(
    int64_t m, int64_t panels, int64_t k, const uint8_t *q, int64_t ldq, const int8_t *keys, float *s, int64_t lds) {
    for (int64_t p = 0; p < panels; p++)
        for (int64_t i = 0; i < m; i++)
            for (int64_t first = 0; first < SCORES_PANEL; first += 32)
                half_panel(k / 4, q + i * ldq, keys + p * (SCORES_HEAD + SCORES_PANEL * k), first,
                    s + i * lds + p * SCORES_PANEL);
}

const scores_s8_kernels scores_s8_kernels_avx2 = {scores};
