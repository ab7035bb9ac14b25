// Normalisation over the last axis, softmax, rotary embedding.
#include "ops/ops.h"

#include <math.h>
#include <string.h>

typedef struct norm_job {
    enum {
        NORM_LAYER,
        NORM_RMS,
        NORM_L2,
        NORM_SOFTMAX
    } kind;
    const char *what;
    const mel_tensor *x, *weight, *bias, *scale, *shift;
    double eps;
    mel_act act;
    mel_dtype dtype;
    mel_tensor *into; // the result is written there, or NULL
} norm_job;

static mel_status norm(const norm_job *job, mel_tensor **out, mel_error *err) {
    const mel_tensor *x = job->x;
    char sx[128], st[128];
    mel_dtype dst;
    MEL_SPAN(job->what);
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_out_dtype(x, job->dtype, job->what, &dst, err);
    if (s) return s;
    if (x->ndim < 1) return mel_fail(err, MEL_EINVAL, "%s: a scalar has no last axis", job->what);
    if (!(job->eps >= 0) || (unsigned)job->act > MEL_ACT_SIGMOID)
        return mel_fail(err, MEL_EINVAL, "%s: eps %g, activation %d", job->what, job->eps, (int)job->act);
    if (job->into) {
        dst = job->into->dtype;
        if (!mel_is_float(dst) || !job->into->writable || !mel_tensor_is_contiguous(job->into) ||
            job->into->ndim != x->ndim || memcmp(job->into->shape, x->shape, sizeof(int64_t) * (size_t)x->ndim) != 0)
            return mel_fail(err, MEL_EINVAL, "%s: the result of x %s cannot be written into %s %s", job->what,
                mel_tensor_shape_text(x, sx, sizeof sx), mel_dtype_name(dst),
                mel_tensor_shape_text(job->into, st, sizeof st));
    }
    int64_t d = x->shape[x->ndim - 1];
    mel_tensor *src = NULL, *y = mel_tensor_ref(job->into), *weight = NULL, *bias = NULL, *mod[2] = {NULL, NULL};
    const mel_tensor *asked[2] = {job->scale, job->shift};
    float *scratch = NULL;
    mel_walk w;
    mel_walk_init(&w, x->ndim, x->shape);
    s = mel_vector(job->weight, d, job->what, "weight", &weight, err);
    if (!s) s = mel_vector(job->bias, d, job->what, "bias", &bias, err);
    for (int i = 0; i < 2 && !s; i++) {
        if (!asked[i]) continue;
        if (!mel_is_float(asked[i]->dtype) || asked[i]->ndim < 1 ||
            !mel_broadcast_strides(asked[i], x->ndim, x->shape, w.strides[i]) ||
            asked[i]->shape[asked[i]->ndim - 1] != d)
            s = mel_fail(err, MEL_EINVAL, "%s: %s %s does not stretch to x %s", job->what, i ? "shift" : "scale",
                mel_tensor_shape_text(asked[i], st, sizeof st), mel_tensor_shape_text(x, sx, sizeof sx));
        if (!s) s = mel_tensor_cast(asked[i], MEL_F32, &mod[i], err);
        if (!s) mel_broadcast_strides(mod[i], x->ndim, x->shape, w.strides[i]); // of the dense copy
    }
    if (!s) s = mel_tensor_contiguous(x, &src, err);
    if (!s && !y) s = mel_tensor_like(x, dst, &y, err);
    int threads = w.rows * d >= MEL_PARALLEL_FROM ? mel_threads() : 1;
    int64_t room = (d + 15) / 16 * 16;
    if (!s && !(scratch = mel_alloc((size_t)(threads * room) * 4, err))) s = MEL_ENOMEM;
    if (!s && d > 0) {
        const row_kernels *k = mel_rows();
        const float *pw = weight ? (const float *)weight->data : NULL, *pb = bias ? (const float *)bias->data : NULL;
        int64_t ss = mel_dtype_size(src->dtype), ds = mel_dtype_size(dst);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t part = 0; part < threads; part++) {
            float *row = scratch + part * room;
            int64_t from = w.rows * part / threads, to = w.rows * (part + 1) / threads;
            for (int64_t r = from; r < to; r++) {
                const float *m[2] = {NULL, NULL};
                for (int i = 0; i < 2; i++)
                    if (mod[i]) m[i] = (const float *)mod[i]->data + mel_walk_offset(&w, i, r);
                k->load((int)src->dtype, src->data + r * d * ss, row, d);
                switch (job->kind) {
                case NORM_LAYER: k->layer_norm(row, row, d, (float)job->eps, pw, pb, m[0], m[1]); break;
                case NORM_RMS: k->rms_norm(row, row, d, (float)job->eps, pw, m[0], m[1]); break;
                case NORM_L2: k->l2_norm(row, row, d, pw); break;
                default: k->softmax(row, d);
                }
                if (job->act) k->act((int)job->act, row, d);
                k->store((int)dst, row, y->data + r * d * ds, d);
            }
        }
    }
    mel_free(scratch);
    mel_tensor *mine[] = {src, weight, bias, mod[0], mod[1]};
    for (int i = 0; i < 5; i++)
        mel_tensor_unref(mine[i]);
    if (s || job->into)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}

mel_status mel_layer_norm(const mel_tensor *x, const mel_tensor *weight, const mel_tensor *bias, double eps,
    const mel_tensor *scale, const mel_tensor *shift, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    norm_job job = {NORM_LAYER, "layer_norm", x, weight, bias, scale, shift, eps, act, dtype, NULL};
    return norm(&job, out, err);
}

mel_status mel_rms_norm(const mel_tensor *x, const mel_tensor *weight, double eps, const mel_tensor *scale,
    const mel_tensor *shift, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    norm_job job = {NORM_RMS, "rms_norm", x, weight, NULL, scale, shift, eps, act, dtype, NULL};
    return norm(&job, out, err);
}

mel_status mel_l2_norm(
    const mel_tensor *x, const mel_tensor *weight, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    norm_job job = {NORM_L2, "l2_norm", x, weight, NULL, NULL, NULL, 0, act, dtype, NULL};
    return norm(&job, out, err);
}

mel_status mel_l2_norm_into(
    const mel_tensor *x, const mel_tensor *weight, mel_act act, mel_tensor *into, mel_error *err) {
    norm_job job = {NORM_L2, "l2_norm", x, weight, NULL, NULL, NULL, 0, act, MEL_SAME, into};
    return norm(&job, NULL, err);
}

mel_status mel_softmax(const mel_tensor *x, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    norm_job job = {NORM_SOFTMAX, "softmax", x, NULL, NULL, NULL, NULL, 0, MEL_ACT_NONE, dtype, NULL};
    return norm(&job, out, err);
}

mel_status mel_group_norm(const mel_tensor *x, int groups, const mel_tensor *weight, const mel_tensor *bias, double eps,
    mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    char sx[128];
    mel_dtype dst;
    MEL_SPAN("group_norm");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_out_dtype(x, dtype, "group_norm", &dst, err);
    if (s) return s;
    if (x->ndim < 2 || groups < 1 || x->shape[x->ndim - 1] % groups)
        return mel_fail(err, MEL_EINVAL, "group_norm: %d groups do not divide x %s", groups,
            mel_tensor_shape_text(x, sx, sizeof sx));
    if (!(eps >= 0) || (unsigned)act > MEL_ACT_SIGMOID)
        return mel_fail(err, MEL_EINVAL, "group_norm: eps %g, activation %d", eps, (int)act);
    int64_t n = x->shape[0], c = x->shape[x->ndim - 1], per = c / groups;
    int64_t inner = n && c ? mel_tensor_numel(x) / n / c : 0;
    mel_tensor *src = NULL, *y = NULL, *result = NULL, *w = NULL, *b = NULL;
    s = mel_vector(weight, c, "group_norm", "weight", &w, err);
    if (!s) s = mel_vector(bias, c, "group_norm", "bias", &b, err);
    if (!s) s = mel_tensor_cast(x, MEL_F32, &src, err);
    if (!s) s = mel_tensor_like(x, MEL_F32, &y, err);
    if (!s) {
        const row_kernels *k = mel_rows();
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n * inner * c >= MEL_PARALLEL_FROM)
        for (int64_t job = 0; job < n * groups; job++) {
            int64_t at = job / groups * inner * c, first = job % groups * per;
            const float *p = (const float *)src->data + at + first;
            float *q = (float *)y->data + at + first;
            double sum = 0, var = 0;
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = 0; j < per; j++)
                    sum += p[i * c + j];
            double mean = sum / (double)(inner * per);
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = 0; j < per; j++)
                    var += (p[i * c + j] - mean) * (p[i * c + j] - mean);
            float r = (float)(1 / sqrt(var / (double)(inner * per) + eps)), m = (float)mean;
            for (int64_t i = 0; i < inner; i++) {
                for (int64_t j = 0; j < per; j++) {
                    float v = (p[i * c + j] - m) * r;
                    if (w) v *= ((const float *)w->data)[first + j];
                    if (b) v += ((const float *)b->data)[first + j];
                    q[i * c + j] = v;
                }
                if (act) k->act((int)act, q + i * c, per);
            }
        }
        s = mel_tensor_cast(y, dst, &result, err);
    }
    mel_tensor *mine[] = {src, y, w, b};
    for (int i = 0; i < 4; i++)
        mel_tensor_unref(mine[i]);
    if (!s) *out = result;
    return s;
}

mel_status mel_rope(const mel_tensor *x, const mel_tensor *cos_table, const mel_tensor *sin_table, bool interleaved,
    mel_dtype dtype, mel_tensor **out, mel_error *err) {
    char sx[128], sc[128], ss[128];
    mel_dtype dst;
    MEL_SPAN("rope");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_out_dtype(x, dtype, "rope", &dst, err);
    if (s) return s;
    bool fits = x->ndim == 4 && x->shape[3] % 2 == 0 && cos_table->dtype == MEL_F32 && sin_table->dtype == MEL_F32 &&
                cos_table->ndim == sin_table->ndim && (cos_table->ndim == 2 || cos_table->ndim == 3) &&
                !memcmp(cos_table->shape, sin_table->shape, sizeof(int64_t) * (size_t)cos_table->ndim);
    if (fits) {
        int o = cos_table->ndim - 2;
        fits = cos_table->shape[o] == x->shape[1] && cos_table->shape[o + 1] == x->shape[3] / 2 &&
               (o == 0 || cos_table->shape[0] == x->shape[0]);
    }
    if (!fits)
        return mel_fail(err, MEL_EINVAL,
            "rope: x is %s, the tables are %s and %s: [B, L, H, D] and f32 [L, D/2] are wanted",
            mel_tensor_shape_text(x, sx, sizeof sx), mel_tensor_shape_text(cos_table, sc, sizeof sc),
            mel_tensor_shape_text(sin_table, ss, sizeof ss));
    int64_t b = x->shape[0], l = x->shape[1], h = x->shape[2], d = x->shape[3];
    mel_tensor *src = NULL, *y = NULL, *c = NULL, *sn = NULL;
    float *scratch = NULL;
    int threads = mel_tensor_numel(x) >= MEL_PARALLEL_FROM ? mel_threads() : 1;
    s = mel_tensor_contiguous(x, &src, err);
    if (!s) s = mel_tensor_contiguous(cos_table, &c, err);
    if (!s) s = mel_tensor_contiguous(sin_table, &sn, err);
    if (!s) s = mel_tensor_like(x, dst, &y, err);
    if (!s && !(scratch = mel_alloc((size_t)(threads * (d + 16)) * 4, err))) s = MEL_ENOMEM;
    if (!s) {
        const row_kernels *k = mel_rows();
        int64_t xs = mel_dtype_size(x->dtype), ds = mel_dtype_size(dst), each = c->ndim == 3 ? l * d / 2 : 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t part = 0; part < threads; part++) {
            float *row = scratch + part * (d + 16);
            for (int64_t r = b * l * part / threads; r < b * l * (part + 1) / threads; r++) {
                int64_t t = r / l * each + r % l * (d / 2);
                for (int64_t head = 0; head < h; head++) {
                    int64_t at = (r * h + head) * d;
                    k->load((int)x->dtype, src->data + at * xs, row, d);
                    k->rope(row, (const float *)c->data + t, (const float *)sn->data + t, d, interleaved);
                    k->store((int)dst, row, y->data + at * ds, d);
                }
            }
        }
    }
    mel_free(scratch);
    mel_tensor *mine[] = {src, c, sn};
    for (int i = 0; i < 3; i++)
        mel_tensor_unref(mine[i]);
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}
