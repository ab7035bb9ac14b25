// The optimiser's passes: the norm of all gradients in a fixed order, and AdamW with everything in one pass.
#include "train/train.h"

#include <math.h>

enum {
    CHUNK = 8192
};

mel_status mel_global_norm(int count, const mel_tensor *const *tensors, double *out, mel_error *err) {
    double total = 0;
    for (int i = 0; i < count; i++) {
        double part;
        mel_status s = mel_reduce_all(MEL_SUMSQ, tensors[i], &part, err);
        if (s) return s;
        total += part;
    }
    *out = sqrt(total);
    return MEL_OK;
}

mel_status mel_adamw_step(const mel_adamw *options, mel_tensor *param, const mel_tensor *grad, mel_tensor *m,
    mel_tensor *v, mel_tensor *ema, mel_error *err) {
    const mel_tensor *state[] = {param, m, v, ema};
    static const char *const names[] = {"the parameter", "m", "v", "the moving average"};
    mel_status s = mel_need_same(param, "the parameter", grad, "the gradient", "adamw", err);
    for (int i = 0; i < 4 && !s; i++) {
        if (!state[i]) continue;
        s = mel_need_same(param, "the parameter", state[i], names[i], "adamw", err);
        if (!s && (state[i]->dtype != MEL_F32 || !mel_tensor_is_contiguous(state[i]) || !state[i]->writable))
            s = mel_fail(err, MEL_EINVAL, "adamw: %s is %s%s%s, dense writable f32 is wanted", names[i],
                mel_dtype_name(state[i]->dtype), mel_tensor_is_contiguous(state[i]) ? "" : ", not dense",
                state[i]->writable ? "" : ", read-only");
    }
    const mel_adamw *o = options;
    if (!s && !(o->step >= 1 && o->lr >= 0 && o->beta1 >= 0 && o->beta1 < 1 && o->beta2 >= 0 && o->beta2 < 1 &&
                  o->eps >= 0 && o->weight_decay >= 0 && o->ema_decay >= 0 && o->ema_decay <= 1))
        s = mel_fail(err, MEL_EINVAL, "adamw: step %lld, lr %g, betas %g and %g, eps %g, decay %g, EMA %g",
            (long long)o->step, o->lr, o->beta1, o->beta2, o->eps, o->weight_decay, o->ema_decay);
    mel_tensor *g = NULL;
    if (!s) s = mel_tensor_contiguous(grad, &g, err);
    if (s) return s;
    double t = (double)o->step;
    const adamw_step step = {.rate = (float)(o->lr / (1 - pow(o->beta1, t))),
        .decay = (float)(o->lr * o->weight_decay),
        .beta1 = (float)o->beta1,
        .beta2 = (float)o->beta2,
        .eps = (float)o->eps,
        .correction = (float)(1 / sqrt(1 - pow(o->beta2, t))),
        .grad_scale = (float)o->grad_scale,
        .ema_rest = (float)(1 - o->ema_decay)};
    int64_t n = mel_tensor_numel(param), chunks = (n + CHUNK - 1) / CHUNK;
    const train_kernels *k = mel_train_rows();
    float *p = (float *)(void *)param->data, *pm = (float *)(void *)m->data, *pv = (float *)(void *)v->data;
    float *pe = ema ? (float *)(void *)ema->data : NULL;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n >= MEL_PARALLEL_FROM)
    for (int64_t c = 0; c < chunks; c++) {
        int64_t at = c * CHUNK, count = n - at < CHUNK ? n - at : CHUNK;
        float buffer[CHUNK];
        const float *fg = (const float *)(void *)g->data + at;
        if (g->dtype != MEL_F32) {
            mel_rows()->load((int)g->dtype, g->data + at * mel_dtype_size(g->dtype), buffer, count);
            fg = buffer;
        }
        k->adamw(&step, p + at, fg, pm + at, pv + at, pe ? pe + at : NULL, count);
    }
    mel_tensor_unref(g);
    return MEL_OK;
}

mel_status mel_blend(mel_tensor *y, double a, const mel_tensor *x, double b, mel_error *err) {
    mel_status s = mel_need_same(y, "y", x, "x", "blend", err);
    if (!s && (y->dtype != MEL_F32 || !mel_tensor_is_contiguous(y) || !y->writable))
        s = mel_fail(err, MEL_EINVAL, "blend: y is %s%s%s, dense writable f32 is wanted", mel_dtype_name(y->dtype),
            mel_tensor_is_contiguous(y) ? "" : ", not dense", y->writable ? "" : ", read-only");
    mel_tensor *dense = NULL;
    if (!s) s = mel_tensor_contiguous(x, &dense, err);
    if (s) return s;
    int64_t n = mel_tensor_numel(y), chunks = (n + CHUNK - 1) / CHUNK, size = mel_dtype_size(dense->dtype);
    const float fa = (float)a, fb = (float)b;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n >= MEL_PARALLEL_FROM)
    for (int64_t c = 0; c < chunks; c++) {
        int64_t at = c * CHUNK, count = n - at < CHUNK ? n - at : CHUNK;
        float buffer[CHUNK], *to = (float *)(void *)y->data + at;
        const float *from = (const float *)(void *)dense->data + at;
        if (dense->dtype != MEL_F32) {
            mel_rows()->load((int)dense->dtype, dense->data + at * size, buffer, count);
            from = buffer;
        }
        for (int64_t i = 0; i < count; i++)
            to[i] = fa * to[i] + fb * from[i];
    }
    mel_tensor_unref(dense);
    return MEL_OK;
}

mel_status mel_add_diagonal(const mel_tensor *x, double scale, double diagonal, mel_tensor **out, mel_error *err) {
    char text[128];
    mel_status s = mel_need_float(x, "add_diagonal", err);
    if (!s && (x->ndim != 2 || x->shape[0] != x->shape[1] || x->shape[0] > CHUNK))
        s = mel_fail(err, MEL_EINVAL, "add_diagonal: x is %s, a square matrix of at most %d is wanted",
            mel_tensor_shape_text(x, text, sizeof text), CHUNK);
    mel_tensor *dense = NULL, *y = NULL;
    if (!s) s = mel_tensor_contiguous(x, &dense, err);
    if (!s) s = mel_tensor_like(dense, dense->dtype, &y, err);
    if (s) {
        mel_tensor_unref(dense);
        return s;
    }
    int64_t n = x->shape[0], step = n * mel_dtype_size(x->dtype);
    const float by = (float)scale;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n * n >= MEL_PARALLEL_FROM)
    for (int64_t row = 0; row < n; row++) {
        float buffer[CHUNK];
        mel_rows()->load((int)x->dtype, dense->data + row * step, buffer, n);
        for (int64_t i = 0; i < n; i++)
            buffer[i] *= by;
        buffer[row] += (float)diagonal;
        mel_rows()->store((int)x->dtype, buffer, y->data + row * step, n);
    }
    mel_tensor_unref(dense);
    *out = y;
    return MEL_OK;
}
