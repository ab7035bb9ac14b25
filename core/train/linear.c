// Linear layers and convolutions whose weights change every step.
#include "base/span.h"
#include "ops/backward.h"
#include "train/depthwise.h"
#include "train/train.h"

#include <string.h>

const train_kernels *mel_train_rows(void) {
    switch (mel_cpu_isa()) {
    case MEL_ISA_PLAIN: return &train_kernels_ref;
    case MEL_ISA_AVX2: return &train_kernels_avx2;
    default: return &train_kernels_avx512;
    }
}

bool mel_same_shape(const mel_tensor *a, const mel_tensor *b) {
    return a->ndim == b->ndim && !memcmp(a->shape, b->shape, sizeof(int64_t) * (size_t)a->ndim);
}

mel_status mel_need_same(const mel_tensor *a, const char *name_a, const mel_tensor *b, const char *name_b,
    const char *what, mel_error *err) {
    char sa[128], sb[128];
    mel_status s = mel_need_float(a, what, err);
    if (!s) s = mel_need_float(b, what, err);
    if (!s && !mel_same_shape(a, b))
        s = mel_fail(err, MEL_EINVAL, "%s: %s is %s, %s is %s", what, name_a, mel_tensor_shape_text(a, sa, sizeof sa),
            name_b, mel_tensor_shape_text(b, sb, sizeof sb));
    return s;
}

static mel_status compute_dtype(mel_dtype asked, const char *what, mel_dtype *out, mel_error *err) {
    mel_dtype d = asked == MEL_SAME ? mel_compute() : asked;
    if (d != MEL_F32 && d != MEL_BF16)
        return mel_fail(err, MEL_EINVAL, "%s: compute in f32 or bf16, not %s", what, mel_dtype_name(d));
    *out = d;
    return MEL_OK;
}

static mel_status operand(const mel_tensor *t, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    mel_tensor *cast = NULL;
    mel_status s = mel_tensor_cast(t, dtype, &cast, err);
    if (!s) s = mel_tensor_contiguous(cast, out, err);
    mel_tensor_unref(cast);
    return s;
}

mel_status mel_train_matmul(const mel_tensor *a, bool transpose_a, const mel_tensor *b, bool transpose_b,
    const mel_tensor *bias, mel_dtype compute, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    MEL_SPAN("product in training");
    char sa[128], sb[128];
    mel_dtype work = MEL_F32, dst;
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_float(a, "train_matmul", err);
    if (!s) s = mel_need_float(b, "train_matmul", err);
    if (!s) s = compute_dtype(compute, "train_matmul", &work, err);
    if (!s) s = mel_out_dtype(a, dtype, "train_matmul", &dst, err);
    if (s) return s;
    bool fits = a->ndim >= 1 && b->ndim >= 1 && mel_tensor_numel(a) > 0 && mel_tensor_numel(b) > 0;
    int64_t ra = 0, ca = 0, rb = 0, cb = 0;
    if (fits) {
        ca = a->shape[a->ndim - 1], ra = mel_tensor_numel(a) / ca;
        cb = b->shape[b->ndim - 1], rb = mel_tensor_numel(b) / cb;
    }
    mel_gemm_spec spec = {.m = transpose_a ? ca : ra,
        .n = transpose_b ? rb : cb,
        .k = transpose_a ? ra : ca,
        .transpose_a = transpose_a,
        .transpose_b = transpose_b,
        .operand = work,
        .bias = bias != NULL};
    if (!fits || spec.k != (transpose_b ? cb : rb))
        return mel_fail(err, MEL_EINVAL, "train_matmul: %s%s times %s%s does not fit",
            mel_tensor_shape_text(a, sa, sizeof sa), transpose_a ? " transposed" : "",
            mel_tensor_shape_text(b, sb, sizeof sb), transpose_b ? " transposed" : "");
    MEL_FLOP(2.0 * (double)spec.m * (double)spec.n * (double)spec.k);
    spec.result = dst == MEL_BF16 && work == MEL_BF16 ? MEL_BF16 : MEL_F32;
    int64_t shape[MEL_MAX_DIMS] = {spec.m, spec.n};
    int ndim = 2;
    if (!transpose_a && a->ndim > 2) {
        ndim = a->ndim;
        memcpy(shape, a->shape, sizeof shape);
        shape[ndim - 1] = spec.n;
    }
    mel_tensor *da = NULL, *db = NULL, *vector = NULL, *y = NULL, *result = NULL;
    s = operand(a, work, &da, err);
    if (!s) s = operand(b, work, &db, err);
    if (!s) s = mel_vector(bias, spec.n, "train_matmul", "bias", &vector, err);
    if (!s) s = mel_tensor_create(spec.result, ndim, shape, &y, err);
    if (!s) s = mel_gemm(&spec, da->data, db->data, vector ? (const float *)(void *)vector->data : NULL, y->data, err);
    if (!s) s = mel_tensor_cast(y, dst, &result, err);
    mel_tensor_unref(da);
    mel_tensor_unref(db);
    mel_tensor_unref(vector);
    mel_tensor_unref(y);
    if (!s) *out = result;
    return s;
}

// Checks a convolution's arguments and works out its geometry.
static mel_status geometry(const mel_tensor *x, const mel_tensor *weight, const int64_t *stride,
    const int64_t *pad_before, const int64_t *pad_after, int64_t groups, mel_dtype compute, mel_conv_geometry *g,
    mel_error *err) {
    char sx[128], sw[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_float(x, "train_conv", err);
    if (!s) s = mel_need_float(weight, "train_conv", err);
    memset(g, 0, sizeof *g);
    if (!s) s = compute_dtype(compute, "train_conv", &g->operand, err);
    if (s) return s;
    int sp = weight->ndim - 2;
    bool fits = sp >= 2 && sp <= 3 && x->ndim == sp + 2 && groups >= 1 && mel_tensor_numel(weight) > 0 &&
                mel_tensor_numel(x) > 0 && weight->shape[0] % groups == 0 &&
                x->shape[sp + 1] == weight->shape[1] * groups;
    for (int i = 0; i < sp && fits; i++) {
        fits = stride[i] >= 1 && stride[i] <= 1024 && pad_before[i] >= 0 && pad_before[i] <= 1024 &&
               pad_after[i] >= 0 && pad_after[i] <= 1024;
        g->in[i] = x->shape[1 + i];
        g->kernel[i] = weight->shape[2 + i];
        g->stride[i] = stride[i];
        g->before[i] = pad_before[i];
        int64_t room = g->in[i] + pad_before[i] + pad_after[i] - g->kernel[i];
        fits = fits && room >= 0;
        if (fits) g->out[i] = room / stride[i] + 1;
        // oneDNN wants the padding after to agree with the output size exactly.
        g->after[i] = (g->out[i] - 1) * g->stride[i] + g->kernel[i] - g->in[i] - g->before[i];
    }
    if (!fits)
        return mel_fail(err, MEL_EINVAL,
            "train_conv: x is %s, weight is %s with %lld groups: [N, (T,) H, W, I] and [O, I/groups, (kT,) kH, kW] fit",
            mel_tensor_shape_text(x, sx, sizeof sx), mel_tensor_shape_text(weight, sw, sizeof sw), (long long)groups);
    g->spatial = sp;
    g->n = x->shape[0];
    g->ic = x->shape[sp + 1];
    g->oc = weight->shape[0];
    g->groups = groups;
    return MEL_OK;
}

static int output_shape(const mel_conv_geometry *g, int64_t *shape) {
    int sp = (int)g->spatial;
    shape[0] = g->n;
    memcpy(shape + 1, g->out, sizeof(int64_t) * (size_t)sp);
    shape[sp + 1] = g->oc;
    return sp + 2;
}

mel_status mel_train_conv(const mel_tensor *x, const mel_tensor *weight, const mel_tensor *bias, const int64_t *stride,
    const int64_t *pad_before, const int64_t *pad_after, int64_t groups, mel_dtype compute, mel_dtype dtype,
    mel_tensor **out, mel_error *err) {
    MEL_SPAN("conv in training");
    mel_conv_geometry g;
    mel_dtype dst;
    int64_t shape[MEL_MAX_DIMS];
    mel_status s = geometry(x, weight, stride, pad_before, pad_after, groups, compute, &g, err);
    if (!s) s = mel_out_dtype(x, dtype, "train_conv", &dst, err);
    if (s) return s;
    mel_tensor *dx = NULL, *dw = NULL, *vector = NULL, *y = NULL, *result = NULL;
    s = operand(x, g.operand, &dx, err);
    if (!s) s = operand(weight, g.operand, &dw, err);
    if (!s) s = mel_vector(bias, g.oc, "train_conv", "bias", &vector, err);
    if (!s && !vector) s = mel_tensor_zeros(MEL_F32, 1, &g.oc, &vector, err);
    if (!s) s = mel_tensor_create(g.operand, output_shape(&g, shape), shape, &y, err);
    if (!s)
        s = mel_conv_train(MEL_CONV_FORWARD, &g, dx->data, dw->data, (const float *)(void *)vector->data, y->data, err);
    if (!s) s = mel_tensor_cast(y, dst, &result, err);
    mel_tensor *mine[] = {dx, dw, vector, y};
    for (int i = 0; i < 4; i++)
        mel_tensor_unref(mine[i]);
    if (!s) *out = result;
    return s;
}

mel_status mel_train_conv_backward(const mel_tensor *x, const mel_tensor *weight, const mel_tensor *dy,
    const int64_t *stride, const int64_t *pad_before, const int64_t *pad_after, int64_t groups, mel_dtype compute,
    mel_tensor **dx, mel_tensor **dweight, mel_error *err) {
    MEL_SPAN("conv backward");
    mel_conv_geometry g;
    int64_t shape[MEL_MAX_DIMS];
    char sy[128], sx[128];
    mel_status s = geometry(x, weight, stride, pad_before, pad_after, groups, compute, &g, err);
    if (!s) s = mel_need_float(dy, "train_conv", err);
    if (s) return s;
    int ndim = output_shape(&g, shape);
    if (dy->ndim != ndim || memcmp(dy->shape, shape, sizeof(int64_t) * (size_t)ndim) != 0)
        return mel_fail(err, MEL_EINVAL, "train_conv: dy is %s, it does not fit x %s",
            mel_tensor_shape_text(dy, sy, sizeof sy), mel_tensor_shape_text(x, sx, sizeof sx));
    mel_tensor *px = NULL, *pw = NULL, *py = NULL, *gx = NULL, *gw = NULL, *cast = NULL;
    s = operand(dy, g.operand, &py, err);
    if (!s && dx) s = operand(weight, g.operand, &pw, err);
    if (!s && dx) s = mel_tensor_create(g.operand, x->ndim, x->shape, &gx, err);
    if (!s && dx) s = mel_conv_train(MEL_CONV_DATA, &g, gx->data, pw->data, NULL, py->data, err);
    if (!s && dx) s = mel_tensor_cast(gx, x->dtype, &cast, err);
    if (!s && dweight) s = operand(x, g.operand, &px, err);
    if (!s && dweight) s = mel_tensor_create(MEL_F32, weight->ndim, weight->shape, &gw, err);
    if (!s && dweight)
        s = mel_depthwise_fits(&g) ? mel_depthwise_weights(&g, px->data, py->data, (float *)(void *)gw->data, err)
                                   : mel_conv_train(MEL_CONV_WEIGHTS, &g, px->data, gw->data, NULL, py->data, err);
    mel_tensor *mine[] = {px, pw, py, gx};
    for (int i = 0; i < 4; i++)
        mel_tensor_unref(mine[i]);
    if (s) {
        mel_tensor_unref(cast);
        mel_tensor_unref(gw);
        return s;
    }
    if (dx) *dx = cast;
    if (dweight) *dweight = gw;
    return MEL_OK;
}
