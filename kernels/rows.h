// Kernels over one row of floats: conversions, elementwise functions, norms, softmax, rotation. rows_ref.c is the
// naive twin (libm, one loop, no thought of speed) and works everywhere; the others are rows.inc compiled for one
// instruction set each. Rows may alias only where stated. n >= 0. No allocation, no errors.
#ifndef KERNELS_ROWS_H
#define KERNELS_ROWS_H

#include <stdbool.h>
#include <stdint.h>

// The values of mel_dtype, mel_act, mel_unary_op, mel_binary_op (checked where core includes this).
enum {
    K_F32,
    K_BF16,
    K_F16,
    K_S8,
    K_U8,
    K_S32,
    K_I64
};
enum {
    K_NONE,
    K_SILU,
    K_GELU_TANH,
    K_GELU_ERF,
    K_QUICK_GELU,
    K_RELU,
    K_TANH,
    K_SIGMOID
};
enum {
    K_NEG,
    K_ABS,
    K_EXP,
    K_LOG,
    K_SQRT,
    K_RSQRT,
    K_SQUARE,
    K_SIN,
    K_COS,
    K_ROUND,
    K_FLOOR,
    K_RECIP
};
enum {
    K_ADD,
    K_SUB,
    K_MUL,
    K_DIV,
    K_MAX,
    K_MIN,
    K_POW
};

typedef struct row_kernels {
    // Stored values to float and back. Integers are rounded to nearest even and saturated; NaN gives 0.
    void (*load)(int dtype, const void *src, float *dst, int64_t n);
    void (*store)(int dtype, const float *src, void *dst, int64_t n);
    void (*act)(int act, float *x, int64_t n);
    void (*unary)(int op, float *x, int64_t n);
    // out may be a or b. A step of 0 repeats the first value.
    void (*binary)(int op, const float *a, int step_a, const float *b, int step_b, float *out, int64_t n);
    // y += alpha * x * gate; gate may be NULL; a step of 0 repeats the first value.
    void (*axpy)(float *y, float alpha, const float *x, int step_x, const float *gate, int step_gate, int64_t n);
    float (*sum)(const float *x, int64_t n);
    float (*sumsq)(const float *x, int64_t n);
    float (*max)(const float *x, int64_t n); // n >= 1; a NaN may or may not win
    // y may be x. weight, bias, scale, shift: n values or NULL.
    void (*layer_norm)(const float *x, float *y, int64_t n, float eps, const float *weight, const float *bias,
        const float *scale, const float *shift);
    void (*rms_norm)(
        const float *x, float *y, int64_t n, float eps, const float *weight, const float *scale, const float *shift);
    void (*l2_norm)(const float *x, float *y, int64_t n, const float *weight);
    void (*softmax)(float *x, int64_t n); // in place; all -inf gives zeros
    // Rotates n/2 pairs by cos, sin [n/2]: (2i, 2i+1) where interleaved, else (i, i + n/2). In place.
    void (*rope)(float *x, const float *cos_row, const float *sin_row, int64_t n, bool interleaved);
} row_kernels;

extern const row_kernels row_kernels_ref, row_kernels_avx2, row_kernels_avx512;

#endif
