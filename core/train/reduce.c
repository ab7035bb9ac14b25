// Sums that undo broadcasting and gathering.
#include "base/span.h"
#include "train/train.h"

#include <string.h>

enum {
    PIECE = 1024, // columns of a task
    CHUNK = 64    // rows that are added before chunks are
};

// An axis of a, after merging: kept in the result or summed.
typedef struct axis {
    int64_t size, step_a, step_b;
    bool kept;
} axis;

typedef struct plan {
    axis kept[MEL_MAX_DIMS], summed[MEL_MAX_DIMS]; // but the last
    int kept_count, summed_count;
    int64_t outer, rows; // products of their sizes
    axis last;
} plan;

static bool kept_axis(const mel_tensor *a, int i, int ndim, const int64_t *shape) {
    int j = i - (a->ndim - ndim);
    return j >= 0 && shape[j] == a->shape[i];
}

// step_b: b's strides along a's axes. a is dense.
static void make_plan(const mel_tensor *a, const int64_t *step_b, int ndim, const int64_t *shape, plan *p) {
    axis all[MEL_MAX_DIMS + 1];
    int count = 0;
    int64_t step = 1;
    for (int i = a->ndim - 1; i >= 0; i--) { // from the last axis on
        axis x = {a->shape[i], step, step_b[i], kept_axis(a, i, ndim, shape)};
        step *= x.size;
        if (x.size == 1) continue;
        axis *top = count ? &all[count - 1] : NULL;
        if (top && top->kept == x.kept && x.step_b == top->step_b * top->size)
            top->size *= x.size;
        else
            all[count++] = x;
    }
    memset(p, 0, sizeof *p);
    p->outer = p->rows = 1;
    p->last = count ? all[0] : (axis){1, 1, 1, true};
    for (int i = count - 1; i >= 1; i--) {
        if (all[i].kept) {
            p->kept[p->kept_count++] = all[i];
            p->outer *= all[i].size;
        } else {
            p->summed[p->summed_count++] = all[i];
            p->rows *= all[i].size;
        }
    }
}

static void offset(const axis *axes, int count, int64_t index, int64_t *a, int64_t *b) {
    for (int i = count - 1; i >= 0; i--) {
        int64_t at = index % axes[i].size;
        index /= axes[i].size;
        *a += at * axes[i].step_a;
        *b += at * axes[i].step_b;
    }
}

// Rows [from, to) of one result row, columns [first, first + n), into sum.
static void sum_rows(const plan *p, const mel_tensor *a, const mel_tensor *b, int64_t outer, int64_t from, int64_t to,
    int64_t first, int64_t n, float *sum) {
    const row_kernels *rows = mel_rows();
    const train_kernels *k = mel_train_rows();
    int64_t size_a = mel_dtype_size(a->dtype);
    float fa[PIECE], fb[PIECE];
    for (int64_t r = from; r < to; r++) {
        int64_t oa = first * p->last.step_a, ob = first * p->last.step_b;
        offset(p->kept, p->kept_count, outer, &oa, &ob);
        offset(p->summed, p->summed_count, r, &oa, &ob);
        const float *va = (const float *)(void *)(a->data + oa * size_a);
        if (a->dtype != MEL_F32) {
            rows->load((int)a->dtype, a->data + oa * size_a, fa, n);
            va = fa;
        }
        if (b) {
            mel_load_strided(b->dtype, b->data + ob * mel_dtype_size(b->dtype), p->last.step_b, fb, n);
            if (p->last.step_b == 0)
                for (int64_t i = 1; i < n; i++)
                    fb[i] = fb[0];
        }
        if (p->last.kept)
            k->accumulate(sum, va, b ? fb : NULL, n);
        else
            *sum += b ? k->dot(va, fb, n) : rows->sum(va, n);
    }
}

mel_status mel_sum_to(
    const mel_tensor *a, const mel_tensor *b, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    MEL_SPAN("sum to");
    char sa[128], sb[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_float(a, "sum_to", err);
    if (!s && b) s = mel_need_float(b, "sum_to", err);
    if (s) return s;
    int64_t step_b[MEL_MAX_DIMS] = {0};
    bool fits = ndim >= 0 && ndim <= a->ndim;
    for (int i = 0; i < a->ndim && fits; i++) {
        int j = i - (a->ndim - ndim);
        fits = j < 0 || shape[j] == a->shape[i] || shape[j] == 1;
    }
    if (!fits)
        return mel_fail(err, MEL_EINVAL, "sum_to: %s does not come from the shape asked for",
            mel_tensor_shape_text(a, sa, sizeof sa));
    if (b && !mel_broadcast_strides(b, a->ndim, a->shape, step_b))
        return mel_fail(err, MEL_EINVAL, "sum_to: %s does not stretch to %s", mel_tensor_shape_text(b, sb, sizeof sb),
            mel_tensor_shape_text(a, sa, sizeof sa));
    mel_tensor *dense = NULL, *y = NULL;
    float *partial = NULL;
    plan p;
    s = mel_tensor_contiguous(a, &dense, err);
    if (!s) s = mel_tensor_zeros(MEL_F32, ndim, shape, &y, err);
    if (!s && mel_tensor_numel(a) > 0) {
        // Without b its steps must not keep axes from merging: a's own serve.
        make_plan(dense, b ? step_b : dense->strides, ndim, shape, &p);
        int64_t width = p.last.kept ? p.last.size : 1, pieces = (p.last.size + PIECE - 1) / PIECE;
        int64_t chunks = (p.rows + CHUNK - 1) / CHUNK;
        // A summed last axis has a partial sum a piece.
        int64_t slots = p.last.kept ? chunks : chunks * pieces;
        float *into = (float *)(void *)y->data;
        if (slots > 1) {
            partial = into = mel_alloc_zero((size_t)(slots * p.outer * width) * 4, err);
            if (!into) s = MEL_ENOMEM;
        }
        int64_t tasks = s ? 0 : p.outer * chunks * pieces;
        int threads = mel_tensor_numel(a) >= MEL_PARALLEL_FROM ? mel_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t t = 0; t < tasks; t++) {
            int64_t piece = t % pieces, chunk = t / pieces % chunks, outer = t / pieces / chunks;
            int64_t first = piece * PIECE, n = p.last.size - first < PIECE ? p.last.size - first : PIECE;
            int64_t to = (chunk + 1) * CHUNK < p.rows ? (chunk + 1) * CHUNK : p.rows;
            int64_t slot = p.last.kept ? chunk : chunk * pieces + piece;
            float *sum = into + (slot * p.outer + outer) * width + (p.last.kept ? first : 0);
            sum_rows(&p, dense, b, outer, chunk * CHUNK, to, first, n, sum);
        }
        for (int64_t i = 0; i < slots && partial; i++)
            mel_train_rows()->accumulate(
                (float *)(void *)y->data, partial + i * p.outer * width, NULL, p.outer * width);
    }
    mel_free(partial);
    mel_tensor_unref(dense);
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}

mel_status mel_scatter_add(
    const mel_tensor *dy, const mel_tensor *ids, int64_t rows, mel_tensor **out, mel_error *err) {
    MEL_SPAN("scatter add");
    char sy[128], si[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_float(dy, "scatter_add", err);
    if (s) return s;
    if ((ids->dtype != MEL_I64 && ids->dtype != MEL_S32) || ids->ndim > dy->ndim || rows < 0 ||
        memcmp(ids->shape, dy->shape, sizeof(int64_t) * (size_t)ids->ndim) != 0)
        return mel_fail(err, MEL_EINVAL, "scatter_add: dy is %s, ids are %s %s, into %lld rows",
            mel_tensor_shape_text(dy, sy, sizeof sy), mel_dtype_name(ids->dtype),
            mel_tensor_shape_text(ids, si, sizeof si), (long long)rows);
    int64_t shape[MEL_MAX_DIMS], width = 1, n = mel_tensor_numel(ids);
    int ndim = 1 + dy->ndim - ids->ndim;
    if (ndim > MEL_MAX_DIMS) return mel_fail(err, MEL_EINVAL, "scatter_add: %d dimensions", ndim);
    shape[0] = rows;
    for (int i = 1; i < ndim; i++) {
        shape[i] = dy->shape[ids->ndim + i - 1];
        width *= shape[i];
    }
    mel_tensor *dense = NULL, *index = NULL, *y = NULL;
    s = mel_tensor_contiguous(dy, &dense, err);
    if (!s) s = mel_tensor_cast(ids, MEL_I64, &index, err);
    mel_tensor *flat = NULL;
    if (!s) s = mel_tensor_contiguous(index, &flat, err);
    if (!s) s = mel_tensor_zeros(MEL_F32, ndim, shape, &y, err);
    const int64_t *id = s ? NULL : (const int64_t *)(void *)flat->data;
    for (int64_t i = 0; i < n && !s; i++)
        if (id[i] < 0 || id[i] >= rows)
            s = mel_fail(err, MEL_EINVAL, "scatter_add: id %lld at %lld is outside 0..%lld", (long long)id[i],
                (long long)i, (long long)rows - 1);
    if (!s) {
        int64_t pieces = (width + PIECE / 4 - 1) / (PIECE / 4), size = mel_dtype_size(dense->dtype);
        int threads = mel_tensor_numel(dy) >= MEL_PARALLEL_FROM ? mel_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t piece = 0; piece < pieces; piece++) {
            int64_t first = piece * (PIECE / 4), w = width - first < PIECE / 4 ? width - first : PIECE / 4;
            float row[PIECE / 4];
            for (int64_t i = 0; i < n; i++) {
                mel_rows()->load((int)dense->dtype, dense->data + (i * width + first) * size, row, w);
                mel_train_rows()->accumulate((float *)(void *)y->data + id[i] * width + first, row, NULL, w);
            }
        }
    }
    mel_tensor_unref(dense);
    mel_tensor_unref(index);
    mel_tensor_unref(flat);
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}
