#include "attention_s8.h"

#include <immintrin.h>

typedef int32_t __attribute__((aligned(1), may_alias)) four_bytes;

enum {
    ROWS = 6,
    COLUMNS = 4
};
#define MASK(i) ((__mmask16)(n - (i) >= 16 ? 0xffff : (1u << (n - (i))) - 1))

// rows x 64 sums over 4 * steps terms of a (u8, lda bytes apart) and b ([steps][64][4] s8). rows is a constant where
// this is inlined, so that all sums stay in registers.
static inline __attribute__((always_inline)) void product(
    const int rows, int64_t steps, const uint8_t *a, int64_t lda, const int8_t *b, __m512i sums[ROWS][COLUMNS]) {
    __m512i acc[ROWS][COLUMNS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++)
            acc[r][v] = _mm512_setzero_si512();
    for (int64_t t = 0; t < steps; t++) {
        __m512i column[COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++)
            column[v] = _mm512_loadu_si512(b + (t * COLUMNS + v) * 64);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512i x = _mm512_set1_epi32(*(const four_bytes *)(a + r * lda + t * 4));
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; v++)
                acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], x, column[v]);
        }
    }
    // Without this fence GCC 12 copies every sum to the stack in each step of the loop above, at half of its speed.
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) {
            __asm__("" : "+v"(acc[r][v]));
            sums[r][v] = acc[r][v];
        }
}

static inline __attribute__((always_inline)) void scores_tile(
    const int rows, int64_t steps, const uint8_t *q, int64_t ldq, const int8_t *panel, float *s, int64_t lds) {
    __m512i sums[ROWS][COLUMNS];
    product(rows, steps, q, ldq, panel + SCORES_HEAD, sums);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) {
            __m512 scale = _mm512_loadu_ps(panel + v * 64), offset = _mm512_loadu_ps(panel + SCORES_PANEL * 4 + v * 64);
            _mm512_storeu_ps(s + r * lds + v * 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][v]), scale, offset));
        }
}

static void scores(
    int64_t m, int64_t panels, int64_t k, const uint8_t *q, int64_t ldq, const int8_t *keys, float *s, int64_t lds) {
    const int64_t steps = k / 4;
    for (int64_t p = 0; p < panels; p++) {
        const int8_t *panel = keys + p * (SCORES_HEAD + SCORES_PANEL * k);
        float *to = s + p * SCORES_PANEL;
        int64_t i = 0;
        for (; i + ROWS <= m; i += ROWS)
            scores_tile(ROWS, steps, q + i * ldq, ldq, panel, to + i * lds, lds);
        const uint8_t *x = q + i * ldq;
        to += i * lds;
        switch (m - i) {
        case 5: scores_tile(5, steps, x, ldq, panel, to, lds); break;
        case 4: scores_tile(4, steps, x, ldq, panel, to, lds); break;
        case 3: scores_tile(3, steps, x, ldq, panel, to, lds); break;
        case 2: scores_tile(2, steps, x, ldq, panel, to, lds); break;
        case 1: scores_tile(1, steps, x, ldq, panel, to, lds); break;
        default: break;
        }
    }
}

// 2^x by scalef and a cubic: within 8e-5 (minimax on [0, 1), Remez), far under a step of 1 in 255.
static inline __m512 exp2_coarse(__m512 x) {
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); // in [0, 1)
    __m512 p = _mm512_set1_ps(7.802452269e-02f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.260671554e-01f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.958335405e-01f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999252186e-01f));
    return _mm512_scalef_ps(p, x);
}

// `count` rows side by side: what one waits for, the other fills.
static inline __attribute__((always_inline)) void some_rows(const int count, int64_t n, const float *s, int64_t lds,
    const float *scales, float *top, float *sums, uint8_t *p, int64_t ldp) {
    const __m512 low = _mm512_set1_ps(-__builtin_inff());
    const int64_t whole = n / 16 * 16;
    const __mmask16 rest = MASK(whole);
    __m512 high[2], to2[2], off[2];
    __m512i total[2];
    for (int r = 0; r < count; r++)
        high[r] = _mm512_mask_loadu_ps(low, rest, s + r * lds + whole);
    for (int64_t i = 0; i < whole; i += 16)
        for (int r = 0; r < count; r++)
            high[r] = _mm512_max_ps(high[r], _mm512_loadu_ps(s + r * lds + i));
    for (int r = 0; r < count; r++) {
        top[r] = _mm512_reduce_max_ps(high[r]) * scales[r];
        to2[r] = _mm512_set1_ps(scales[r] * 1.44269504088896341f);
        off[r] = _mm512_set1_ps(top[r] * 1.44269504088896341f - 7.99435343685885793f); // log2(255)
        total[r] = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < whole; i += 16)
        for (int r = 0; r < count; r++) {
            __m512 e = exp2_coarse(_mm512_fmsub_ps(_mm512_loadu_ps(s + r * lds + i), to2[r], off[r]));
            __m512i q = _mm512_cvtps_epi32(e);
            total[r] = _mm512_add_epi32(total[r], q);
            _mm_storeu_si128((__m128i *)(void *)(p + r * ldp + i), _mm512_cvtepi32_epi8(q));
        }
    for (int r = 0; r < count; r++) {
        __m512 e = _mm512_fmsub_ps(_mm512_mask_loadu_ps(low, rest, s + r * lds + whole), to2[r], off[r]);
        __m512i q = _mm512_maskz_mov_epi32(rest, _mm512_cvtps_epi32(exp2_coarse(e)));
        _mm_mask_storeu_epi8(p + r * ldp + whole, rest, _mm512_cvtepi32_epi8(q));
        sums[r] = (float)_mm512_reduce_add_epi32(_mm512_add_epi32(total[r], q));
    }
}

static void rows(int64_t m, int64_t n, const float *s, int64_t lds, const float *scales, float *top, float *sums,
    uint8_t *p, int64_t ldp) {
    int64_t i = 0;
    for (; i + 2 <= m; i += 2)
        some_rows(2, n, s + i * lds, lds, scales + i, top + i, sums + i, p + i * ldp, ldp);
    if (i < m) some_rows(1, n, s + i * lds, lds, scales + i, top + i, sums + i, p + i * ldp, ldp);
}

static inline __attribute__((always_inline)) void add_tile(const int rows, int64_t steps, const uint8_t *p, int64_t ldp,
    const int8_t *values, const int8_t *scales, const float *weights, float *acc, int64_t lda) {
    __m512i sums[ROWS][COLUMNS];
    product(rows, steps, p, ldp, values, sums);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) {
            __m512 by = _mm512_mul_ps(_mm512_set1_ps(weights[r]), _mm512_loadu_ps(scales + v * 64));
            float *to = acc + r * lda + v * 16;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][v]), by, _mm512_loadu_ps(to)));
        }
}

static void add(int64_t m, int64_t panels, int64_t k, const uint8_t *p, int64_t ldp, const int8_t *values, int64_t keys,
    int64_t first, const float *weights, float *acc, int64_t lda) {
    const int64_t steps = k / 4;
    for (int64_t c = 0; c < panels; c++) {
        const int8_t *scales = values + c * (VALUES_HEAD + SCORES_PANEL * keys);
        const int8_t *panel = scales + VALUES_HEAD + first * SCORES_PANEL;
        float *to = acc + c * SCORES_PANEL;
        int64_t i = 0;
        for (; i + ROWS <= m; i += ROWS)
            add_tile(ROWS, steps, p + i * ldp, ldp, panel, scales, weights + i, to + i * lda, lda);
        const uint8_t *x = p + i * ldp;
        const float *w = weights + i;
        to += i * lda;
        switch (m - i) {
        case 5: add_tile(5, steps, x, ldp, panel, scales, w, to, lda); break;
        case 4: add_tile(4, steps, x, ldp, panel, scales, w, to, lda); break;
        case 3: add_tile(3, steps, x, ldp, panel, scales, w, to, lda); break;
        case 2: add_tile(2, steps, x, ldp, panel, scales, w, to, lda); break;
        case 1: add_tile(1, steps, x, ldp, panel, scales, w, to, lda); break;
        default: break;
        }
    }
}

const attention_s8_kernels attention_s8_kernels_avx512 = {scores, rows, add};
