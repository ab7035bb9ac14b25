// Reductions along an axis, concatenation, padding, gathering.
#include "ops/ops.h"

#include <math.h>
#include <string.h>

mel_status mel_reduce(
    mel_reduce_op op, const mel_tensor *x, int axis, bool keep_dim, mel_tensor **out, mel_error *err) {
    MEL_SPAN("reduce");
    int a;
    if ((unsigned)op > MEL_SUMSQ) return mel_fail(err, MEL_EINVAL, "reduce: unknown operation %d", (int)op);
    mel_status s = mel_need_float(x, "reduce", err);
    if (!s) s = mel_axis(x, axis, "reduce", &a, err);
    if (s) return s;
    if (x->shape[a] == 0 && op != MEL_SUM && op != MEL_SUMSQ)
        return mel_fail(err, MEL_EINVAL, "reduce: axis %d is empty, it has no mean, maximum or minimum", a + 1);
    int64_t outer = 1, inner = 1, n = x->shape[a], shape[MEL_MAX_DIMS];
    int ndim = 0;
    for (int i = 0; i < x->ndim; i++) {
        if (i < a) outer *= x->shape[i];
        if (i > a) inner *= x->shape[i];
        if (i != a)
            shape[ndim++] = x->shape[i];
        else if (keep_dim)
            shape[ndim++] = 1;
    }
    mel_tensor *src = NULL, *y = NULL, *result = NULL;
    s = mel_tensor_cast(x, MEL_F32, &src, err);
    if (!s) s = mel_tensor_create(MEL_F32, ndim, shape, &y, err);
    if (!s) {
        const float *p = (const float *)src->data;
        float *q = (float *)y->data;
        const row_kernels *k = mel_rows();
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (outer * n * inner >= MEL_PARALLEL_FROM)
        for (int64_t o = 0; o < outer; o++) {
            const float *row = p + o * n * inner;
            float *to = q + o * inner;
            if (inner == 1) {
                float v;
                if (op == MEL_SUM)
                    v = k->sum(row, n);
                else if (op == MEL_MEAN)
                    v = k->sum(row, n) / (float)n;
                else if (op == MEL_SUMSQ)
                    v = k->sumsq(row, n);
                else if (op == MEL_REDUCE_MAX)
                    v = k->max(row, n);
                else {
                    v = row[0];
                    for (int64_t i = 1; i < n; i++)
                        v = row[i] < v ? row[i] : v;
                }
                to[0] = v;
                continue;
            }
            for (int64_t j = 0; j < inner; j++)
                to[j] = n == 0 ? 0 : op == MEL_SUMSQ ? row[j] * row[j] : row[j];
            for (int64_t i = 1; i < n; i++) {
                const float *r = row + i * inner;
                switch (op) {
                case MEL_SUMSQ:
                    for (int64_t j = 0; j < inner; j++)
                        to[j] += r[j] * r[j];
                    break;
                case MEL_REDUCE_MAX: k->binary(K_MAX, to, 1, r, 1, to, inner); break;
                case MEL_REDUCE_MIN: k->binary(K_MIN, to, 1, r, 1, to, inner); break;
                default: k->binary(K_ADD, to, 1, r, 1, to, inner);
                }
            }
            if (op == MEL_MEAN)
                for (int64_t j = 0; j < inner; j++)
                    to[j] /= (float)n;
        }
        s = mel_tensor_cast(y, x->dtype, &result, err);
    }
    mel_tensor_unref(src);
    mel_tensor_unref(y);
    if (!s) *out = result;
    return s;
}

mel_status mel_concat(int count, const mel_tensor *const *parts, int axis, mel_tensor **out, mel_error *err) {
    MEL_SPAN("concat");
    if (count < 1) return mel_fail(err, MEL_EINVAL, "concat: no parts");
    const mel_tensor *first = parts[0];
    int a;
    char sa[128], sb[128];
    mel_status s = mel_axis(first, axis, "concat", &a, err);
    if (s) return s;
    int64_t shape[MEL_MAX_DIMS];
    memcpy(shape, first->shape, sizeof shape);
    shape[a] = 0;
    for (int i = 0; i < count; i++) {
        bool fits = parts[i]->ndim == first->ndim && parts[i]->dtype == first->dtype;
        for (int d = 0; d < first->ndim && fits; d++)
            fits = d == a || parts[i]->shape[d] == first->shape[d];
        if (!fits)
            return mel_fail(err, MEL_EINVAL, "concat: part %d is %s %s, part 1 is %s %s", i + 1,
                mel_dtype_name(parts[i]->dtype), mel_tensor_shape_text(parts[i], sa, sizeof sa),
                mel_dtype_name(first->dtype), mel_tensor_shape_text(first, sb, sizeof sb));
        shape[a] += parts[i]->shape[a];
    }
    mel_tensor *y = NULL;
    s = mel_tensor_create(first->dtype, first->ndim, shape, &y, err);
    int64_t at = 0;
    for (int i = 0; i < count && !s; i++) {
        mel_tensor *place;
        s = mel_tensor_slice(y, a, at, parts[i]->shape[a], &place, err);
        if (s) break;
        s = mel_tensor_copy(place, parts[i], err);
        mel_tensor_unref(place);
        at += parts[i]->shape[a];
    }
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}

mel_status mel_pad(const mel_tensor *x, int axis, int64_t before, int64_t after, double value, bool edge,
    mel_tensor **out, mel_error *err) {
    MEL_SPAN("pad");
    int a;
    mel_status s = mel_axis(x, axis, "pad", &a, err);
    if (s) return s;
    if (before < 0 || after < 0)
        return mel_fail(err, MEL_EINVAL, "pad: %lld before and %lld after", (long long)before, (long long)after);
    if (edge && x->shape[a] == 0) return mel_fail(err, MEL_EINVAL, "pad: axis %d is empty, it has no edge", a + 1);
    int64_t shape[MEL_MAX_DIMS], n = x->shape[a];
    memcpy(shape, x->shape, sizeof shape);
    if (__builtin_add_overflow(n, before, &shape[a]) || __builtin_add_overflow(shape[a], after, &shape[a]))
        return mel_fail(err, MEL_EINVAL, "pad: the size overflows");
    mel_tensor *y, *part = NULL, *border = NULL;
    s = mel_tensor_create(x->dtype, x->ndim, shape, &y, err);
    if (s) return s;
    s = mel_tensor_slice(y, a, before, n, &part, err);
    if (!s) s = mel_tensor_copy(part, x, err);
    mel_tensor_unref(part);
    for (int side = 0; side < 2 && !s; side++) {
        int64_t from = side ? before + n : 0, count = side ? after : before;
        if (count == 0) continue;
        s = mel_tensor_slice(y, a, from, count, &part, err);
        if (s) break;
        if (edge) {
            s = mel_tensor_slice(x, a, side ? n - 1 : 0, 1, &border, err);
            if (!s) s = mel_tensor_copy(part, border, err);
            mel_tensor_unref(border);
            border = NULL;
        } else {
            s = mel_tensor_fill(part, value, err);
        }
        mel_tensor_unref(part);
    }
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}

mel_status mel_gather(
    const mel_tensor *table, const mel_tensor *ids, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    MEL_SPAN("gather");
    char sa[128], sb[128];
    if (table->ndim < 1 || ids->ndim + table->ndim - 1 > MEL_MAX_DIMS ||
        (ids->dtype != MEL_I64 && ids->dtype != MEL_S32))
        return mel_fail(err, MEL_EINVAL, "gather: table %s, ids %s %s: i64 or s32 ids are wanted",
            mel_tensor_shape_text(table, sa, sizeof sa), mel_dtype_name(ids->dtype),
            mel_tensor_shape_text(ids, sb, sizeof sb));
    int64_t shape[MEL_MAX_DIMS], n = mel_tensor_numel(ids);
    memcpy(shape, ids->shape, sizeof(int64_t) * (size_t)ids->ndim);
    for (int i = 1; i < table->ndim; i++)
        shape[ids->ndim + i - 1] = table->shape[i];
    mel_tensor *rows = NULL, *y = NULL, *index = NULL;
    mel_status s = mel_tensor_cast(ids, MEL_I64, &index, err);
    const int64_t *id = s ? NULL : (const int64_t *)index->data;
    for (int64_t i = 0; i < n && !s; i++)
        if (id[i] < 0 || id[i] >= table->shape[0])
            s = mel_fail(err, MEL_EINVAL, "gather: id %lld at %lld is outside 0..%lld", (long long)id[i],
                (long long)i + 1, (long long)table->shape[0] - 1);
    // Only the rows that are used are read: tables are large and may lie in a file.
    mel_dtype dst = dtype == MEL_SAME ? table->dtype : dtype;
    if (!s) s = mel_tensor_create(dst, ids->ndim + table->ndim - 1, shape, &y, err);
    if (!s) s = mel_tensor_reshape(y, 2, (int64_t[]){n, n ? mel_tensor_numel(y) / n : 0}, &rows, err);
    for (int64_t i = 0; i < n && !s; i++) {
        mel_tensor from = *table, to = *rows;
        from.ndim = table->ndim - 1;
        memcpy(from.shape, table->shape + 1, sizeof(int64_t) * (size_t)from.ndim);
        memcpy(from.strides, table->strides + 1, sizeof(int64_t) * (size_t)from.ndim);
        from.data += id[i] * table->strides[0] * mel_dtype_size(table->dtype);
        to.ndim = from.ndim;
        memcpy(to.shape, from.shape, sizeof from.shape);
        int64_t stride = 1;
        for (int d = to.ndim - 1; d >= 0; d--) {
            to.strides[d] = stride;
            stride *= to.shape[d];
        }
        to.data += i * stride * mel_dtype_size(dst);
        s = mel_tensor_copy(&to, &from, err);
    }
    mel_tensor_unref(rows);
    mel_tensor_unref(index);
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}
