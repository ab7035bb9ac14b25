// What blocked attention and lazy linears are made of: a matrix product over packed panels, and one row's online
// softmax.
// attention_ref.c is the naive twin.
#ifndef KERNELS_ATTENTION_H
#define KERNELS_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

typedef struct attention_kernels {
    int64_t panel; // columns of a packed panel
    int64_t width; // columns come in multiples of this; the last panel may be narrower than the others
    int64_t pairs; // 1: f32 operands; 2: bf16 operands, two neighbours along k side by side
    // c[m x n] = (add ? c : 0) + a[m x k] b. a: dense rows lda elements apart; b: panels of `panel` columns, each
    // [k/pairs][columns][pairs]. n is a multiple of width, k of pairs. a and b hold floats (pairs 1) or bf16 (pairs 2).
    void (*product)(
        int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, float *c, int64_t ldc, bool add);
    // s[i] = s[i] * scale + bias[i] + key_bias[i] (either may be NULL) for n scores; *top becomes the largest of them
    // and itself. p[i] = exp(s[i] - *top) as an operand of product; returns the sum of p. s may be overwritten. All
    // -inf so far gives p = 0.
    float (*row)(float *s, int64_t n, float scale, const float *bias, const float *key_bias, float *top, void *p);
    // The same of m rows without biases: lds floats and ldp operands apart, scales from 0 on, sums[i] for what row
    // returns.
    void (*rows)(int64_t m, int64_t n, float *s, int64_t lds, const float *scales, float *top, float *sums, void *p,
        int64_t ldp);
} attention_kernels;

extern const attention_kernels attention_kernels_ref, attention_kernels_avx2, attention_kernels_avx512,
    attention_kernels_avx512bf16, attention_kernels_amx;

#endif
