#include "scores_s8.h"

#include <immintrin.h>

typedef int32_t __attribute__((aligned(1), may_alias)) four_bytes;

enum {
    ROWS = 6,
    COLUMNS = 4
};

// rows x 64 scores; rows is a constant where this is inlined, so that all sums stay in registers.
static inline __attribute__((always_inline)) void tile(
    const int rows, int64_t steps, const uint8_t *q, int64_t ldq, const int8_t *panel, float *s, int64_t lds) {
    const int8_t *values = panel + SCORES_HEAD;
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
            column[v] = _mm512_loadu_si512(values + (t * COLUMNS + v) * 64);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512i x = _mm512_set1_epi32(*(const four_bytes *)(q + r * ldq + t * 4));
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; v++)
                acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], x, column[v]);
        }
    }
    // Without this fence GCC 12 copies every sum to the stack in each step of the loop above, at half of its speed.
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++)
            __asm__("" : "+v"(acc[r][v]));
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) {
            __m512 scale = _mm512_loadu_ps(panel + v * 64), offset = _mm512_loadu_ps(panel + SCORES_PANEL * 4 + v * 64);
            _mm512_storeu_ps(s + r * lds + v * 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][v]), scale, offset));
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
            tile(ROWS, steps, q + i * ldq, ldq, panel, to + i * lds, lds);
        const uint8_t *x = q + i * ldq;
        to += i * lds;
        switch (m - i) {
        case 5: tile(5, steps, x, ldq, panel, to, lds); break;
        case 4: tile(4, steps, x, ldq, panel, to, lds); break;
        case 3: tile(3, steps, x, ldq, panel, to, lds); break;
        case 2: tile(2, steps, x, ldq, panel, to, lds); break;
        case 1: tile(1, steps, x, ldq, panel, to, lds); break;
        default: break;
        }
    }
}

const scores_s8_kernels scores_s8_kernels_avx512 = {scores};
