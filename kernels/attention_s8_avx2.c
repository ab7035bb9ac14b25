#include "attention_s8.h"
#include "fastmath.h"

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

static void rows(int64_t m, int64_t n, const float *s, int64_t lds, const float *scales, float *top, float *sums,
    uint8_t *p, int64_t ldp) {
    for (int64_t i = 0; i < m; i++) {
        const float *x = s + i * lds;
        float high = x[0];
        for (int64_t j = 1; j < n; j++)
            high = x[j] > high ? x[j] : high;
        high *= scales[i];
        int32_t sum = 0;
        for (int64_t j = 0; j < n; j++) {
            int32_t q = (int32_t)(255.0f * exp_fast(x[j] * scales[i] - high) + 0.5f);
            p[i * ldp + j] = (uint8_t)q;
            sum += q;
        }
        top[i] = high;
        sums[i] = (float)sum;
    }
}

// One row of probabilities against 32 channels: values of even and of odd keys as 16 bits.
static inline __attribute__((always_inline)) void half_add(
    int64_t steps, const uint8_t *p, const int8_t *values, const float *scales, float weight, float *acc) {
    const __m256i low = _mm256_set1_epi32(0x00ff00ff);
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t t = 0; t < steps; t++) {
        __m256i x = _mm256_set1_epi32(*(const four_bytes *)(p + t * 4));
        __m256i even = _mm256_and_si256(x, low), odd = _mm256_and_si256(_mm256_srli_epi16(x, 8), low);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            __m256i four = _mm256_loadu_si256((const __m256i *)(const void *)(values + t * SCORES_PANEL * 4 + v * 32));
            __m256i here = _mm256_madd_epi16(even, _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8));
            sums[v] =
                _mm256_add_epi32(sums[v], _mm256_add_epi32(here, _mm256_madd_epi16(odd, _mm256_srai_epi16(four, 8))));
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        __m256 by = _mm256_mul_ps(_mm256_set1_ps(weight), _mm256_loadu_ps(scales + v * 8));
        __m256 y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[v]), by, _mm256_loadu_ps(acc + v * 8));
        _mm256_storeu_ps(acc + v * 8, y);
    }
}

static void add(int64_t m, int64_t panels, int64_t k, const uint8_t *p, int64_t ldp, const int8_t *values, int64_t keys,
    int64_t first, const float *weights, float *acc, int64_t lda) {
    for (int64_t c = 0; c < panels; c++) {
        const int8_t *panel = values + c * (VALUES_HEAD + SCORES_PANEL * keys);
        const float *scales = (const float *)(const void *)panel;
        for (int64_t i = 0; i < m; i++)
            for (int64_t half = 0; half < SCORES_PANEL; half += 32)
                half_add(k / 4, p + i * ldp, panel + VALUES_HEAD + first * SCORES_PANEL + half * 4, scales + half,
                    weights[i], acc + i * lda + c * SCORES_PANEL + half);
    }
}

const attention_s8_kernels attention_s8_kernels_avx2 = {scores, rows, add};
