// The optimiser's passes: the norm of all gradients in a fixed order, and AdamW with everything in one pass.
#include "base/span.h"
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

mel_status mel_need_state(
    const mel_tensor *param, const mel_tensor *t, const char *name, const char *what, mel_error *err) {
    mel_status s = mel_need_same(param, "the parameter", t, name, what, err);
    if (!s && (t->dtype != MEL_F32 || !mel_tensor_is_contiguous(t) || !t->writable))
        s = mel_fail(err, MEL_EINVAL, "%s: %s is %s%s%s, dense writable f32 is wanted", what, name,
            mel_dtype_name(t->dtype), mel_tensor_is_contiguous(t) ? "" : ", not dense",
            t->writable ? "" : ", read-only");
    return s;
}

mel_status mel_adamw_step(const mel_adamw *options, mel_tensor *param, const mel_tensor *grad, mel_tensor *m,
    mel_tensor *v, mel_tensor *ema, mel_error *err) {
    MEL_SPAN("adamw");
    const mel_tensor *state[] = {param, m, v, ema};
    static const char *const names[] = {"the parameter", "m", "v", "the moving average"};
    mel_status s = mel_need_same(param, "the parameter", grad, "the gradient", "adamw", err);
    for (int i = 0; i < 4 && !s; i++)
        if (state[i]) s = mel_need_state(param, state[i], names[i], "adamw", err);
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
