// What training adds to the operations: backward passes, losses, the optimiser's step. Gradients are computed in
// float32 whatever the storage and give the same bits for any number of threads. Unless said otherwise a gradient has
// the shape of what it belongs to and f32 where that is a weight; results are new contiguous tensors that the caller
// owns. An out pointer that is NULL is not computed. Common failures: MEL_EINVAL with both shapes in the message,
// MEL_ENOMEM, MEL_ECANCELED.
#ifndef MELIES_TRAIN_H
#define MELIES_TRAIN_H

#include <melies/ops.h>

// ---- products and convolutions with weights that change ---------------------------------------------------------
// op(a) op(b) + bias, where op takes the matrix [product of all but the last dimension, last] or its transpose.
// Operands are cast to compute (f32, bf16; MEL_SAME: mel_compute()). Where a is not transposed and has more than two
// dimensions the result keeps its leading ones. dtype: f32 or bf16, MEL_SAME: a's. y = x W^T + b: (x, false, w, true,
// b). dx = dy W: (dy, false, w, false). dW = dy^T x: (dy, true, x, false).
MEL_API mel_status mel_train_matmul(const mel_tensor *a, bool transpose_a, const mel_tensor *b, bool transpose_b,
    const mel_tensor *bias, mel_dtype compute, mel_dtype dtype, mel_tensor **out, mel_error *err);
// A convolution as mel_conv_run's. stride, pad_before, pad_after: one value a spatial dimension of the weight.
MEL_API mel_status mel_train_conv(const mel_tensor *x, const mel_tensor *weight, const mel_tensor *bias,
    const int64_t *stride, const int64_t *pad_before, const int64_t *pad_after, int64_t groups, mel_dtype compute,
    mel_dtype dtype, mel_tensor **out, mel_error *err);
// Of its input (x's dtype) and its weight (f32). The bias's gradient is mel_sum_to(dy, [O]).
MEL_API mel_status mel_train_conv_backward(const mel_tensor *x, const mel_tensor *weight, const mel_tensor *dy,
    const int64_t *stride, const int64_t *pad_before, const int64_t *pad_after, int64_t groups, mel_dtype compute,
    mel_tensor **dx, mel_tensor **dweight, mel_error *err);

// ---- sums ---------------------------------------------------------------------------------------------------------
// a * b (b broadcasts to a; NULL: a alone) summed over the axes along which `shape` would be broadcast to a's shape:
// f32 of that shape. What broadcasting does to a gradient.
MEL_API mel_status mel_sum_to(
    const mel_tensor *a, const mel_tensor *b, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err);
// out [rows, ...] f32: out[ids[i]] += dy[i], in order; ids (i64 or s32) has the leading dimensions of dy. What
// mel_gather does to a gradient.
MEL_API mel_status mel_scatter_add(
    const mel_tensor *dy, const mel_tensor *ids, int64_t rows, mel_tensor **out, mel_error *err);

// ---- backward passes -------------------------------------------------------------------------------------------
// dy * act'(x), dy's dtype. x: what the activation was given.
MEL_API mel_status mel_activate_backward(
    mel_act act, const mel_tensor *x, const mel_tensor *dy, mel_tensor **dx, mel_error *err);
typedef enum mel_norm_kind {
    MEL_NORM_LAYER = 0,
    MEL_NORM_RMS = 1,
    MEL_NORM_L2 = 2
} mel_norm_kind;
// Of mel_layer_norm, mel_rms_norm and mel_l2_norm without activation. scale and shift: [D] or [.., 1.., D] whose
// leading dimensions are x's and whose later ones are 1 (MEL_EINVAL otherwise); shift has shift_like's shape. dx has
// x's dtype, the others are f32.
MEL_API mel_status mel_norm_backward(mel_norm_kind kind, const mel_tensor *x, const mel_tensor *dy,
    const mel_tensor *weight, const mel_tensor *bias, double eps, const mel_tensor *scale, const mel_tensor *shift_like,
    mel_tensor **dx, mel_tensor **dweight, mel_tensor **dbias, mel_tensor **dscale, mel_tensor **dshift,
    mel_error *err);
// Of mel_group_norm without activation. dweight, dbias: f32 [C].
MEL_API mel_status mel_group_norm_backward(const mel_tensor *x, const mel_tensor *dy, int groups,
    const mel_tensor *weight, double eps, mel_tensor **dx, mel_tensor **dweight, mel_tensor **dbias, mel_error *err);
// y: what mel_softmax gave. dx has dy's dtype.
MEL_API mel_status mel_softmax_backward(const mel_tensor *y, const mel_tensor *dy, mel_tensor **dx, mel_error *err);
// Of mel_attention with the same arguments. Probabilities are computed again, for a block of queries of one head at a
// time. dq, dk, dv have the dtypes of q, k, v; dbias (f32) has bias's shape.
MEL_API mel_status mel_attention_backward(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v,
    const mel_tensor *dout, double scale, const mel_tensor *bias, const mel_tensor *key_bias, bool causal,
    mel_tensor **dq, mel_tensor **dk, mel_tensor **dv, mel_tensor **dbias, mel_error *err);

// ---- losses: the value in double, and its gradient -----------------------------------------------------------------
// mean(weight * (x - target)^2) over all elements; weight broadcasts to x, NULL: 1. dx has x's dtype.
MEL_API mel_status mel_mse(const mel_tensor *x, const mel_tensor *target, const mel_tensor *weight, double *loss,
    mel_tensor **dx, mel_error *err);
// mean of -log softmax(x)[label] over the rows of x [..., V] whose label (i64 or s32, [...]) is not `ignore`; 0 where
// there are none. MEL_EINVAL: a label outside 0..V-1 (named).
MEL_API mel_status mel_cross_entropy(
    const mel_tensor *x, const mel_tensor *labels, int64_t ignore, double *loss, mel_tensor **dx, mel_error *err);

// ---- the optimiser ------------------------------------------------------------------------------------------------
// sqrt of the sum of squares of all elements of all tensors; NaN or infinite where one of them is.
MEL_API mel_status mel_global_norm(int count, const mel_tensor *const *tensors, double *out, mel_error *err);
typedef struct mel_adamw {
    double lr, beta1, beta2, eps, weight_decay;
    double grad_scale; // applied to the gradient first: clipping, averaging
    double ema_decay;  // of the moving average
    int64_t step;      // 1 for the first
} mel_adamw;
// One step of AdamW on one parameter in one pass: decoupled decay, bias correction. param, m, v and ema (may be NULL)
// are dense f32 of one shape and are changed; grad any float. Does not look at the cancel flag: a step is whole.
MEL_API mel_status mel_adamw_step(const mel_adamw *options, mel_tensor *param, const mel_tensor *grad, mel_tensor *m,
    mel_tensor *v, mel_tensor *ema, mel_error *err);
typedef struct mel_muon {
    double lr, momentum, weight_decay;
    double grad_scale; // applied to the gradient first: clipping, averaging
    double ema_decay;  // of the moving average
} mel_muon;
// One step of Muon (K. Jordan et al. 2024) on one matrix, the first dimension against all others: m = momentum m +
// (1 - momentum) g; param = (1 - lr decay) param - 0.2 sqrt(the longer side) lr u, u the orthogonal of momentum m +
// (1 - momentum) g. The dtype of the work is mel_compute(). Otherwise as mel_adamw_step.
MEL_API mel_status mel_muon_step(
    const mel_muon *options, mel_tensor *param, const mel_tensor *grad, mel_tensor *m, mel_tensor *ema, mel_error *err);
// x [n, k] with its singular values made 1, roughly (0.7 to 1.2; those below a thousandth of its norm less): five steps
// of Newton and Schulz by Jordan's quintic. f32. compute: f32, bf16 or MEL_SAME (mel_compute()).
MEL_API mel_status mel_orthogonal(const mel_tensor *x, mel_dtype compute, mel_tensor **out, mel_error *err);

#endif
