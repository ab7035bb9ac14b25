// Backward passes that go row by row, and losses.
#include "base/span.h"
#include "train/train.h"

#include <math.h>
#include <string.h>

enum {
    CHUNK = 2048 // elements a thread takes at a time; partial sums of losses are of one chunk
};

mel_status mel_activate_backward(
    mel_act act, const mel_tensor *x, const mel_tensor *dy, mel_tensor **dx, mel_error *err) {
    MEL_SPAN("activate backward");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_same(x, "x", dy, "dy", "activate_backward", err);
    if (s) return s;
    if ((unsigned)act > MEL_ACT_SIGMOID)
        return mel_fail(err, MEL_EINVAL, "activate_backward: unknown activation %d", (int)act);
    mel_tensor *px = NULL, *py = NULL, *g = NULL;
    s = mel_tensor_contiguous(x, &px, err);
    if (!s) s = mel_tensor_contiguous(dy, &py, err);
    if (!s) s = mel_tensor_like(x, dy->dtype, &g, err);
    if (!s) {
        const row_kernels *rows = mel_rows();
        const train_kernels *k = mel_train_rows();
        int64_t n = mel_tensor_numel(x), chunks = (n + CHUNK - 1) / CHUNK;
        int64_t size_x = mel_dtype_size(px->dtype), size = mel_dtype_size(py->dtype);
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n >= MEL_PARALLEL_FROM)
        for (int64_t c = 0; c < chunks; c++) {
            float fx[CHUNK], fy[CHUNK];
            int64_t at = c * CHUNK, m = n - at < CHUNK ? n - at : CHUNK;
            rows->load((int)px->dtype, px->data + at * size_x, fx, m);
            rows->load((int)py->dtype, py->data + at * size, fy, m);
            k->act_grad((int)act, fx, fy, m);
            rows->store((int)g->dtype, fy, g->data + at * size, m);
        }
    }
    mel_tensor_unref(px);
    mel_tensor_unref(py);
    if (s)
        mel_tensor_unref(g);
    else
        *dx = g;
    return s;
}

mel_status mel_softmax_backward(const mel_tensor *y, const mel_tensor *dy, mel_tensor **dx, mel_error *err) {
    MEL_SPAN("softmax backward");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_same(y, "y", dy, "dy", "softmax_backward", err);
    if (s) return s;
    if (y->ndim < 1) return mel_fail(err, MEL_EINVAL, "softmax_backward: a scalar has no last axis");
    mel_tensor *py = NULL, *pd = NULL, *g = NULL;
    int64_t d = y->shape[y->ndim - 1], rows = d ? mel_tensor_numel(y) / d : 0;
    int threads = rows * d >= MEL_PARALLEL_FROM ? mel_threads() : 1;
    float *scratch = NULL;
    s = mel_tensor_contiguous(y, &py, err);
    if (!s) s = mel_tensor_contiguous(dy, &pd, err);
    if (!s) s = mel_tensor_like(y, dy->dtype, &g, err);
    if (!s && !(scratch = mel_alloc((size_t)(threads * 2 * d) * 4, err))) s = MEL_ENOMEM;
    if (!s) {
        const row_kernels *k = mel_rows();
        int64_t size_y = mel_dtype_size(py->dtype), size = mel_dtype_size(pd->dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t t = 0; t < threads; t++) {
            float *fy = scratch + t * 2 * d, *fd = fy + d;
            for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; r++) {
                k->load((int)py->dtype, py->data + r * d * size_y, fy, d);
                k->load((int)pd->dtype, pd->data + r * d * size, fd, d);
                mel_train_rows()->softmax_grad(fy, fd, d);
                k->store((int)g->dtype, fd, g->data + r * d * size, d);
            }
        }
    }
    mel_free(scratch);
    mel_tensor_unref(py);
    mel_tensor_unref(pd);
    if (s)
        mel_tensor_unref(g);
    else
        *dx = g;
    return s;
}

mel_status mel_mse(const mel_tensor *x, const mel_tensor *target, const mel_tensor *weight, double *loss,
    mel_tensor **dx, mel_error *err) {
    MEL_SPAN("mse");
    char sx[128], sw[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_same(x, "x", target, "the target", "mse", err);
    if (!s && weight) s = mel_need_float(weight, "mse", err);
    if (s) return s;
    int64_t n = mel_tensor_numel(x), chunks = (n + CHUNK - 1) / CHUNK, strides[MEL_MAX_DIMS];
    if (n == 0) return mel_fail(err, MEL_EINVAL, "mse: the tensors are empty");
    if (weight && !mel_broadcast_strides(weight, x->ndim, x->shape, strides))
        return mel_fail(err, MEL_EINVAL, "mse: the weight %s does not stretch to %s",
            mel_tensor_shape_text(weight, sw, sizeof sw), mel_tensor_shape_text(x, sx, sizeof sx));
    mel_tensor *px = NULL, *pt = NULL, *pw = NULL, *wide = NULL, *g = NULL;
    double *partial = NULL;
    s = mel_tensor_contiguous(x, &px, err);
    if (!s) s = mel_tensor_contiguous(target, &pt, err);
    if (!s && weight) s = mel_tensor_expand(weight, x->ndim, x->shape, &wide, err);
    if (!s && weight) s = mel_tensor_contiguous(wide, &pw, err);
    if (!s && dx) s = mel_tensor_like(x, x->dtype, &g, err);
    if (!s && !(partial = mel_alloc((size_t)chunks * sizeof *partial, err))) s = MEL_ENOMEM;
    if (!s) {
        const row_kernels *k = mel_rows();
        float slope = (float)(2.0 / (double)n);
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n >= MEL_PARALLEL_FROM)
        for (int64_t c = 0; c < chunks; c++) {
            float a[CHUNK], b[CHUNK], w[CHUNK];
            int64_t at = c * CHUNK, m = n - at < CHUNK ? n - at : CHUNK;
            k->load((int)px->dtype, px->data + at * mel_dtype_size(px->dtype), a, m);
            k->load((int)pt->dtype, pt->data + at * mel_dtype_size(pt->dtype), b, m);
            if (pw) k->load((int)pw->dtype, pw->data + at * mel_dtype_size(pw->dtype), w, m);
            double sum = 0;
            for (int64_t i = 0; i < m; i++) {
                float d = a[i] - b[i], e = pw ? w[i] * d : d;
                sum += (double)d * e;
                a[i] = slope * e;
            }
            partial[c] = sum;
            if (g) k->store((int)g->dtype, a, g->data + at * mel_dtype_size(g->dtype), m);
        }
        double total = 0;
        for (int64_t c = 0; c < chunks; c++)
            total += partial[c];
        *loss = total / (double)n;
    }
    mel_free(partial);
    mel_tensor *mine[] = {px, pt, pw, wide};
    for (int i = 0; i < 4; i++)
        mel_tensor_unref(mine[i]);
    if (s)
        mel_tensor_unref(g);
    else if (dx)
        *dx = g;
    return s;
}

mel_status mel_cross_entropy(
    const mel_tensor *x, const mel_tensor *labels, int64_t ignore, double *loss, mel_tensor **dx, mel_error *err) {
    MEL_SPAN("cross entropy");
    char sx[128], sl[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_float(x, "cross_entropy", err);
    if (s) return s;
    if ((labels->dtype != MEL_I64 && labels->dtype != MEL_S32) || x->ndim < 1 || labels->ndim != x->ndim - 1 ||
        memcmp(labels->shape, x->shape, sizeof(int64_t) * (size_t)labels->ndim) != 0 || x->shape[x->ndim - 1] < 1)
        return mel_fail(err, MEL_EINVAL, "cross_entropy: x is %s, labels are %s %s",
            mel_tensor_shape_text(x, sx, sizeof sx), mel_dtype_name(labels->dtype),
            mel_tensor_shape_text(labels, sl, sizeof sl));
    int64_t d = x->shape[x->ndim - 1], rows = mel_tensor_numel(labels), counted = 0;
    int threads = rows * d >= MEL_PARALLEL_FROM ? mel_threads() : 1;
    mel_tensor *px = NULL, *wide = NULL, *pl = NULL, *g = NULL;
    double *partial = NULL;
    float *scratch = NULL;
    s = mel_tensor_contiguous(x, &px, err);
    if (!s) s = mel_tensor_cast(labels, MEL_I64, &wide, err);
    if (!s) s = mel_tensor_contiguous(wide, &pl, err);
    const int64_t *label = s ? NULL : (const int64_t *)(void *)pl->data;
    for (int64_t i = 0; i < rows && !s; i++) {
        if (label[i] == ignore) continue;
        counted++;
        if (label[i] < 0 || label[i] >= d)
            s = mel_fail(err, MEL_EINVAL, "cross_entropy: label %lld at %lld is outside 0..%lld", (long long)label[i],
                (long long)i, (long long)d - 1);
    }
    if (!s && dx) s = mel_tensor_like(x, x->dtype, &g, err);
    if (!s && !(partial = mel_alloc_zero((size_t)rows * sizeof *partial, err))) s = MEL_ENOMEM;
    if (!s && !(scratch = mel_alloc((size_t)(threads * d) * 4, err))) s = MEL_ENOMEM;
    if (!s) {
        const row_kernels *k = mel_rows();
        int64_t size = mel_dtype_size(px->dtype);
        float share = counted ? 1.0f / (float)counted : 0.0f;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t t = 0; t < threads; t++) {
            float *row = scratch + t * d;
            for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; r++) {
                k->load((int)px->dtype, px->data + r * d * size, row, d);
                if (label[r] == ignore) {
                    memset(row, 0, (size_t)d * 4);
                } else {
                    float top = k->max(row, d), chosen = row[label[r]];
                    double sum = 0;
                    for (int64_t i = 0; i < d; i++)
                        sum += exp((double)row[i] - top);
                    partial[r] = log(sum) + top - chosen;
                    k->softmax(row, d);
                    row[label[r]] -= 1.0f;
                    for (int64_t i = 0; i < d; i++)
                        row[i] *= share;
                }
                if (g) k->store((int)g->dtype, row, g->data + r * d * size, d);
            }
        }
        double total = 0;
        for (int64_t r = 0; r < rows; r++)
            total += partial[r];
        *loss = counted ? total / (double)counted : 0;
    }
    mel_free(partial);
    mel_free(scratch);
    mel_tensor_unref(px);
    mel_tensor_unref(wide);
    mel_tensor_unref(pl);
    if (s)
        mel_tensor_unref(g);
    else if (dx)
        *dx = g;
    return s;
}
