// Operations without state. All compute in float32 (accumulations too) whatever the storage, give the
// same bits for any number of threads, and return a new contiguous tensor in *out that the caller owns.
// dtype arguments choose the output's storage (f32, bf16, f16); MEL_SAME keeps the (first) input's.
// Common failures: MEL_EINVAL with both shapes in the message, MEL_ENOMEM, MEL_ECANCELED.
#ifndef MELIES_OPS_H
#define MELIES_OPS_H

#include <melies/tensor.h>

typedef enum mel_act {
    MEL_ACT_NONE = 0,
    MEL_ACT_SILU = 1,       // x * sigmoid(x)
    MEL_ACT_GELU_TANH = 2,  // 0.5x(1 + tanh(sqrt(2/pi)(x + 0.044715x^3)))
    MEL_ACT_GELU_ERF = 3,   // 0.5x(1 + erf(x/sqrt 2))
    MEL_ACT_QUICK_GELU = 4, // x * sigmoid(1.702x)
    MEL_ACT_RELU = 5,
    MEL_ACT_TANH = 6,
    MEL_ACT_SIGMOID = 7
} mel_act;

typedef enum mel_unary_op {
    MEL_NEG = 0,
    MEL_ABS = 1,
    MEL_EXP = 2,
    MEL_LOG = 3,
    MEL_SQRT = 4,
    MEL_RSQRT = 5,
    MEL_SQUARE = 6,
    MEL_SIN = 7,
    MEL_COS = 8,
    MEL_ROUND = 9,
    MEL_FLOOR = 10,
    MEL_RECIP = 11
} mel_unary_op;

typedef enum mel_binary_op {
    MEL_ADD = 0,
    MEL_SUB = 1,
    MEL_MUL = 2,
    MEL_DIV = 3,
    MEL_MAX = 4,
    MEL_MIN = 5,
    MEL_POW = 6
} mel_binary_op;

typedef enum mel_reduce_op {
    MEL_SUM = 0,
    MEL_MEAN = 1,
    MEL_REDUCE_MAX = 2,
    MEL_REDUCE_MIN = 3,
    MEL_SUMSQ = 4
} mel_reduce_op;

typedef enum mel_resize_mode {
    MEL_NEAREST = 0,
    MEL_BILINEAR = 1,
    MEL_BICUBIC = 2,
    MEL_AREA = 3
} mel_resize_mode;

// ---- elementwise ---------------------------------------------------------------------------
MEL_API mel_status mel_activate(mel_act act, const mel_tensor *x, mel_dtype dtype, mel_tensor **out, mel_error *err);
MEL_API mel_status mel_unary(mel_unary_op op, const mel_tensor *x, mel_dtype dtype, mel_tensor **out, mel_error *err);
// Shapes broadcast from the right, as in NumPy. The result is f32 if either is f32 or they differ, else their dtype.
MEL_API mel_status mel_binary(
    mel_binary_op op, const mel_tensor *a, const mel_tensor *b, mel_tensor **out, mel_error *err);
// a op s, or s op a where reversed.
MEL_API mel_status mel_binary_scalar(
    mel_binary_op op, const mel_tensor *a, double s, bool reversed, mel_tensor **out, mel_error *err);
MEL_API mel_status mel_clamp(const mel_tensor *x, double low, double high, mel_tensor **out, mel_error *err);
// In place: y += alpha * x * gate. x and gate broadcast to y; gate may be NULL.
MEL_API mel_status mel_add_inplace(
    mel_tensor *y, double alpha, const mel_tensor *x, const mel_tensor *gate, mel_error *err);

// ---- reductions ----------------------------------------------------------------------------
MEL_API mel_status mel_reduce(
    mel_reduce_op op, const mel_tensor *x, int axis, bool keep_dim, mel_tensor **out, mel_error *err);
// Over all elements, accumulated in double. An empty tensor is MEL_EINVAL for all but MEL_SUM and MEL_SUMSQ.
MEL_API mel_status mel_reduce_all(mel_reduce_op op, const mel_tensor *x, double *out, mel_error *err);
MEL_API mel_status mel_dot(const mel_tensor *a, const mel_tensor *b, double *out, mel_error *err); // same shape
MEL_API mel_status mel_count_nonfinite(const mel_tensor *x, int64_t *out, mel_error *err);

// ---- moving --------------------------------------------------------------------------------
// Same dtype and shape but along axis. count >= 1.
MEL_API mel_status mel_concat(int count, const mel_tensor *const *parts, int axis, mel_tensor **out, mel_error *err);
// before, after >= 0. edge: repeats the border instead of value.
MEL_API mel_status mel_pad(const mel_tensor *x, int axis, int64_t before, int64_t after, double value, bool edge,
    mel_tensor **out, mel_error *err);
// Rows of table [V, ...] chosen by ids (i64 or s32, any shape): out is ids' shape + table's trailing shape.
// MEL_EINVAL: an id outside 0..V-1 (named).
MEL_API mel_status mel_gather(
    const mel_tensor *table, const mel_tensor *ids, mel_dtype dtype, mel_tensor **out, mel_error *err);
// Resamples one axis to size (>= 1), half-pixel centres, edges clamped. Bicubic: a = -0.75. antialias widens the
// kernel when shrinking (bilinear and bicubic). Nearest is "nearest-exact". Area averages. Floats, or u8 (rounded).
MEL_API mel_status mel_resize(const mel_tensor *x, int axis, int64_t size, mel_resize_mode mode, bool antialias,
    mel_tensor **out, mel_error *err);

// ---- normalisation, over the last axis ------------------------------------------------------
// (x - mean) / sqrt(var + eps) * weight + bias, then * (1 + scale) + shift. weight, bias: [D] or NULL.
// scale, shift: [D] or [B, 1.., D] (broadcast to x) or NULL. Then act.
MEL_API mel_status mel_layer_norm(const mel_tensor *x, const mel_tensor *weight, const mel_tensor *bias, double eps,
    const mel_tensor *scale, const mel_tensor *shift, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err);
// x / sqrt(mean(x^2) + eps) * weight, then * (1 + scale) + shift, then act. Any of weight, scale, shift may be NULL.
MEL_API mel_status mel_rms_norm(const mel_tensor *x, const mel_tensor *weight, double eps, const mel_tensor *scale,
    const mel_tensor *shift, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err);
// x / max(|x|_2, 1e-12) * sqrt(D) * weight, then act: the Wan VAE's RMS_norm.
MEL_API mel_status mel_l2_norm(
    const mel_tensor *x, const mel_tensor *weight, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err);
// The same written into a dense tensor of x's shape, which may be a part of a larger one.
MEL_API mel_status mel_l2_norm_into(
    const mel_tensor *x, const mel_tensor *weight, mel_act act, mel_tensor *into, mel_error *err);
// x [N, ..., C]: mean and variance over all but N and the channel's group. weight, bias: [C] or NULL. Then act.
MEL_API mel_status mel_group_norm(const mel_tensor *x, int groups, const mel_tensor *weight, const mel_tensor *bias,
    double eps, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err);
MEL_API mel_status mel_softmax(const mel_tensor *x, mel_dtype dtype, mel_tensor **out, mel_error *err);

// ---- attention -----------------------------------------------------------------------------
// Rotates pairs of x [B, L, H, D] by tables cos, sin [L, D/2] f32 (or [B, L, D/2]); interleaved: pairs (2i, 2i+1), else
// (i, i + D/2).
MEL_API mel_status mel_rope(const mel_tensor *x, const mel_tensor *cos_table, const mel_tensor *sin_table,
    bool interleaved, mel_dtype dtype, mel_tensor **out, mel_error *err);
// softmax(scale * q k^T + bias + key_bias) v by blocks with an online softmax; never holds L x L scores.
// q [B, Lq, H, D], k [B, Lk, H, D], v [B, Lk, H, D] of one dtype (bf16 or f32), last axis dense; out [B, Lq, H, D].
// bias: f32 [1 or B, 1 or H, Lq, Lk] or NULL. key_bias: f32 [B, Lk] or [Lk] or NULL (-inf masks a key).
// causal: key j is seen by query i only where j <= i + Lk - Lq. A query that sees no key gives 0.
MEL_API mel_status mel_attention(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v, double scale,
    const mel_tensor *bias, const mel_tensor *key_bias, bool causal, mel_dtype dtype, mel_tensor **out, mel_error *err);

enum {
    MEL_ATTENTION_BLOCK = 64
}; // tokens of a block of a mask, of queries and of keys alike
typedef struct mel_attention_options {
    double scale;
    const mel_tensor *bias, *key_bias; // as above; both may be NULL
    bool causal;
    mel_dtype dtype;
    bool s8_scores; // q k^T in 8 bits: keys less their mean over the tokens, a scale a token and head
    bool s8_values; // the product with v in 8 bits: a scale a channel of 256 keys; not with biases or causal
    // A mask by blocks, both NULL or none: queries of block i see keys of blocks[offsets[i]] .. blocks[offsets[i + 1] -
    // 1], ascending. s32 [query blocks + 1] from 0 to n, s32 [n]. Keys that no query sees cost no arithmetic.
    const mel_tensor *offsets, *blocks;
} mel_attention_options;
MEL_API mel_status mel_attention_with(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v,
    const mel_attention_options *options, mel_tensor **out, mel_error *err);

// ---- matrix product ------------------------------------------------------------------------
// a [..., M, K] times b [..., K, N] (or [..., N, K] where transpose_b), batch dimensions broadcast; then * alpha.
MEL_API mel_status mel_matmul(const mel_tensor *a, const mel_tensor *b, bool transpose_b, double alpha, mel_dtype dtype,
    mel_tensor **out, mel_error *err);

// ---- layers with packed weights --------------------------------------------------------------
// The dtype matrix work runs in by default: bf16 where the processor has it, else f32. mel_set_compute(MEL_F32 or
// MEL_BF16).
MEL_API mel_dtype mel_compute(void);
MEL_API mel_status mel_set_compute(mel_dtype dtype, mel_error *err);

// oneDNN's version, "2.6.3".
MEL_API const char *mel_onednn_version(void);

typedef struct mel_linear mel_linear;
// weight [N, K], bias [N] or NULL, any float dtype. Packed once into oneDNN's own layout in compute dtype (f32, bf16;
// MEL_SAME: mel_compute()), or for s8 into 8 bits with a scale an output channel; activations are then quantised a row
// of x at a time. The source tensors may go afterwards.
MEL_API mel_status mel_linear_create(
    const mel_tensor *weight, const mel_tensor *bias, mel_dtype compute, mel_linear **out, mel_error *err);
// The same from a source, which is read once.
MEL_API mel_status mel_linear_create_from(
    mel_source *source, const mel_tensor *bias, mel_dtype compute, mel_linear **out, mel_error *err);
// In 8 bits with a smoothing vector [K] > 0 (or NULL): column k of the weight is multiplied and column k of x divided
// by smooth[k] before they are rounded, which leaves the product as it is (Xiao et al. 2022, SmoothQuant). rotate: 0,
// or a power of two from 16 on that divides K: both are then turned in blocks of so many columns by a Hadamard matrix
// with random signs, which spreads outliers over the block (Ashkboos et al. 2024, QuaRot).
MEL_API mel_status mel_linear_create_s8(mel_source *source, const mel_tensor *bias, const mel_tensor *smooth,
    int64_t rotate, mel_linear **out, mel_error *err);
// The same without a packed copy: weight is read where it lies each time the layer runs, in one pass for few rows of x
// (a prompt's tokens), packed for the moment of the run for many. source: [N, K], kept alive.
MEL_API mel_status mel_linear_create_lazy(
    mel_source *source, const mel_tensor *bias, mel_dtype compute, mel_linear **out, mel_error *err);
// The packed form of a layer as u8 [mel_linear_packed_bytes], to be kept in a file; MEL_EUNSUPPORTED of a lazy layer.
MEL_API int64_t mel_linear_packed_bytes(const mel_linear *layer); // 0 of a lazy layer
MEL_API mel_status mel_linear_packed(const mel_linear *layer, mel_tensor **out, mel_error *err);
// A layer over such a form, which is used where it lies (in a mapped file) and kept alive. MEL_EFORMAT: it is damaged,
// of another size or compute dtype, or of another oneDNN or instruction set.
MEL_API mel_status mel_linear_create_packed(int64_t n, int64_t k, mel_tensor *packed, const mel_tensor *bias,
    mel_dtype compute, mel_linear **out, mel_error *err);
MEL_API mel_status mel_linear_packed_check(const mel_tensor *packed, mel_error *err); // MEL_EFORMAT: damaged
MEL_API void mel_linear_free(mel_linear *layer);
// Bytes of memory that the layer holds for itself.
MEL_API int64_t mel_linear_bytes(const mel_linear *layer);
MEL_API int64_t mel_linear_inputs(const mel_linear *layer);
MEL_API int64_t mel_linear_outputs(const mel_linear *layer);
// x [..., K] -> act(x W^T + bias) [..., N]. MEL_SAME: x's dtype.
MEL_API mel_status mel_linear_run(
    mel_linear *layer, const mel_tensor *x, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err);

typedef struct mel_conv mel_conv;
// Channels last. weight [O, I/groups, kT, kH, kW] or [O, I/groups, kH, kW]; x [N, T, H, W, I] or [N, H, W, I].
// stride, pad_before, pad_after: one value per spatial dimension of the weight, order T, H, W. Padding is zeros; a
// causal convolution has pad_before[0] = kT - 1 and pad_after[0] = 0. groups = I: depthwise.
MEL_API mel_status mel_conv_create(const mel_tensor *weight, const mel_tensor *bias, const int64_t *stride,
    const int64_t *pad_before, const int64_t *pad_after, int64_t groups, mel_dtype compute, mel_conv **out,
    mel_error *err);
MEL_API void mel_conv_free(mel_conv *layer);
// out [N, T', H', W', O]. MEL_SAME: x's dtype.
MEL_API mel_status mel_conv_run(
    mel_conv *layer, const mel_tensor *x, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err);

#endif
