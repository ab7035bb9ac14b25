// Kernels of training over one row of floats: derivatives of activations and norms, sums of products, the optimiser's
// step. train_ref.c is the naive twin (double, libm); the others are train.inc compiled for one instruction set each.
// Rows do not alias. n >= 0. No allocation, no errors.
#ifndef KERNELS_TRAIN_H
#define KERNELS_TRAIN_H

#include <stdint.h>

enum {
    K_NORM_LAYER,
    K_NORM_RMS,
    K_NORM_L2
};

// y = norm(x) * weight + bias, then * (1 + scale) + shift. Inputs that the forward pass did not have are NULL, and so
// are sums that nobody wants; dweight .. dshift are added to.
typedef struct norm_row {
    int kind;
    float eps;
    const float *x, *dy, *weight, *bias, *scale;
    float *dx, *dweight, *dbias, *dscale, *dshift;
} norm_row;

// One step of AdamW (Loshchilov and Hutter 2019, Algorithm 2 with PyTorch's order of roundings left aside).
typedef struct adamw_step {
    float rate, decay;       // lr / (1 - beta1^t), lr * weight decay
    float beta1, beta2, eps; //
    float correction;        // 1 / sqrt(1 - beta2^t)
    float grad_scale;        // clipping and averaging, applied to the gradient first
    float ema_rest;          // 1 - the moving average's decay
} adamw_step;

typedef struct train_kernels {
    void (*act_grad)(int act, const float *x, float *dy, int64_t n); // dy *= act'(x)
    float (*dot)(const float *a, const float *b, int64_t n);
    void (*accumulate)(float *sum, const float *a, const float *b, int64_t n); // sum += a * b, b NULL: += a
    void (*norm_grad)(const norm_row *row, int64_t n);
    void (*softmax_grad)(const float *y, float *dy, int64_t n); // dy = y * (dy - dot(y, dy))
    // p, m, v and, where not NULL, ema are changed.
    void (*adamw)(const adamw_step *step, float *p, const float *g, float *m, float *v, float *ema, int64_t n);
    // dst[c][r] = src[r][c] rounded to bf16: dst rows are ldd apart, src rows lds.
    void (*transpose_bf16)(const float *src, int64_t rows, int64_t columns, int64_t lds, uint16_t *dst, int64_t ldd);
    // dst[c][r] = src[r][c], strides in units of 32 bits.
    void (*transpose32)(const uint32_t *src, int64_t rows, int64_t columns, int64_t lds, uint32_t *dst, int64_t ldd);
    // 16 channels of a depthwise convolution's taps (1 to 8) over `count` pixels of a row: sum[t step + c] += the sum
    // of dy[i step + c] x[i step_x + t step + c].
    void (*depthwise)(
        const float *x, const float *dy, int64_t count, int64_t step_x, int64_t step, int taps, float *sum);
} train_kernels;

extern const train_kernels train_kernels_ref, train_kernels_avx2, train_kernels_avx512;

#endif
