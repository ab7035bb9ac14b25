// Backward passes of the norms: each row once, sums over rows by chunks that do not depend on threads.
#include "base/span.h"
#include "train/train.h"

#include <math.h>
#include <string.h>

enum {
    CHUNK = 32 // rows of a partial sum
};

// How many rows of modulation m has for x [.., D]: [D] is one; [.., 1.., D] as many as its leading dimensions, which
// are x's. 0 where it has another form.
static int64_t modulation_rows(const mel_tensor *m, const mel_tensor *x) {
    int64_t groups = 1;
    if (m->ndim < 1 || m->ndim > x->ndim || m->shape[m->ndim - 1] != x->shape[x->ndim - 1] || !mel_is_float(m->dtype))
        return 0;
    bool leading = true;
    for (int i = 0; i < x->ndim - 1; i++) {
        int j = i - (x->ndim - m->ndim);
        int64_t size = j >= 0 ? m->shape[j] : 1;
        if (size == x->shape[i] && (leading || size == 1)) {
            groups *= size;
            continue;
        }
        if (size != 1) return 0;
        leading = false;
    }
    return groups;
}

mel_status mel_norm_backward(mel_norm_kind kind, const mel_tensor *x, const mel_tensor *dy, const mel_tensor *weight,
    const mel_tensor *bias, double eps, const mel_tensor *scale, const mel_tensor *shift_like, mel_tensor **dx,
    mel_tensor **dweight, mel_tensor **dbias, mel_tensor **dscale, mel_tensor **dshift, mel_error *err) {
    MEL_SPAN("norm backward");
    char sx[128], sm[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_same(x, "x", dy, "dy", "norm_backward", err);
    if (s) return s;
    if (x->ndim < 1 || (unsigned)kind > MEL_NORM_L2 || !(eps >= 0) || (dscale && !scale) || (dshift && !shift_like))
        return mel_fail(err, MEL_EINVAL, "norm_backward: x is %s, kind %d, eps %g",
            mel_tensor_shape_text(x, sx, sizeof sx), (int)kind, eps);
    int64_t d = x->shape[x->ndim - 1], rows = d ? mel_tensor_numel(x) / d : 0, groups = 1, scale_groups = 1;
    const mel_tensor *mods[2] = {scale, dshift ? shift_like : NULL};
    for (int i = 0; i < 2; i++) {
        if (!mods[i]) continue;
        int64_t g = modulation_rows(mods[i], x);
        if (g && (groups == 1 || g == 1 || g == groups)) {
            groups = g > groups ? g : groups;
            if (i == 0) scale_groups = g;
            continue;
        }
        return mel_fail(err, MEL_EINVAL, "norm_backward: %s %s is not of the form [.., 1.., D] for x %s",
            i ? "shift" : "scale", mel_tensor_shape_text(mods[i], sm, sizeof sm),
            mel_tensor_shape_text(x, sx, sizeof sx));
    }
    int64_t run = groups ? rows / groups : 0, parts = run ? (run + CHUNK - 1) / CHUNK : 0, chunks = parts * groups;
    // Per chunk: the sums wanted, in the order weight, bias, scale, shift.
    mel_tensor **wanted[4] = {dweight, dbias, dscale, dshift}, *sums[4] = {NULL};
    const mel_tensor *like[4] = {NULL, NULL, scale, shift_like};
    int64_t room = (d + 15) / 16 * 16;
    mel_tensor *px = NULL, *pdy = NULL, *w = NULL, *b = NULL, *sc = NULL, *g = NULL;
    float *partial = NULL, *scratch = NULL;
    int threads = rows * d >= MEL_PARALLEL_FROM ? mel_threads() : 1;
    s = mel_tensor_contiguous(x, &px, err);
    if (!s) s = mel_tensor_contiguous(dy, &pdy, err);
    if (!s) s = mel_vector(weight, d, "norm_backward", "weight", &w, err);
    if (!s) s = mel_vector(bias, d, "norm_backward", "bias", &b, err);
    if (!s && scale) {
        mel_tensor *cast = NULL;
        s = mel_tensor_cast(scale, MEL_F32, &cast, err);
        if (!s) s = mel_tensor_contiguous(cast, &sc, err);
        mel_tensor_unref(cast);
    }
    if (!s && dx) s = mel_tensor_like(x, x->dtype, &g, err);
    for (int i = 0; i < 4 && !s; i++)
        if (wanted[i])
            s = mel_tensor_zeros(MEL_F32, like[i] ? like[i]->ndim : 1, like[i] ? like[i]->shape : &d, &sums[i], err);
    if (!s && !(partial = mel_alloc_zero((size_t)(chunks * 4 * room) * 4, err))) s = MEL_ENOMEM;
    if (!s && !(scratch = mel_alloc((size_t)(threads * 3 * room) * 4, err))) s = MEL_ENOMEM;
    if (!s && d > 0) {
        const row_kernels *load = mel_rows();
        const train_kernels *k = mel_train_rows();
        int64_t size = mel_dtype_size(px->dtype), size_y = mel_dtype_size(pdy->dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t t = 0; t < threads; t++) {
            float *fx = scratch + t * 3 * room, *fy = fx + room, *fg = fy + room;
            for (int64_t c = chunks * t / threads; c < chunks * (t + 1) / threads; c++) {
                int64_t group = c / parts, first = c % parts * CHUNK, last = first + CHUNK < run ? first + CHUNK : run;
                float *at = partial + c * 4 * room;
                norm_row row = {.kind = (int)kind,
                    .eps = (float)eps,
                    .x = fx,
                    .dy = fy,
                    .weight = w ? (const float *)(void *)w->data : NULL,
                    .bias = b ? (const float *)(void *)b->data : NULL,
                    .scale = sc ? (const float *)(void *)sc->data + (scale_groups > 1 ? group * d : 0) : NULL,
                    .dx = fg,
                    .dweight = dweight ? at : NULL,
                    .dbias = dbias ? at + room : NULL,
                    .dscale = dscale ? at + 2 * room : NULL,
                    .dshift = dshift ? at + 3 * room : NULL};
                for (int64_t r = group * run + first; r < group * run + last; r++) {
                    load->load((int)px->dtype, px->data + r * d * size, fx, d);
                    load->load((int)pdy->dtype, pdy->data + r * d * size_y, fy, d);
                    k->norm_grad(&row, d);
                    if (g) load->store((int)g->dtype, fg, g->data + r * d * size, d);
                }
            }
        }
        for (int i = 0; i < 4; i++) {
            if (!sums[i]) continue;
            bool per_group = mel_tensor_numel(sums[i]) > d;
            for (int64_t c = 0; c < chunks; c++)
                k->accumulate((float *)(void *)sums[i]->data + (per_group ? c / parts * d : 0),
                    partial + (c * 4 + i) * room, NULL, d);
        }
    }
    mel_free(partial);
    mel_free(scratch);
    mel_tensor *mine[] = {px, pdy, w, b, sc};
    for (int i = 0; i < 5; i++)
        mel_tensor_unref(mine[i]);
    if (s) {
        mel_tensor_unref(g);
        for (int i = 0; i < 4; i++)
            mel_tensor_unref(sums[i]);
        return s;
    }
    if (dx) *dx = g;
    for (int i = 0; i < 4; i++)
        if (wanted[i]) *wanted[i] = sums[i];
    return MEL_OK;
}

mel_status mel_group_norm_backward(const mel_tensor *x, const mel_tensor *dy, int groups, const mel_tensor *weight,
    double eps, mel_tensor **dx, mel_tensor **dweight, mel_tensor **dbias, mel_error *err) {
    MEL_SPAN("group_norm backward");
    char sx[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_same(x, "x", dy, "dy", "group_norm_backward", err);
    if (s) return s;
    if (x->ndim < 2 || groups < 1 || x->shape[x->ndim - 1] % groups || !(eps >= 0))
        return mel_fail(err, MEL_EINVAL, "group_norm_backward: %d groups do not divide x %s", groups,
            mel_tensor_shape_text(x, sx, sizeof sx));
    int64_t n = x->shape[0], c = x->shape[x->ndim - 1], per = c / groups;
    int64_t inner = n && c ? mel_tensor_numel(x) / n / c : 0;
    mel_tensor *px = NULL, *py = NULL, *w = NULL, *g = NULL, *dw = NULL, *db = NULL, *result = NULL, *cast = NULL;
    double *partial = NULL; // [n][2][c]
    s = mel_vector(weight, c, "group_norm_backward", "weight", &w, err);
    if (!s) s = mel_tensor_cast(x, MEL_F32, &cast, err);
    if (!s) s = mel_tensor_contiguous(cast, &px, err);
    mel_tensor_unref(cast);
    cast = NULL;
    if (!s) s = mel_tensor_cast(dy, MEL_F32, &cast, err);
    if (!s) s = mel_tensor_contiguous(cast, &py, err);
    mel_tensor_unref(cast);
    if (!s) s = mel_tensor_like(x, MEL_F32, &g, err);
    if (!s) s = mel_tensor_zeros(MEL_F32, 1, &c, &dw, err);
    if (!s) s = mel_tensor_zeros(MEL_F32, 1, &c, &db, err);
    if (!s && !(partial = mel_alloc_zero((size_t)(n * 2 * c) * sizeof *partial, err))) s = MEL_ENOMEM;
    if (!s && inner > 0) {
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n * inner * c >= MEL_PARALLEL_FROM)
        for (int64_t job = 0; job < n * groups; job++) {
            int64_t sample = job / groups, first = job % groups * per, at = sample * inner * c + first;
            const float *p = (const float *)(void *)px->data + at, *y = (const float *)(void *)py->data + at;
            float *q = (float *)(void *)g->data + at;
            double *pw = partial + sample * 2 * c + first, *pb = pw + c;
            double count = (double)(inner * per), mean = 0, var = 0, s1 = 0, s2 = 0;
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = 0; j < per; j++)
                    mean += p[i * c + j];
            mean /= count;
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = 0; j < per; j++)
                    var += (p[i * c + j] - mean) * (p[i * c + j] - mean);
            double r = 1 / sqrt(var / count + eps);
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = 0; j < per; j++) {
                    double hat = (p[i * c + j] - mean) * r, d = y[i * c + j];
                    pw[j] += d * hat;
                    pb[j] += d;
                }
            for (int64_t j = 0; j < per; j++) {
                double v = w ? ((const float *)(void *)w->data)[first + j] : 1;
                s1 += v * pb[j] / count;
                s2 += v * pw[j] / count;
            }
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = 0; j < per; j++) {
                    double hat = (p[i * c + j] - mean) * r, v = w ? ((const float *)(void *)w->data)[first + j] : 1;
                    q[i * c + j] = (float)(r * (y[i * c + j] * v - s1 - hat * s2));
                }
        }
        for (int64_t j = 0; j < c; j++) {
            double a = 0, b = 0;
            for (int64_t i = 0; i < n; i++) {
                a += partial[i * 2 * c + j];
                b += partial[i * 2 * c + c + j];
            }
            ((float *)(void *)dw->data)[j] = (float)a;
            ((float *)(void *)db->data)[j] = (float)b;
        }
    }
    if (!s && dx) s = mel_tensor_cast(g, x->dtype, &result, err);
    mel_free(partial);
    mel_tensor *mine[] = {px, py, w, g};
    for (int i = 0; i < 4; i++)
        mel_tensor_unref(mine[i]);
    if (s || !dweight) mel_tensor_unref(dw);
    if (s || !dbias) mel_tensor_unref(db);
    if (s) return s;
    if (dx) *dx = result;
    if (dweight) *dweight = dw;
    if (dbias) *dbias = db;
    return MEL_OK;
}
