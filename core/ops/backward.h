// Matrix products and convolutions of training: weights lie plain (they change every step), primitives are kept for the
// process by shape, and work is cut into tasks by shape alone, each done by one thread: the same bits for any number of
// threads. Raw pointers; the callers in core/train check shapes.
#ifndef MELIES_CORE_OPS_BACKWARD_H
#define MELIES_CORE_OPS_BACKWARD_H

#include <melies/ops.h>

typedef struct mel_gemm_spec {
    int64_t m, n, k;
    bool transpose_a, transpose_b; // a lies [k, m], b lies [n, k]
    mel_dtype operand, result;     // f32 or bf16
    bool bias;                     // f32 [n]
} mel_gemm_spec;

// c [m, n] = a [m, k] b [k, n] + bias. m, n, k >= 1.
mel_status mel_gemm(
    const mel_gemm_spec *spec, const void *a, const void *b, const float *bias, void *c, mel_error *err);

typedef struct mel_conv_geometry {
    int64_t spatial; // 2 or 3
    int64_t n, ic, oc, groups;
    int64_t in[3], out[3], kernel[3], stride[3], before[3], after[3];
    mel_dtype operand; // f32 or bf16, of activations and weights
} mel_conv_geometry;

typedef enum mel_conv_pass {
    MEL_CONV_FORWARD, // dst = conv(src, weights) + bias
    MEL_CONV_DATA,    // src = d/dsrc of dst
    MEL_CONV_WEIGHTS  // weights = d/dweights of src, dst; f32
} mel_conv_pass;

// src [n, in.., ic] and dst [n, out.., oc] as operands, weights plain [oc, ic/groups, kernel..]: operands, or f32 where
// they are the result. after: such that the output's size is exact.
mel_status mel_conv_train(mel_conv_pass pass, const mel_conv_geometry *g, void *src, void *weights, const float *bias,
    void *dst, mel_error *err);

#endif
