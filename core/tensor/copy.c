// Dispatch of the row kernels, strided walks, copies and casts.
#include "base/span.h"
#include "tensor/rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)K_BF16 == (int)MEL_BF16 && (int)K_I64 == (int)MEL_I64, "dtypes agree");

enum {
    CHUNK = 1024,
    SHORT_ROW = 256,
    PARALLEL_FROM = 1 << 16
};

const row_kernels *mel_rows(void) {
    switch (mel_cpu_isa()) {
    case MEL_ISA_AMX:
    case MEL_ISA_AVX512_BF16:
    case MEL_ISA_AVX512: return &row_kernels_avx512;
    case MEL_ISA_AVX2: return &row_kernels_avx2;
    default: return &row_kernels_ref;
    }
}

void mel_load_strided(mel_dtype dtype, const char *src, int64_t stride, float *dst, int64_t n) {
    if (stride == 1 || n <= 1) {
        mel_rows()->load((int)dtype, src, dst, n);
        return;
    }
    if (dtype == MEL_F32) {
        const float *s = (const float *)src;
        for (int64_t i = 0; i < n; i++)
            dst[i] = s[i * stride];
        return;
    }
    int64_t step = stride * mel_dtype_size(dtype);
    for (int64_t i = 0; i < n; i++)
        mel_rows()->load((int)dtype, src + i * step, dst + i, 1);
}

void mel_walk_init(mel_walk *w, int ndim, const int64_t *shape) {
    memset(w, 0, sizeof *w);
    w->ndim = ndim > 0 ? ndim : 1;
    w->shape[0] = 1;
    memcpy(w->shape, shape, sizeof(int64_t) * (size_t)ndim);
    w->rows = 1;
    for (int i = 0; i + 1 < w->ndim; i++)
        w->rows *= w->shape[i];
    w->width = w->shape[w->ndim - 1];
}

void mel_walk_merge(mel_walk *w, int count) {
    int d = 0; // the axis being grown
    for (int i = 1; i < w->ndim; i++) {
        bool dense = true;
        for (int k = 0; k < count && dense; k++)
            dense = w->shape[i] == 1 || w->shape[d] == 1 || w->strides[k][d] == w->strides[k][i] * w->shape[i];
        if (dense) {
            for (int k = 0; k < count; k++)
                if (w->shape[i] != 1) w->strides[k][d] = w->strides[k][i];
            w->shape[d] *= w->shape[i];
        } else {
            d++;
            w->shape[d] = w->shape[i];
            for (int k = 0; k < count; k++)
                w->strides[k][d] = w->strides[k][i];
        }
    }
    w->ndim = d + 1;
    w->rows = 1;
    for (int i = 0; i < d; i++)
        w->rows *= w->shape[i];
    w->width = w->shape[d];
}

int64_t mel_walk_offset(const mel_walk *w, int k, int64_t row) {
    int64_t at = 0;
    for (int i = w->ndim - 2; i >= 0; i--) {
        at += row % w->shape[i] * w->strides[k][i];
        row /= w->shape[i];
    }
    return at;
}

// ---- copies ---------------------------------------------------------------------------------------

#define COPY_LOOP(T)                                                                                                   \
    do {                                                                                                               \
        const T *s = (const T *)src;                                                                                   \
        T *d = (T *)dst;                                                                                               \
        for (int64_t i = 0; i < n; i++)                                                                                \
            d[i * step_dst] = s[i * step_src];                                                                         \
    } while (0)

static void copy_row(int64_t size, char *dst, int64_t step_dst, const char *src, int64_t step_src, int64_t n) {
    if (step_dst == 1 && step_src == 1) {
        memcpy(dst, src, (size_t)(n * size));
        return;
    }
    switch (size) {
    case 1: COPY_LOOP(uint8_t); break;
    case 2: COPY_LOOP(uint16_t); break;
    case 4: COPY_LOOP(uint32_t); break;
    default: COPY_LOOP(uint64_t); break;
    }
}

static int64_t get_integer(const mel_tensor *t, const char *p) {
    switch (t->dtype) {
    case MEL_S8: return *(const int8_t *)p;
    case MEL_U8: return *(const uint8_t *)p;
    case MEL_S32: return *(const int32_t *)p;
    default: return *(const int64_t *)p;
    }
}

static void put_integer(mel_dtype dtype, char *p, int64_t v) {
    switch (dtype) {
    case MEL_S8: *(int8_t *)p = (int8_t)(v < -128 ? -128 : v > 127 ? 127 : v); break;
    case MEL_U8: *(uint8_t *)p = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v); break;
    case MEL_S32: *(int32_t *)p = (int32_t)(v < INT32_MIN ? INT32_MIN : v > INT32_MAX ? INT32_MAX : v); break;
    default: *(int64_t *)p = v;
    }
}

// One row from any dtype to any other, through floats by chunks; integers to integers stay exact.
static void cast_row(const mel_tensor *dst, char *d, int64_t step_dst, const mel_tensor *src, const char *s,
    int64_t step_src, int64_t n) {
    const row_kernels *k = mel_rows();
    int64_t ds = mel_dtype_size(dst->dtype), ss = mel_dtype_size(src->dtype);
    if (!mel_is_float(dst->dtype) && !mel_is_float(src->dtype)) {
        for (int64_t i = 0; i < n; i++)
            put_integer(dst->dtype, d + i * step_dst * ds, get_integer(src, s + i * step_src * ss));
        return;
    }
    float buffer[CHUNK];
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = n - i < CHUNK ? n - i : CHUNK;
        mel_load_strided(src->dtype, s + i * step_src * ss, step_src, buffer, m);
        if (step_dst == 1)
            k->store((int)dst->dtype, buffer, d + i * ds, m);
        else
            for (int64_t j = 0; j < m; j++)
                k->store((int)dst->dtype, buffer + j, d + (i + j) * step_dst * ds, 1);
    }
}

mel_status mel_tensor_copy(mel_tensor *dst, const mel_tensor *src, mel_error *err) {
    MEL_SPAN(dst->dtype == src->dtype ? "copy" : "cast");
    char a[128], b[128];
    if (!dst->writable) return mel_fail(err, MEL_EINVAL, "copy: the destination is read-only");
    mel_walk w;
    mel_walk_init(&w, dst->ndim, dst->shape);
    if (!mel_broadcast_strides(src, dst->ndim, dst->shape, w.strides[1]))
        return mel_fail(err, MEL_EINVAL, "copy: %s does not fit into %s", mel_tensor_shape_text(src, a, sizeof a),
            mel_tensor_shape_text(dst, b, sizeof b));
    memcpy(w.strides[0], dst->strides, sizeof w.strides[0]);
    if (mel_tensor_numel(dst) == 0) return MEL_OK;
    mel_walk_merge(&w, 2);
    int64_t size = mel_dtype_size(dst->dtype), src_size = mel_dtype_size(src->dtype);
    int64_t step_dst = w.strides[0][w.ndim - 1], step_src = w.strides[1][w.ndim - 1];
    bool same = dst->dtype == src->dtype;
    // Short rows go by planes of the last two axes, the longer one within: finding a row costs more than copying it.
    int64_t many = 1, many_dst = 0, many_src = 0;
    if (w.ndim >= 2 && w.width < SHORT_ROW) {
        many = w.shape[w.ndim - 2], many_dst = w.strides[0][w.ndim - 2], many_src = w.strides[1][w.ndim - 2];
        w.shape[w.ndim - 2] = 1;
        w.rows /= many;
        if (many > w.width && !(step_dst == 1 && step_src == 1 && w.width * size >= 64)) {
            int64_t width = w.width, sd = step_dst, ss = step_src;
            w.width = many, step_dst = many_dst, step_src = many_src;
            many = width, many_dst = sd, many_src = ss;
        }
    }
    // One long row, or one large plane, is cut so that it can be shared out.
    int64_t piece = w.rows == 1 && many == 1 ? (int64_t)PARALLEL_FROM : w.width;
    int64_t lines = w.rows == 1 && many > 1 ? (PARALLEL_FROM + w.width - 1) / w.width : many;
    int64_t pieces = (w.width + piece - 1) / piece, parts = (many + lines - 1) / lines;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (w.rows * many * w.width >= 2 * PARALLEL_FROM)
    for (int64_t job = 0; job < w.rows * parts * pieces; job++) {
        int64_t row = job / (parts * pieces), line = job / pieces % parts * lines, first = job % pieces * piece;
        int64_t n = w.width - first < piece ? w.width - first : piece;
        int64_t last = line + lines < many ? line + lines : many;
        char *d = dst->data + (mel_walk_offset(&w, 0, row) + line * many_dst + first * step_dst) * size;
        const char *s = src->data + (mel_walk_offset(&w, 1, row) + line * many_src + first * step_src) * src_size;
        for (; line < last; line++, d += many_dst * size, s += many_src * src_size) {
            if (same)
                copy_row(size, d, step_dst, s, step_src, n);
            else
                cast_row(dst, d, step_dst, src, s, step_src, n);
        }
    }
    return MEL_OK;
}

mel_status mel_tensor_clone(const mel_tensor *src, mel_tensor **out, mel_error *err) {
    mel_tensor *t;
    mel_status s = mel_tensor_like(src, src->dtype, &t, err);
    if (s) return s;
    s = mel_tensor_copy(t, src, err);
    if (s)
        mel_tensor_unref(t);
    else
        *out = t;
    return s;
}

mel_status mel_tensor_contiguous(const mel_tensor *src, mel_tensor **out, mel_error *err) {
    if (!mel_tensor_is_contiguous(src)) return mel_tensor_clone(src, out, err);
    *out = mel_tensor_ref((mel_tensor *)src);
    return MEL_OK;
}

mel_status mel_tensor_cast(const mel_tensor *src, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    if (dtype == MEL_SAME || dtype == src->dtype) return mel_tensor_contiguous(src, out, err);
    mel_tensor *t;
    mel_status s = mel_tensor_like(src, dtype, &t, err);
    if (s) return s;
    s = mel_tensor_copy(t, src, err);
    if (s)
        mel_tensor_unref(t);
    else
        *out = t;
    return s;
}

mel_status mel_tensor_fill(mel_tensor *dst, double value, mel_error *err) {
    if (!dst->writable) return mel_fail(err, MEL_EINVAL, "fill: the tensor is read-only");
    char one[8] = {0};
    if (dst->dtype == MEL_F32) {
        float f = (float)value;
        memcpy(one, &f, 4);
    } else if (mel_is_float(dst->dtype)) {
        float f = (float)value;
        mel_rows()->store((int)dst->dtype, &f, one, 1);
    } else {
        double v = value != value ? 0 : nearbyint(value);
        put_integer(dst->dtype, one, v >= 0x1p63 ? INT64_MAX : v < -0x1p63 ? INT64_MIN : (int64_t)v);
    }
    mel_walk w;
    mel_walk_init(&w, dst->ndim, dst->shape);
    memcpy(w.strides[0], dst->strides, sizeof w.strides[0]);
    if (mel_tensor_numel(dst) == 0) return MEL_OK;
    mel_walk_merge(&w, 1);
    int64_t size = mel_dtype_size(dst->dtype), step = w.strides[0][w.ndim - 1];
    for (int64_t row = 0; row < w.rows; row++)
        copy_row(size, dst->data + mel_walk_offset(&w, 0, row) * size, step, one, 0, w.width);
    return MEL_OK;
}

// ---- single elements ------------------------------------------------------------------------------

static mel_status element(const mel_tensor *t, int64_t index, char **out, mel_error *err) {
    char shape[128];
    int64_t n = mel_tensor_numel(t), at = 0;
    if (index < 0 || index >= n)
        return mel_fail(err, MEL_EINVAL, "element %lld is outside a tensor of shape %s", (long long)index + 1,
            mel_tensor_shape_text(t, shape, sizeof shape));
    for (int i = t->ndim - 1; i >= 0; i--) {
        at += index % t->shape[i] * t->strides[i];
        index /= t->shape[i];
    }
    *out = t->data + at * mel_dtype_size(t->dtype);
    return MEL_OK;
}

mel_status mel_tensor_get(const mel_tensor *t, int64_t index, double *out, mel_error *err) {
    char *p;
    mel_status s = element(t, index, &p, err);
    if (s) return s;
    if (mel_is_float(t->dtype)) {
        float f;
        mel_rows()->load((int)t->dtype, p, &f, 1);
        *out = f;
    } else {
        *out = (double)get_integer(t, p);
    }
    return MEL_OK;
}

mel_status mel_tensor_set(mel_tensor *t, int64_t index, double value, mel_error *err) {
    if (!t->writable) return mel_fail(err, MEL_EINVAL, "set: the tensor is read-only");
    char *p;
    mel_status s = element(t, index, &p, err);
    if (s) return s;
    mel_tensor one = *t;
    one.ndim = 0;
    one.data = p;
    return mel_tensor_fill(&one, value, err);
}
