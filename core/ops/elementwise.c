// Elementwise functions, broadcasting arithmetic, reductions over everything.
#include "ops/ops.h"

#include <math.h>
#include <string.h>

_Static_assert((int)K_SIGMOID == (int)MEL_ACT_SIGMOID && (int)K_RECIP == (int)MEL_RECIP && (int)K_POW == (int)MEL_POW,
    "operation codes agree");

enum {
    CHUNK = 1024
};

mel_status mel_need_float(const mel_tensor *x, const char *what, mel_error *err) {
    if (mel_is_float(x->dtype)) return MEL_OK;
    return mel_fail(err, MEL_EINVAL, "%s: a float tensor is wanted, not %s", what, mel_dtype_name(x->dtype));
}

mel_status mel_out_dtype(const mel_tensor *x, mel_dtype asked, const char *what, mel_dtype *out, mel_error *err) {
    mel_status s = mel_need_float(x, what, err);
    if (s) return s;
    mel_dtype d = asked == MEL_SAME ? x->dtype : asked;
    if (!mel_is_float(d))
        return mel_fail(err, MEL_EINVAL, "%s: the output is f32, bf16 or f16, not %s", what, mel_dtype_name(d));
    *out = d;
    return MEL_OK;
}

mel_status mel_vector(
    const mel_tensor *t, int64_t n, const char *what, const char *name, mel_tensor **out, mel_error *err) {
    char shape[128];
    *out = NULL;
    if (!t) return MEL_OK;
    if (!mel_is_float(t->dtype) || mel_tensor_numel(t) != n)
        return mel_fail(err, MEL_EINVAL, "%s: %s is %s %s, %lld floats are wanted", what, name,
            mel_dtype_name(t->dtype), mel_tensor_shape_text(t, shape, sizeof shape), (long long)n);
    return mel_tensor_cast(t, MEL_F32, out, err);
}

// ---- one operand ------------------------------------------------------------------------------------

typedef struct map_job {
    enum {
        MAP_ACT,
        MAP_UNARY,
        MAP_SCALAR,
        MAP_CLAMP
    } kind;
    int op;
    float a, b;
    bool reversed;
} map_job;

static void map_chunk(const map_job *job, float *x, int64_t n) {
    const row_kernels *k = mel_rows();
    switch (job->kind) {
    case MAP_ACT: k->act(job->op, x, n); break;
    case MAP_UNARY: k->unary(job->op, x, n); break;
    case MAP_SCALAR:
        if (job->reversed)
            k->binary(job->op, &job->a, 0, x, 1, x, n);
        else
            k->binary(job->op, x, 1, &job->a, 0, x, n);
        break;
    default: k->binary(K_MAX, x, 1, &job->a, 0, x, n); k->binary(K_MIN, x, 1, &job->b, 0, x, n);
    }
}

static mel_status map(
    const mel_tensor *x, const map_job *job, mel_dtype dtype, const char *what, mel_tensor **out, mel_error *err) {
    MEL_SPAN(what);
    mel_dtype dst;
    mel_tensor *src = NULL, *y = NULL;
    mel_status s = mel_out_dtype(x, dtype, what, &dst, err);
    if (!s) s = mel_tensor_contiguous(x, &src, err);
    if (!s) s = mel_tensor_like(src, dst, &y, err);
    if (!s) {
        int64_t n = mel_tensor_numel(src), chunks = (n + CHUNK - 1) / CHUNK;
        int64_t ss = mel_dtype_size(src->dtype), ds = mel_dtype_size(dst);
        const row_kernels *k = mel_rows();
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n >= MEL_PARALLEL_FROM)
        for (int64_t c = 0; c < chunks; c++) {
            float buffer[CHUNK];
            int64_t first = c * CHUNK, m = n - first < CHUNK ? n - first : CHUNK;
            k->load((int)src->dtype, src->data + first * ss, buffer, m);
            map_chunk(job, buffer, m);
            k->store((int)dst, buffer, y->data + first * ds, m);
        }
        *out = y;
    }
    mel_tensor_unref(src);
    return s;
}

mel_status mel_activate(mel_act act, const mel_tensor *x, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    if ((unsigned)act > MEL_ACT_SIGMOID) return mel_fail(err, MEL_EINVAL, "activate: unknown activation %d", (int)act);
    return map(x, &(map_job){.kind = MAP_ACT, .op = (int)act}, dtype, "activate", out, err);
}

mel_status mel_unary(mel_unary_op op, const mel_tensor *x, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    if ((unsigned)op > MEL_RECIP) return mel_fail(err, MEL_EINVAL, "unary: unknown operation %d", (int)op);
    return map(x, &(map_job){.kind = MAP_UNARY, .op = (int)op}, dtype, "unary", out, err);
}

mel_status mel_binary_scalar(
    mel_binary_op op, const mel_tensor *a, double s, bool reversed, mel_tensor **out, mel_error *err) {
    if ((unsigned)op > MEL_POW) return mel_fail(err, MEL_EINVAL, "arithmetic: unknown operation %d", (int)op);
    map_job job = {.kind = MAP_SCALAR, .op = (int)op, .a = (float)s, .reversed = reversed};
    return map(a, &job, MEL_SAME, "arithmetic", out, err);
}

mel_status mel_clamp(const mel_tensor *x, double low, double high, mel_tensor **out, mel_error *err) {
    if (!(low <= high)) return mel_fail(err, MEL_EINVAL, "clamp: %g..%g is no range", low, high);
    return map(x, &(map_job){.kind = MAP_CLAMP, .a = (float)low, .b = (float)high}, MEL_SAME, "clamp", out, err);
}

// ---- two operands -------------------------------------------------------------------------------------

static mel_status broadcast_shape(const mel_tensor *a, const mel_tensor *b, int *ndim, int64_t *shape, mel_error *err) {
    int n = a->ndim > b->ndim ? a->ndim : b->ndim;
    for (int i = 0; i < n; i++) {
        int ia = i - (n - a->ndim), ib = i - (n - b->ndim);
        int64_t da = ia >= 0 ? a->shape[ia] : 1, db = ib >= 0 ? b->shape[ib] : 1;
        if (da != db && da != 1 && db != 1) {
            char sa[128], sb[128];
            return mel_fail(err, MEL_EINVAL, "arithmetic: %s and %s do not broadcast",
                mel_tensor_shape_text(a, sa, sizeof sa), mel_tensor_shape_text(b, sb, sizeof sb));
        }
        shape[i] = da == 1 ? db : da;
    }
    *ndim = n;
    return MEL_OK;
}

// A piece of a row, and how to cut rows so that one long row is shared out too. Cuts do not depend on threads.
static int64_t piece_of(const mel_walk *w) {
    return w->width > 16 * CHUNK ? 16 * CHUNK : w->width > 0 ? w->width : 1;
}

mel_status mel_binary(mel_binary_op op, const mel_tensor *a, const mel_tensor *b, mel_tensor **out, mel_error *err) {
    MEL_SPAN("arithmetic");
    if ((unsigned)op > MEL_POW) return mel_fail(err, MEL_EINVAL, "arithmetic: unknown operation %d", (int)op);
    mel_status s = mel_need_float(a, "arithmetic", err);
    if (!s) s = mel_need_float(b, "arithmetic", err);
    int ndim = 0;
    int64_t shape[MEL_MAX_DIMS];
    if (!s) s = broadcast_shape(a, b, &ndim, shape, err);
    mel_tensor *y;
    if (!s) s = mel_tensor_create(a->dtype == b->dtype ? a->dtype : MEL_F32, ndim, shape, &y, err);
    if (s) return s;
    mel_walk w;
    mel_walk_init(&w, ndim, shape);
    memcpy(w.strides[0], y->strides, sizeof w.strides[0]);
    mel_broadcast_strides(a, ndim, shape, w.strides[1]);
    mel_broadcast_strides(b, ndim, shape, w.strides[2]);
    mel_walk_merge(&w, 3);
    int64_t sa = mel_dtype_size(a->dtype), sb = mel_dtype_size(b->dtype), sy = mel_dtype_size(y->dtype);
    int64_t ta = w.strides[1][w.ndim - 1], tb = w.strides[2][w.ndim - 1];
    int64_t piece = piece_of(&w), pieces = (w.width + piece - 1) / piece;
    const row_kernels *k = mel_rows();
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (w.rows * w.width >= MEL_PARALLEL_FROM)
    for (int64_t job = 0; job < w.rows * pieces; job++) {
        int64_t row = job / pieces, from = job % pieces * piece;
        int64_t to = from + piece < w.width ? from + piece : w.width;
        int64_t oy = mel_walk_offset(&w, 0, row), oa = mel_walk_offset(&w, 1, row), ob = mel_walk_offset(&w, 2, row);
        float fa[CHUNK], fb[CHUNK];
        for (int64_t i = from; i < to; i += CHUNK) {
            int64_t n = to - i < CHUNK ? to - i : CHUNK;
            mel_load_strided(a->dtype, a->data + (oa + i * ta) * sa, ta, fa, ta ? n : 1);
            mel_load_strided(b->dtype, b->data + (ob + i * tb) * sb, tb, fb, tb ? n : 1);
            k->binary((int)op, fa, ta != 0, fb, tb != 0, fa, n);
            k->store((int)y->dtype, fa, y->data + (oy + i) * sy, n);
        }
    }
    *out = y;
    return MEL_OK;
}

mel_status mel_add_inplace(mel_tensor *y, double alpha, const mel_tensor *x, const mel_tensor *gate, mel_error *err) {
    MEL_SPAN("add in place");
    char sy[128], sx[128];
    mel_status s = mel_need_float(y, "add in place", err);
    if (!s) s = mel_need_float(x, "add in place", err);
    if (!s && gate) s = mel_need_float(gate, "add in place", err);
    if (s) return s;
    if (!y->writable) return mel_fail(err, MEL_EINVAL, "add in place: the tensor is read-only");
    mel_walk w;
    mel_walk_init(&w, y->ndim, y->shape);
    memcpy(w.strides[0], y->strides, sizeof w.strides[0]);
    const mel_tensor *misfit = !mel_broadcast_strides(x, y->ndim, y->shape, w.strides[1])              ? x
                               : gate && !mel_broadcast_strides(gate, y->ndim, y->shape, w.strides[2]) ? gate
                                                                                                       : NULL;
    if (misfit)
        return mel_fail(err, MEL_EINVAL, "add in place: %s does not stretch to %s",
            mel_tensor_shape_text(misfit, sx, sizeof sx), mel_tensor_shape_text(y, sy, sizeof sy));
    if (mel_tensor_numel(y) == 0) return MEL_OK;
    mel_walk_merge(&w, gate ? 3 : 2);
    int last = w.ndim - 1;
    int64_t ty = w.strides[0][last], tx = w.strides[1][last], tg = w.strides[2][last];
    int64_t size_y = mel_dtype_size(y->dtype), size_x = mel_dtype_size(x->dtype);
    int64_t size_g = gate ? mel_dtype_size(gate->dtype) : 0;
    int64_t piece = piece_of(&w), pieces = (w.width + piece - 1) / piece;
    const row_kernels *k = mel_rows();
    bool direct = y->dtype == MEL_F32 && ty == 1;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (w.rows * w.width >= MEL_PARALLEL_FROM)
    for (int64_t job = 0; job < w.rows * pieces; job++) {
        int64_t row = job / pieces, from = job % pieces * piece;
        int64_t to = from + piece < w.width ? from + piece : w.width;
        int64_t oy = mel_walk_offset(&w, 0, row), ox = mel_walk_offset(&w, 1, row);
        int64_t og = gate ? mel_walk_offset(&w, 2, row) : 0;
        float fy[CHUNK], fx[CHUNK], fg[CHUNK];
        for (int64_t i = from; i < to; i += CHUNK) {
            int64_t n = to - i < CHUNK ? to - i : CHUNK;
            char *py = y->data + (oy + i * ty) * size_y;
            mel_load_strided(x->dtype, x->data + (ox + i * tx) * size_x, tx, fx, tx ? n : 1);
            if (gate) mel_load_strided(gate->dtype, gate->data + (og + i * tg) * size_g, tg, fg, tg ? n : 1);
            if (direct) {
                k->axpy((float *)py, (float)alpha, fx, tx != 0, gate ? fg : NULL, tg != 0, n);
                continue;
            }
            mel_load_strided(y->dtype, py, ty, fy, n);
            k->axpy(fy, (float)alpha, fx, tx != 0, gate ? fg : NULL, tg != 0, n);
            if (ty == 1)
                k->store((int)y->dtype, fy, py, n);
            else
                for (int64_t j = 0; j < n; j++)
                    k->store((int)y->dtype, fy + j, py + j * ty * size_y, 1);
        }
    }
    return MEL_OK;
}

// ---- over everything ------------------------------------------------------------------------------------

// Visits all elements as floats, in chunks that do not depend on threads; partial results are added in order.
typedef double (*chunk_fn)(const float *a, const float *b, int64_t n);

static double chunk_sum(const float *a, const float *b, int64_t n) {
    (void)b;
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += a[i];
    return s;
}

// In eight sums, so that one addition need not wait for the last.
static double chunk_dot(const float *a, const float *b, int64_t n) {
    double s[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            s[j] += (double)a[i + j] * b[i + j];
    for (int j = 0; i < n; i++, j++)
        s[j] += (double)a[i] * b[i];
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

static double chunk_sumsq(const float *a, const float *b, int64_t n) {
    (void)b;
    return chunk_dot(a, a, n);
}

static double chunk_max(const float *a, const float *b, int64_t n) {
    (void)b;
    return mel_rows()->max(a, n);
}

static double chunk_min(const float *a, const float *b, int64_t n) {
    (void)b;
    float m = a[0];
    for (int64_t i = 1; i < n; i++)
        m = a[i] < m ? a[i] : m;
    return m;
}

static double chunk_nonfinite(const float *a, const float *b, int64_t n) {
    (void)b;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        count += !isfinite(a[i]);
    return (double)count;
}

static mel_status over_all(
    const mel_tensor *a, const mel_tensor *b, chunk_fn fn, int combine, double *out, mel_error *err) {
    MEL_SPAN("reduce all");
    mel_tensor *da = NULL, *db = NULL;
    mel_status s = mel_tensor_contiguous(a, &da, err);
    if (!s && b) s = mel_tensor_contiguous(b, &db, err);
    int64_t n = mel_tensor_numel(a), chunks = (n + CHUNK - 1) / CHUNK;
    double *partial = NULL;
    if (!s && !(partial = mel_alloc((size_t)chunks * sizeof *partial, err))) s = MEL_ENOMEM;
    if (!s) {
        const row_kernels *k = mel_rows();
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (n >= MEL_PARALLEL_FROM)
        for (int64_t c = 0; c < chunks; c++) {
            float fa[CHUNK], fb[CHUNK];
            int64_t first = c * CHUNK, m = n - first < CHUNK ? n - first : CHUNK;
            k->load((int)da->dtype, da->data + first * mel_dtype_size(da->dtype), fa, m);
            if (db) k->load((int)db->dtype, db->data + first * mel_dtype_size(db->dtype), fb, m);
            partial[c] = fn(fa, fb, m);
        }
        double total = chunks ? partial[0] : 0;
        for (int64_t c = 1; c < chunks; c++)
            total = combine == MEL_REDUCE_MAX   ? fmax(total, partial[c])
                    : combine == MEL_REDUCE_MIN ? fmin(total, partial[c])
                                                : total + partial[c];
        *out = total;
    }
    mel_free(partial);
    mel_tensor_unref(da);
    mel_tensor_unref(db);
    return s;
}

mel_status mel_reduce_all(mel_reduce_op op, const mel_tensor *x, double *out, mel_error *err) {
    static const chunk_fn fns[] = {chunk_sum, chunk_sum, chunk_max, chunk_min, chunk_sumsq};
    if ((unsigned)op > MEL_SUMSQ) return mel_fail(err, MEL_EINVAL, "reduce: unknown operation %d", (int)op);
    int64_t n = mel_tensor_numel(x);
    if (n == 0 && op != MEL_SUM && op != MEL_SUMSQ)
        return mel_fail(err, MEL_EINVAL, "reduce: the tensor is empty, it has no mean, maximum or minimum");
    double total;
    mel_status s = over_all(x, NULL, fns[op], (int)op, &total, err);
    if (!s) *out = op == MEL_MEAN ? total / (double)n : total;
    return s;
}

mel_status mel_dot(const mel_tensor *a, const mel_tensor *b, double *out, mel_error *err) {
    char sa[128], sb[128];
    if (a->ndim != b->ndim || memcmp(a->shape, b->shape, sizeof(int64_t) * (size_t)a->ndim) != 0)
        return mel_fail(err, MEL_EINVAL, "dot: %s and %s differ", mel_tensor_shape_text(a, sa, sizeof sa),
            mel_tensor_shape_text(b, sb, sizeof sb));
    return over_all(a, b, chunk_dot, MEL_SUM, out, err);
}

mel_status mel_count_nonfinite(const mel_tensor *x, int64_t *out, mel_error *err) {
    double count;
    mel_status s = over_all(x, NULL, chunk_nonfinite, MEL_SUM, &count, err);
    if (!s) *out = (int64_t)count;
    return s;
}
