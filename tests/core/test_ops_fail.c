// What operations refuse and how they say it, every allocation failing in turn, and cancellation.
#include "ops_help.h"

// Inputs of all kinds, made once.
static mel_tensor *x, *y, *w, *vec, *bad, *ints, *scalar, *empty, *tokens, *table, *shared, *image, *kernel;
static mel_tensor *half_tokens, *bytes, *mask_offsets, *mask_blocks;

static void setup(void) {
    x = random_tensor(MEL_F32, SHAPE(4, 6));
    y = random_tensor(MEL_F32, SHAPE(4, 6));
    w = random_tensor(MEL_F32, SHAPE(5, 6));
    vec = random_tensor(MEL_BF16, SHAPE(6));
    bad = random_tensor(MEL_F32, SHAPE(3, 7));
    ints = random_tensor(MEL_I64, SHAPE(2, 3));
    CHECK_OK(mel_tensor_fill(ints, 2, err));
    scalar = random_tensor(MEL_F32, 0, (int64_t[]){0});
    empty = random_tensor(MEL_F32, SHAPE(0, 3));
    tokens = random_tensor(MEL_F32, SHAPE(2, 5, 3, 8));
    half_tokens = random_tensor(MEL_BF16, SHAPE(2, 5, 3, 8));
    table = random_tensor(MEL_F32, SHAPE(5, 4));
    image = random_tensor(MEL_BF16, SHAPE(1, 5, 5, 4));
    kernel = random_tensor(MEL_BF16, SHAPE(8, 4, 3, 3));
    bytes = random_tensor(MEL_U8, SHAPE(4, 6));
    mask_offsets = random_tensor(MEL_S32, SHAPE(2)), mask_blocks = random_tensor(MEL_S32, SHAPE(1));
    CHECK_OK(mel_tensor_set(mask_offsets, 0, 0, err));
    CHECK_OK(mel_tensor_set(mask_offsets, 1, 1, err));
    CHECK_OK(mel_tensor_set(mask_blocks, 0, 0, err));
    CHECK_OK(mel_tensor_expand(vec, SHAPE(4, 6), &shared, err));
}

static void teardown(void) {
    DROP(x, y, w, vec, bad, ints, scalar, empty, tokens, half_tokens, table, shared, image, kernel, bytes, mask_offsets,
        mask_blocks);
}

// Fails with MEL_EINVAL, the text in its message, and leaves the output alone.
#define REFUSES(call, text)                                                                                            \
    do {                                                                                                               \
        mel_tensor *const mark = scalar, *out = mark;                                                                  \
        CHECK_FAILS(call, MEL_EINVAL, text);                                                                           \
        CHECK(out == mark);                                                                                            \
    } while (0)
#define NO_ACT MEL_ACT_NONE

static void elementwise(void) {
    double d = 7;
    int64_t n = 7;
    REFUSES(mel_activate((mel_act)99, x, MEL_SAME, &out, err), "unknown activation 99");
    REFUSES(mel_activate(NO_ACT, ints, MEL_SAME, &out, err), "a float tensor is wanted, not i64");
    REFUSES(mel_activate(NO_ACT, x, MEL_U8, &out, err), "the output is f32, bf16 or f16, not u8");
    REFUSES(mel_activate(NO_ACT, x, (mel_dtype)42, &out, err), "not ?");
    REFUSES(mel_unary((mel_unary_op)-1, x, MEL_SAME, &out, err), "unknown operation -1");
    REFUSES(mel_unary(MEL_EXP, bytes, MEL_SAME, &out, err), "not u8");
    REFUSES(mel_binary((mel_binary_op)9, x, y, &out, err), "unknown operation 9");
    REFUSES(mel_binary(MEL_ADD, x, bad, &out, err), "[4, 6] and [3, 7] do not broadcast");
    REFUSES(mel_binary(MEL_ADD, x, ints, &out, err), "not i64");
    REFUSES(mel_binary_scalar((mel_binary_op)9, x, 1, false, &out, err), "unknown operation 9");
    REFUSES(mel_binary_scalar(MEL_ADD, ints, 1, false, &out, err), "not i64");
    REFUSES(mel_clamp(x, 2, 1, &out, err), "2..1 is no range");
    REFUSES(mel_clamp(x, NAN, 1, &out, err), "is no range");
    CHECK_FAILS(mel_add_inplace(y, 1, bad, NULL, err), MEL_EINVAL, "[3, 7] does not stretch to [4, 6]");
    CHECK_FAILS(mel_add_inplace(y, 1, x, bad, err), MEL_EINVAL, "[3, 7] does not stretch to [4, 6]");
    CHECK_FAILS(mel_add_inplace(shared, 1, x, NULL, err), MEL_EINVAL, "read-only");
    CHECK_FAILS(mel_add_inplace(ints, 1, ints, NULL, err), MEL_EINVAL, "not i64");
    CHECK_FAILS(mel_reduce_all((mel_reduce_op)9, x, &d, err), MEL_EINVAL, "unknown operation 9");
    CHECK_FAILS(mel_reduce_all(MEL_MEAN, empty, &d, err), MEL_EINVAL, "empty");
    CHECK_FAILS(mel_dot(x, bad, &d, err), MEL_EINVAL, "[4, 6] and [3, 7] differ");
    CHECK(d == 7 && n == 7);
    CHECK_OK(mel_count_nonfinite(empty, &n, err));
    CHECK(n == 0);
}

static void moving(void) {
    REFUSES(mel_reduce((mel_reduce_op)9, x, 0, false, &out, err), "unknown operation 9");
    REFUSES(mel_reduce(MEL_SUM, ints, 0, false, &out, err), "not i64");
    REFUSES(mel_reduce(MEL_SUM, x, 2, false, &out, err), "no axis 3 in a tensor of shape [4, 6]");
    REFUSES(mel_reduce(MEL_SUM, scalar, 0, false, &out, err), "shape []");
    REFUSES(mel_reduce(MEL_MEAN, empty, 0, false, &out, err), "axis 1 is empty");
    REFUSES(mel_concat(0, NULL, 0, &out, err), "no parts");
    const mel_tensor *parts[] = {x, bad}, *kinds[] = {x, bytes};
    REFUSES(mel_concat(2, parts, 0, &out, err), "part 2 is f32 [3, 7], part 1 is f32 [4, 6]");
    REFUSES(mel_concat(2, kinds, 0, &out, err), "part 2 is u8 [4, 6], part 1 is f32 [4, 6]");
    REFUSES(mel_concat(2, parts, 5, &out, err), "no axis 6");
    REFUSES(mel_pad(x, 7, 1, 1, 0, false, &out, err), "no axis 8");
    REFUSES(mel_pad(x, 0, -1, 1, 0, false, &out, err), "-1 before and 1 after");
    REFUSES(mel_pad(x, 0, INT64_MAX, 1, 0, false, &out, err), "overflows");
    REFUSES(mel_pad(x, 0, 1ll << 61, 1, 0, false, &out, err), "overflows");
    REFUSES(mel_pad(empty, 0, 1, 1, 0, true, &out, err), "no edge");
    REFUSES(mel_gather(table, x, MEL_SAME, &out, err), "i64 or s32 ids are wanted");
    REFUSES(mel_gather(scalar, ints, MEL_SAME, &out, err), "table []");
    CHECK_OK(mel_tensor_set(ints, 4, 5, err));
    REFUSES(mel_gather(table, ints, MEL_SAME, &out, err), "id 5 at 5 is outside 0..4");
    CHECK_OK(mel_tensor_set(ints, 4, -1, err));
    REFUSES(mel_gather(table, ints, MEL_SAME, &out, err), "id -1 at 5");
    CHECK_OK(mel_tensor_set(ints, 4, 2, err));
    REFUSES(mel_resize(x, 3, 4, MEL_BILINEAR, false, &out, err), "no axis 4");
    REFUSES(mel_resize(x, 1, 0, MEL_BILINEAR, false, &out, err), "axis 2 of [4, 6] to 0");
    REFUSES(mel_resize(x, 1, INT64_MAX, MEL_BILINEAR, false, &out, err), "axis 2 of [4, 6] to");
    REFUSES(mel_resize(empty, 0, 4, MEL_BILINEAR, false, &out, err), "[0, 3] to 4");
    REFUSES(mel_resize(x, 1, 4, (mel_resize_mode)9, false, &out, err), "unknown mode 9");
    REFUSES(mel_resize(ints, 1, 4, MEL_BILINEAR, false, &out, err), "not i64");
}

static void norms(void) {
    REFUSES(mel_layer_norm(ints, NULL, NULL, 1e-5, NULL, NULL, NO_ACT, MEL_SAME, &out, err), "not i64");
    REFUSES(mel_layer_norm(scalar, NULL, NULL, 1e-5, NULL, NULL, NO_ACT, MEL_SAME, &out, err), "no last axis");
    REFUSES(mel_layer_norm(x, bad, NULL, 1e-5, NULL, NULL, NO_ACT, MEL_SAME, &out, err),
        "weight is f32 [3, 7], 6 floats are wanted");
    REFUSES(mel_layer_norm(x, vec, bad, 1e-5, NULL, NULL, NO_ACT, MEL_SAME, &out, err), "bias is f32 [3, 7]");
    REFUSES(mel_layer_norm(x, NULL, NULL, 1e-5, bad, NULL, NO_ACT, MEL_SAME, &out, err),
        "scale [3, 7] does not stretch to x [4, 6]");
    REFUSES(mel_layer_norm(x, NULL, NULL, 1e-5, vec, bad, NO_ACT, MEL_SAME, &out, err),
        "shift [3, 7] does not stretch to x [4, 6]");
    REFUSES(mel_layer_norm(x, NULL, NULL, 1e-5, scalar, NULL, NO_ACT, MEL_SAME, &out, err),
        "scale [] does not stretch to x [4, 6]");
    REFUSES(mel_layer_norm(x, NULL, NULL, -1, NULL, NULL, NO_ACT, MEL_SAME, &out, err), "eps -1");
    REFUSES(mel_layer_norm(x, NULL, NULL, 1, NULL, NULL, (mel_act)8, MEL_SAME, &out, err), "activation 8");
    REFUSES(mel_layer_norm(x, NULL, NULL, 1, NULL, NULL, NO_ACT, MEL_S8, &out, err), "not s8");
    REFUSES(mel_rms_norm(x, bad, 1e-5, NULL, NULL, NO_ACT, MEL_SAME, &out, err), "rms_norm: weight is f32 [3, 7]");
    REFUSES(mel_l2_norm(x, bad, NO_ACT, MEL_SAME, &out, err), "l2_norm: weight is f32 [3, 7]");
    REFUSES(mel_softmax(scalar, MEL_SAME, &out, err), "softmax: a scalar");
    REFUSES(mel_group_norm(x, 4, NULL, NULL, 1e-5, NO_ACT, MEL_SAME, &out, err), "4 groups do not divide x [4, 6]");
    REFUSES(mel_group_norm(x, 0, NULL, NULL, 1e-5, NO_ACT, MEL_SAME, &out, err), "0 groups");
    REFUSES(mel_group_norm(vec, 1, NULL, NULL, 1e-5, NO_ACT, MEL_SAME, &out, err), "x [6]");
    REFUSES(mel_group_norm(x, 2, bad, NULL, 1e-5, NO_ACT, MEL_SAME, &out, err), "group_norm: weight is f32 [3, 7]");
    REFUSES(mel_group_norm(x, 2, NULL, NULL, 1e-5, (mel_act)8, MEL_SAME, &out, err), "activation 8");
    REFUSES(mel_group_norm(x, 2, NULL, NULL, NAN, NO_ACT, MEL_SAME, &out, err), "eps nan");
}

static void attention(void) {
    const mel_tensor *t = tokens;
    REFUSES(mel_rope(t, table, bad, true, MEL_SAME, &out, err), "x is [2, 5, 3, 8], the tables are [5, 4] and [3, 7]");
    REFUSES(mel_rope(x, table, table, true, MEL_SAME, &out, err), "x is [4, 6]");
    REFUSES(mel_rope(t, vec, vec, true, MEL_SAME, &out, err), "[6] and [6]");
    REFUSES(mel_attention(t, x, t, 1, NULL, NULL, false, MEL_SAME, &out, err),
        "q is [2, 5, 3, 8], k is [4, 6], v is [2, 5, 3, 8]");
    REFUSES(mel_attention(ints, t, t, 1, NULL, NULL, false, MEL_SAME, &out, err), "not i64");
    REFUSES(mel_attention(t, ints, t, 1, NULL, NULL, false, MEL_SAME, &out, err), "not i64");
    REFUSES(mel_attention(t, t, t, 1, x, NULL, false, MEL_SAME, &out, err), "bias is f32 [4, 6]");
    REFUSES(mel_attention(t, t, t, 1, NULL, x, false, MEL_SAME, &out, err), "key_bias is f32 [4, 6]");
    REFUSES(mel_attention(t, t, t, 1, NULL, vec, false, MEL_SAME, &out, err), "key_bias is bf16 [6]");
    REFUSES(mel_attention(t, t, t, 1, NULL, NULL, false, MEL_I64, &out, err), "not i64");
}

static mel_tensor *s32_of(int64_t n, const int *values) {
    mel_tensor *made = NULL;
    CHECK_OK(mel_tensor_create(MEL_S32, 1, &n, &made, err));
    for (int64_t i = 0; i < n; i++)
        CHECK_OK(mel_tensor_set(made, i, values[i], err));
    return made;
}

// One block of queries and of keys: offsets { 0, 1 } and blocks { 0 } are right.
static void attention_masks(void) {
    const mel_tensor *t = tokens;
    mel_attention_options o = {.scale = 1};
    mel_tensor *right = s32_of(2, (int[]){0, 1}), *first = s32_of(1, (int[]){0}), *far = s32_of(1, (int[]){1});
    mel_tensor *late = s32_of(2, (int[]){1, 1}), *longer = s32_of(2, (int[]){0, 2}), *twice = s32_of(2, (int[]){0, 0});
    mel_tensor *below = s32_of(1, (int[]){-1});
    o.offsets = right;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "only offsets were given");
    o.blocks = x;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "the mask is s32 [2] and f32 [4, 6]: s32 offsets [2]");
    o.blocks = far;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "gives query block 0 key block 1: ascending ones from 0 to 0");
    o.blocks = below;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "key block -1");
    o.blocks = twice;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "offsets go from 0 to 1, not from 0 to 2");
    o.offsets = longer;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "gives query block 0 key block 0");
    o.offsets = late, o.blocks = first;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "offsets go from 1 to 1");
    o.offsets = first;
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "s32 offsets [2]");
    DROP(right, first, far, late, longer, twice, below);
    mel_tensor *wide = NULL;
    CHECK_OK(mel_tensor_create(MEL_F32, 4, (int64_t[]){1, 1, 1, 65537}, &wide, err));
    REFUSES(mel_attention_with(wide, wide, wide, &(mel_attention_options){.scale = 1, .s8_scores = true}, &out, err),
        "heads of 65537 are too wide");
    DROP(wide);
    o = (mel_attention_options){.scale = 1, .s8_values = true, .causal = true};
    REFUSES(mel_attention_with(t, t, t, &o, &out, err), "values in 8 bits go with no causal mask");
    o.causal = false, o.key_bias = vec;
    REFUSES(mel_attention_with(half_tokens, t, t, &o, &out, err), "key_bias");
}

static void layers(void) {
    mel_linear *linear = NULL;
    mel_conv *conv = NULL;
    const int64_t one[] = {1, 1}, zero[] = {0, 0}, minus[] = {1, -1};
    REFUSES(mel_matmul(x, bad, false, 1, MEL_SAME, &out, err), "[4, 6] times [3, 7] does not fit");
    REFUSES(mel_matmul(x, bad, true, 1, MEL_SAME, &out, err), "[4, 6] times [3, 7] transposed does not fit");
    REFUSES(mel_matmul(x, vec, false, 1, MEL_SAME, &out, err), "[4, 6] times [6]: matrices are wanted");
    REFUSES(mel_matmul(x, ints, false, 1, MEL_SAME, &out, err), "not i64");
    REFUSES(mel_matmul(x, w, true, 1, MEL_S32, &out, err), "not s32");
    CHECK_FAILS(mel_set_compute(MEL_F16, err), MEL_EINVAL, "not f16");
    CHECK_FAILS(mel_linear_create(vec, NULL, MEL_SAME, &linear, err), MEL_EINVAL, "the weight is bf16 [6]");
    CHECK_FAILS(mel_linear_create(ints, NULL, MEL_SAME, &linear, err), MEL_EINVAL, "the weight is i64 [2, 3]");
    CHECK_FAILS(mel_linear_create(empty, NULL, MEL_SAME, &linear, err), MEL_EINVAL, "empty: [0, 3]");
    CHECK_FAILS(mel_linear_create(w, vec, MEL_SAME, &linear, err), MEL_EINVAL, "bias is bf16 [6], 5 floats");
    CHECK_FAILS(mel_linear_create(w, NULL, MEL_F16, &linear, err), MEL_EINVAL, "not f16");
    CHECK(linear == NULL);
    CHECK_OK(mel_linear_create(w, NULL, MEL_F32, &linear, err));
    REFUSES(mel_linear_run(linear, bad, NO_ACT, MEL_SAME, &out, err), "x is [3, 7], weight is [5, 6]");
    REFUSES(mel_linear_run(linear, scalar, NO_ACT, MEL_SAME, &out, err), "x is []");
    REFUSES(mel_linear_run(linear, x, (mel_act)8, MEL_SAME, &out, err), "activation 8");
    REFUSES(mel_linear_run(linear, bytes, NO_ACT, MEL_SAME, &out, err), "not u8");
    mel_linear_free(linear);
    CHECK_FAILS(mel_conv_create(x, NULL, one, one, one, 1, MEL_SAME, &conv, err), MEL_EINVAL, "f32 [4, 6]");
    CHECK_FAILS(mel_conv_create(kernel, NULL, one, one, one, 3, MEL_SAME, &conv, err), MEL_EINVAL, "3 groups");
    CHECK_FAILS(mel_conv_create(kernel, NULL, one, one, one, 0, MEL_SAME, &conv, err), MEL_EINVAL, "0 groups");
    CHECK_FAILS(mel_conv_create(kernel, NULL, zero, one, one, 1, MEL_SAME, &conv, err), MEL_EINVAL, "stride 0");
    CHECK_FAILS(mel_conv_create(kernel, NULL, one, minus, one, 1, MEL_SAME, &conv, err), MEL_EINVAL, "padding -1");
    CHECK_FAILS(mel_conv_create(kernel, vec, one, one, one, 1, MEL_SAME, &conv, err), MEL_EINVAL, "bias is bf16 [6]");
    CHECK_FAILS(mel_conv_create(kernel, NULL, one, one, one, 1, MEL_F16, &conv, err), MEL_EINVAL, "not f16");
    CHECK(conv == NULL);
    CHECK_OK(mel_conv_create(kernel, NULL, one, zero, zero, 1, MEL_F32, &conv, err));
    REFUSES(mel_conv_run(conv, tokens, NO_ACT, MEL_SAME, &out, err), "x is [2, 5, 3, 8], weight is [8, 4, 3, 3]");
    REFUSES(mel_conv_run(conv, x, NO_ACT, MEL_SAME, &out, err), "x is [4, 6]");
    mel_tensor *small = random_tensor(MEL_F32, SHAPE(1, 2, 9, 4));
    REFUSES(mel_conv_run(conv, small, NO_ACT, MEL_SAME, &out, err), "[1, 2, 9, 4], smaller than the kernel");
    REFUSES(mel_conv_run(conv, image, (mel_act)8, MEL_SAME, &out, err), "activation 8");
    DROP(small);
    mel_conv_free(conv);
}

// ---- one call of everything that allocates or may be canceled -----------------------------------------------

typedef mel_status (*call_fn)(mel_tensor **out, mel_error *err);
#define CALL(name, expression)                                                                                         \
    static mel_status name(mel_tensor **out, mel_error *err) {                                                         \
        return expression;                                                                                             \
    }
CALL(call_activate, mel_activate(MEL_ACT_SILU, x, MEL_BF16, out, err))
CALL(call_unary, mel_unary(MEL_EXP, shared, MEL_SAME, out, err))
CALL(call_binary, mel_binary(MEL_ADD, x, vec, out, err))
CALL(call_scalar, mel_binary_scalar(MEL_ADD, shared, 1, false, out, err))
CALL(call_clamp, mel_clamp(x, 0, 1, out, err))
CALL(call_reduce, mel_reduce(MEL_MEAN, shared, 0, false, out, err))
CALL(call_concat, mel_concat(3, (const mel_tensor *const[]){x, y, w}, 0, out, err))
CALL(call_pad, mel_pad(x, 1, 2, 3, 1, false, out, err))
CALL(call_pad_edge, mel_pad(vec, 0, 2, 3, 0, true, out, err))
CALL(call_gather, mel_gather(table, ints, MEL_BF16, out, err))
CALL(call_resize, mel_resize(bytes, 1, 9, MEL_BICUBIC, true, out, err))
CALL(call_layer_norm, mel_layer_norm(shared, vec, vec, 1e-5, vec, x, MEL_ACT_SILU, MEL_F32, out, err))
CALL(call_rms_norm, mel_rms_norm(shared, vec, 1e-5, vec, x, MEL_ACT_SILU, MEL_F32, out, err))
CALL(call_l2_norm, mel_l2_norm(x, vec, NO_ACT, MEL_BF16, out, err))
CALL(call_softmax, mel_softmax(shared, MEL_SAME, out, err))
CALL(call_group_norm, mel_group_norm(shared, 2, vec, vec, 1e-5, MEL_ACT_SILU, MEL_SAME, out, err))
CALL(call_rope, mel_rope(half_tokens, table, table, true, MEL_SAME, out, err))
CALL(call_attention, mel_attention(tokens, tokens, tokens, 1, NULL, NULL, true, MEL_SAME, out, err))
CALL(call_attention_bf16, mel_attention(half_tokens, half_tokens, half_tokens, 1, NULL, NULL, false, MEL_F32, out, err))
CALL(call_attention_s8,
    mel_attention_with(tokens, tokens, tokens,
        &(mel_attention_options){
            .scale = 1, .s8_scores = true, .s8_values = true, .offsets = mask_offsets, .blocks = mask_blocks},
        out, err))
CALL(call_matmul, mel_matmul(x, w, true, 0.5, MEL_BF16, out, err))
CALL(call_matmul_batched, mel_matmul(tokens, half_tokens, true, 1, MEL_F16, out, err))

static mel_status call_linear(mel_tensor **out, mel_error *err) {
    mel_linear *layer = NULL;
    mel_status s = mel_linear_create(w, NULL, MEL_BF16, &layer, err);
    if (!s) s = mel_linear_run(layer, x, MEL_ACT_SILU, MEL_F16, out, err);
    mel_linear_free(layer);
    return s;
}

static mel_status call_linear_bias(mel_tensor **out, mel_error *err) {
    mel_linear *layer = NULL;
    mel_tensor *rows = NULL, *bias = NULL;
    mel_status s = mel_tensor_slice(w, 0, 0, 4, &rows, err);
    if (!s) s = mel_reduce(MEL_SUM, rows, 1, false, &bias, err);
    if (!s) s = mel_linear_create(rows, bias, MEL_F32, &layer, err);
    if (!s) s = mel_linear_run(layer, vec, NO_ACT, MEL_SAME, out, err);
    mel_linear_free(layer);
    DROP(rows, bias);
    return s;
}

static mel_status packed_as(mel_dtype dtype, mel_tensor **out, mel_error *err) {
    mel_linear *layer = NULL, *again = NULL;
    mel_tensor *form = NULL;
    mel_status s = mel_linear_create(w, NULL, dtype, &layer, err);
    if (!s) s = mel_linear_packed(layer, &form, err);
    mel_linear_free(layer);
    if (!s) s = mel_linear_create_packed(5, 6, form, NULL, dtype, &again, err);
    DROP(form);
    if (!s) s = mel_linear_run(again, x, NO_ACT, MEL_SAME, out, err);
    mel_linear_free(again);
    return s;
}

static mel_status call_linear_packed(mel_tensor **out, mel_error *err) {
    return packed_as(MEL_BF16, out, err);
}

static mel_status call_linear_packed_s8(mel_tensor **out, mel_error *err) {
    return packed_as(MEL_S8, out, err);
}

static mel_status call_conv(mel_tensor **out, mel_error *err) {
    mel_conv *layer = NULL;
    mel_tensor *bias = NULL;
    const int64_t one[] = {1, 1};
    mel_status s = mel_tensor_zeros(MEL_BF16, SHAPE(8), &bias, err);
    if (!s) s = mel_conv_create(kernel, bias, one, one, one, 1, MEL_F32, &layer, err);
    if (!s) s = mel_conv_run(layer, image, MEL_ACT_SILU, MEL_SAME, out, err);
    mel_conv_free(layer);
    DROP(bias);
    return s;
}

static mel_status call_conv_bf16(mel_tensor **out, mel_error *err) {
    mel_conv *layer = NULL;
    const int64_t one[] = {1, 1}, two[] = {2, 2};
    mel_status s = mel_conv_create(kernel, NULL, two, one, one, 1, MEL_BF16, &layer, err);
    if (!s) s = mel_conv_run(layer, image, NO_ACT, MEL_F16, out, err);
    mel_conv_free(layer);
    return s;
}

static const struct {
    const char *name;
    call_fn fn;
    bool cancels;
} calls[] = {
#define ROW(name, cancels)                                                                                             \
    { #name, call_##name, cancels }
    ROW(activate, false), ROW(unary, false), ROW(binary, false), ROW(scalar, false), ROW(clamp, false),
    ROW(reduce, false), ROW(concat, false), ROW(pad, false), ROW(pad_edge, false), ROW(gather, false),
    ROW(resize, true), ROW(layer_norm, true), ROW(rms_norm, true), ROW(l2_norm, true), ROW(softmax, true),
    ROW(group_norm, true), ROW(rope, true), ROW(attention, true), ROW(attention_bf16, true), ROW(attention_s8, true),
    ROW(matmul, true), ROW(matmul_batched, true), ROW(linear, true), ROW(linear_bias, true), ROW(linear_packed, true),
    ROW(linear_packed_s8, true), ROW(conv, true), ROW(conv_bf16, true)};
enum {
    CALLS = sizeof calls / sizeof *calls
};

// n = 1, 2, ... until nothing fails: MEL_ENOMEM each time, nothing kept, the output untouched.
static void every_allocation_fails(void) {
    for (int c = 0; c < CALLS; c++) {
        mel_error error = {0};
        mel_tensor *out = NULL;
        CHECK(calls[c].fn(&out, &error) == MEL_OK); // what the libraries below keep is made now
        DROP(out);
        int64_t live = mel_mem_live();
        int n = 1;
        for (;; n++) {
            out = NULL;
            error.message[0] = 0;
            mel_mem_fail_nth(n);
            mel_status s = calls[c].fn(&out, &error);
            mel_mem_fail_nth(0);
            if (s == MEL_OK) break;
            if (s != MEL_ENOMEM || out || !strstr(error.message, "failure injected") || mel_mem_live() != live ||
                n > 200) {
                fprintf(stderr, "%s, allocation %d: status %d, '%s', %lld bytes kept\n", calls[c].name, n, s,
                    error.message, (long long)(mel_mem_live() - live));
                CHECK(0);
                break;
            }
        }
        DROP(out);
        CHECK(n >= 3 && mel_mem_live() == live);
    }
    // In place and over everything.
    double d;
    int64_t count, live = mel_mem_live();
    for (int n = 1; n < 4; n++) {
        mel_mem_fail_nth(n);
        mel_status s[] = {mel_reduce_all(MEL_SUM, shared, &d, NULL), mel_dot(shared, x, &d, NULL),
            mel_count_nonfinite(shared, &count, NULL), mel_add_inplace(y, 1, vec, shared, NULL)};
        mel_mem_fail_nth(0);
        for (int i = 0; i < 4; i++)
            CHECK(s[i] == MEL_OK || s[i] == MEL_ENOMEM);
        CHECK(mel_mem_live() == live);
    }
}

// A layer that failed to run for want of memory runs afterwards.
static void layers_recover(void) {
    mel_linear *linear = NULL;
    mel_conv *conv = NULL;
    const int64_t one[] = {1, 1};
    CHECK_OK(mel_linear_create(w, NULL, MEL_BF16, &linear, err));
    CHECK_OK(mel_conv_create(kernel, NULL, one, one, one, 1, MEL_F32, &conv, err));
    for (int n = 1; n < 12; n++) {
        mel_tensor *a = NULL, *b = NULL;
        mel_mem_fail_nth(n);
        mel_status s = mel_linear_run(linear, x, NO_ACT, MEL_SAME, &a, NULL);
        CHECK((s == MEL_OK) == (a != NULL));
        mel_mem_fail_nth(n);
        s = mel_conv_run(conv, image, NO_ACT, MEL_SAME, &b, NULL);
        CHECK((s == MEL_OK) == (b != NULL));
        mel_mem_fail_nth(0);
        DROP(a, b);
    }
    mel_tensor *a = NULL, *b = NULL;
    CHECK_OK(mel_linear_run(linear, x, NO_ACT, MEL_SAME, &a, err));
    CHECK_OK(mel_conv_run(conv, image, NO_ACT, MEL_SAME, &b, err));
    DROP(a, b);
    mel_linear_free(linear);
    mel_conv_free(conv);
}

static void cancellation(void) {
    int64_t live = mel_mem_live();
    mel_cancel();
    for (int c = 0; c < CALLS; c++) {
        mel_error error = {0};
        mel_tensor *out = NULL;
        mel_status s = calls[c].fn(&out, &error);
        if (s != (calls[c].cancels ? MEL_ECANCELED : MEL_OK)) fprintf(stderr, "%s: status %d\n", calls[c].name, s);
        CHECK(s == (calls[c].cancels ? MEL_ECANCELED : MEL_OK));
        CHECK(!out == calls[c].cancels);
        if (calls[c].cancels) CHECK(!strcmp(error.message, "canceled"));
        DROP(out);
    }
    mel_cancel_clear();
    CHECK(mel_mem_live() == live);
    mel_tensor *out = NULL;
    CHECK_OK(call_attention(&out, err));
    DROP(out);
}

int main(void) {
    int64_t live = mel_mem_live();
    setup();
    RUN(elementwise);
    RUN(moving);
    RUN(norms);
    RUN(attention);
    RUN(attention_masks);
    RUN(layers);
    RUN(every_allocation_fails);
    RUN(layers_recover);
    RUN(cancellation);
    teardown();
    CHECK(mel_mem_live() == live);
    return CHECK_DONE();
}
