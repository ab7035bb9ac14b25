// 8-bit products: activations as u8 (value + 128), weights as s8, sums in s32. gemm_s8_ref.c is the naive twin.
#ifndef KERNELS_GEMM_S8_H
#define KERNELS_GEMM_S8_H

#include <stdbool.h>
#include <stdint.h>

enum {
    S8_PANEL = 64
}; // columns of a packed panel: [k/4][64][4]

typedef struct gemm_s8_kernels {
    // c[m x n] = (add ? c : 0) + a b. a: rows lda bytes apart; b: panels of 64 columns. n is a multiple of 64, k of 4.
    void (*product)(int64_t m, int64_t n, int64_t k, const uint8_t *a, int64_t lda, const int8_t *b, int32_t *c,
        int64_t ldc, bool add);
    // q[i] = round(x[i] / scale) + 128 with scale = max|x| / 127 (1 where all are 0), which is returned.
    float (*quantize)(const float *x, int64_t n, uint8_t *q);
    // y[i] = (c[i] - 128 * sums[i]) * row_scale * scales[i] + bias[i]; bias may be NULL.
    void (*finish)(const int32_t *c, int64_t n, const int32_t *sums, float row_scale, const float *scales,
        const float *bias, float *y);
    // x, in blocks of `block` values (a power of two from 16 on that divides n), times a Hadamard matrix / sqrt(block).
    void (*rotate)(float *x, int64_t n, int64_t block);
} gemm_s8_kernels;

extern const gemm_s8_kernels gemm_s8_kernels_ref, gemm_s8_kernels_avx512, gemm_s8_kernels_amx;

#endif
