#include "gemm_s8.h"

#include <immintrin.h>
#include <math.h>

typedef int32_t __attribute__((aligned(1), may_alias)) four_bytes;

enum {
    ROWS = 6,
    COLUMNS = 4
};

// rows x 64 of c; rows is a constant where this is inlined, so that all sums stay in registers.
static inline __attribute__((always_inline)) void tile(
    const int rows, int64_t steps, const uint8_t *a, int64_t lda, const int8_t *b, int32_t *c, int64_t ldc, bool add) {
    __m512i acc[ROWS][COLUMNS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++)
            acc[r][v] = add ? _mm512_loadu_si512(c + r * ldc + v * 16) : _mm512_setzero_si512();
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
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++)
            _mm512_storeu_si512(c + r * ldc + v * 16, acc[r][v]);
}

static void product(int64_t m, int64_t n, int64_t k, const uint8_t *a, int64_t lda, const int8_t *b, int32_t *c,
    int64_t ldc, bool add) {
    for (int64_t j = 0; j < n; j += S8_PANEL) {
        const int8_t *panel = b + j * k;
        const int64_t steps = k / 4;
        int64_t i = 0;
        for (; i + ROWS <= m; i += ROWS)
            tile(ROWS, steps, a + i * lda, lda, panel, c + i * ldc + j, ldc, add);
        const uint8_t *x = a + i * lda;
        int32_t *y = c + i * ldc + j;
        switch (m - i) {
        case 5: tile(5, steps, x, lda, panel, y, ldc, add); break;
        case 4: tile(4, steps, x, lda, panel, y, ldc, add); break;
        case 3: tile(3, steps, x, lda, panel, y, ldc, add); break;
        case 2: tile(2, steps, x, lda, panel, y, ldc, add); break;
        case 1: tile(1, steps, x, lda, panel, y, ldc, add); break;
        default: break;
        }
    }
}

#define MASK(i) ((__mmask16)(n - (i) >= 16 ? 0xffff : (1u << (n - (i))) - 1))

static float quantize(const float *x, int64_t n, uint8_t *q) {
    __m512 high = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16)
        high = _mm512_max_ps(high, _mm512_abs_ps(_mm512_maskz_loadu_ps(MASK(i), x + i)));
    float top = _mm512_reduce_max_ps(high);
    float scale = top > 0 ? top / 127.0f : 1.0f;
    const __m512 by = _mm512_set1_ps(1.0f / scale);
    const __m512i off = _mm512_set1_epi32(128);
    for (int64_t i = 0; i < n; i += 16) {
        __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(MASK(i), x + i), by));
        v = _mm512_max_epi32(_mm512_min_epi32(v, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
        _mm_mask_storeu_epi8(q + i, MASK(i), _mm512_cvtepi32_epi8(_mm512_add_epi32(v, off)));
    }
    return scale;
}

static void finish(const int32_t *c, int64_t n, const int32_t *sums, float row_scale, const float *scales,
    const float *bias, float *y) {
    const __m512 by = _mm512_set1_ps(row_scale);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = MASK(i);
        __m512i v = _mm512_maskz_loadu_epi32(m, c + i);
        v = _mm512_sub_epi32(v, _mm512_slli_epi32(_mm512_maskz_loadu_epi32(m, sums + i), 7));
        __m512 s = _mm512_mul_ps(by, _mm512_maskz_loadu_ps(m, scales + i));
        __m512 b = bias ? _mm512_maskz_loadu_ps(m, bias + i) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(y + i, m, _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), s, b));
    }
}

// One stage within 16 values: where the bit of `minus` is set, other - x, else other + x.
static inline __m512 stage(__m512 x, __m512 other, __mmask16 minus) {
    return _mm512_mask_sub_ps(_mm512_add_ps(other, x), minus, other, x);
}

static void rotate(float *x, int64_t n, int64_t block) {
    const __m512 by = _mm512_set1_ps(1.0f / sqrtf((float)block));
    for (int64_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        v = stage(v, _mm512_permute_ps(v, 0xb1), 0xaaaa);
        v = stage(v, _mm512_permute_ps(v, 0x4e), 0xcccc);
        v = stage(v, _mm512_shuffle_f32x4(v, v, 0xb1), 0xf0f0);
        v = stage(v, _mm512_shuffle_f32x4(v, v, 0x4e), 0xff00);
        _mm512_storeu_ps(x + i, block == 16 ? _mm512_mul_ps(v, by) : v);
    }
    for (int64_t h = 16; h < block; h *= 2)
        for (int64_t at = 0; at < n; at += 2 * h)
            for (int64_t i = at; i < at + h; i += 16) {
                __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + h);
                __m512 sum = _mm512_add_ps(a, b), less = _mm512_sub_ps(a, b);
                if (2 * h == block) {
                    sum = _mm512_mul_ps(sum, by);
                    less = _mm512_mul_ps(less, by);
                }
                _mm512_storeu_ps(x + i, sum);
                _mm512_storeu_ps(x + i + h, less);
            }
}

const gemm_s8_kernels gemm_s8_kernels_avx512 = {product, quantize, finish, rotate};
