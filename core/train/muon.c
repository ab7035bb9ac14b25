// Muon (K. Jordan et al. 2024): momentum made orthogonal by five steps of Newton and Schulz, x <- (A + B s + C s^2) x
// with s = x x'. Matrices are worked on with their longer side across, padded to whole vectors; s and its square are
// symmetric, so that only their upper panels are multiplied. Every sum has a fixed order: the same bits for any number
// of threads.
#include "base/span.h"
#include "kernels/attention.h"
#include "train/train.h"

#include <math.h>
#include <string.h>

enum {
    STEPS = 5,
    CHUNK = 8192, // elements of a partial sum
    ROWS = 96,    // rows of a task of a product
    DEPTH = 256,  // of a product at a time, so that a panel stays near
    PIECE = 1024  // floats of a row on the stack
};
static const float A = 3.4445f, B = -4.7750f, C = 2.0315f;

typedef struct job {
    const attention_kernels *kernels;
    mel_dtype operand;
    int64_t size; // bytes of an operand
    int64_t n, k; // sides, n <= k, rounded up to vectors
    char *x;      // operands [n][k]
    char *panels; // of x, as columns or as rows
    char *gram;   // operands [n][n]: s, then A + B s + C s^2
    char *inner;  // operands [n][n]: B + C s
    char *inner_panels;
    float *c; // result of a product, [n][n] or [n][k]
} job;

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// dst [columns][ldd] operands = src [rows][lds] transposed.
static void turn(const job *j, const float *src, int64_t rows, int64_t columns, int64_t lds, char *dst, int64_t ldd) {
    if (j->operand == MEL_BF16)
        mel_train_rows()->transpose_bf16(src, rows, columns, lds, (uint16_t *)(void *)dst, ldd);
    else
        mel_train_rows()->transpose32(
            (const uint32_t *)(const void *)src, rows, columns, lds, (uint32_t *)(void *)dst, ldd);
}

// Rows of operands [count][depth] as the panel of which they are the columns.
static void pack_columns(const job *j, const char *rows, int64_t count, int64_t depth, char *panel) {
    const int64_t units = depth / j->kernels->pairs;
    mel_train_rows()->transpose32(
        (const uint32_t *)(const void *)rows, count, units, units, (uint32_t *)(void *)panel, count);
}

// Columns [first, first + count) of x as a panel of x's rows.
static void pack_rows(const job *j, int64_t first, int64_t count) {
    char *panel = j->panels + first * j->n * j->size;
    for (int64_t i = 0; i < j->n; i += j->kernels->pairs) {
        const char *row = j->x + (i * j->k + first) * j->size;
        if (j->kernels->pairs == 1) {
            memcpy(panel + i * count * j->size, row, (size_t)(count * j->size));
            continue;
        }
        const uint16_t *low = (const uint16_t *)(const void *)row, *high = low + j->k;
        uint32_t *pairs = (uint32_t *)(void *)(panel + i * count * j->size);
        for (int64_t c = 0; c < count; c++)
            pairs[c] = low[c] | (uint32_t)high[c] << 16;
    }
}

// ---- the passes of a step; all threads of a team come by, and leave together ---------------------------------------

// c [n][columns] = a [n][depth] b, of panels; upper: those elements alone whose panel ends at their row or after it.
static void multiply(const job *j, const char *a, int64_t depth, const char *panels, int64_t columns, bool upper) {
    const int64_t panel = j->kernels->panel, blocks = (j->n + ROWS - 1) / ROWS;
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < (columns + panel - 1) / panel * blocks; t++) {
        int64_t at = t / blocks * panel, width = least(panel, columns - at), first = t % blocks * ROWS;
        int64_t m = least(first + ROWS, upper ? at + width : j->n) - first;
        for (int64_t d = 0; d < depth && m > 0; d += DEPTH)
            j->kernels->product(m, width, least(DEPTH, depth - d), a + (first * depth + d) * j->size, depth,
                panels + (at * depth + d * width) * j->size, j->c + first * columns + at, columns, d > 0);
    }
}

// gram = c + diagonal I from c's upper panels.
static void symmetric(const job *j, float diagonal) {
    const int64_t panel = j->kernels->panel, n = j->n;
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < n; first += panel) {
        int64_t after = least(first + panel, n);
        for (int64_t i = first; i < after; i++) {
            j->c[i * n + i] += diagonal;
            mel_rows()->store((int)j->operand, j->c + i * n + first, j->gram + (i * n + first) * j->size, n - first);
        }
        turn(j, j->c + first * n + after, after - first, n - after, n, j->gram + (after * n + first) * j->size, n);
    }
}

static void make_inner(const job *j) {
    const int64_t panel = j->kernels->panel, n = j->n;
    const row_kernels *rows = mel_rows();
    float buffer[PIECE];
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < n; first += panel) {
        int64_t after = least(first + panel, n);
        for (int64_t i = first; i < after; i++)
            for (int64_t from = 0; from < n; from += PIECE) {
                int64_t count = least(PIECE, n - from), at = (i * n + from) * j->size;
                rows->load((int)j->operand, j->gram + at, buffer, count);
                for (int64_t c = 0; c < count; c++)
                    buffer[c] *= C;
                if (i >= from && i < from + count) buffer[i - from] += B;
                rows->store((int)j->operand, buffer, j->inner + at, count);
            }
        pack_columns(j, j->inner + first * n * j->size, after - first, n, j->inner_panels + first * n * j->size);
    }
}

static void pack_x(const job *j, bool as_columns) {
    const int64_t panel = j->kernels->panel, across = as_columns ? j->n : j->k;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < across; first += panel) {
        int64_t count = least(panel, across - first), at = first * j->k * j->size;
        if (as_columns)
            pack_columns(j, j->x + at, count, j->k, j->panels + at);
        else
            pack_rows(j, first, count);
    }
}

static void iterate(const job *j) {
    for (int step = 0; step < STEPS; step++) {
        if (step > 0) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < j->n; i++)
                mel_rows()->store((int)j->operand, j->c + i * j->k, j->x + i * j->k * j->size, j->k);
        }
        pack_x(j, true);
        multiply(j, j->x, j->k, j->panels, j->n, true);
        symmetric(j, 0);
        make_inner(j);
        multiply(j, j->gram, j->n, j->inner_panels, j->n, true);
        symmetric(j, A);
        pack_x(j, false);
        multiply(j, j->gram, j->n, j->panels, j->k, false);
    }
}

// x [rows][columns] made orthogonal, in place; square: the sum of its squares.
static mel_status orthogonal(
    float *x, int64_t rows, int64_t columns, double square, mel_dtype compute, mel_error *err) {
    const bool wide = rows <= columns;
    job j = {.kernels = mel_product_kernels(compute)};
    j.operand = j.kernels->pairs == 2 ? MEL_BF16 : MEL_F32;
    j.size = mel_dtype_size(j.operand);
    j.n = round_up(wide ? rows : columns, j.kernels->width);
    j.k = round_up(wide ? columns : rows, j.kernels->width);
    if (j.k > INT64_MAX / 64 / j.n) return mel_fail(err, MEL_EINVAL, "muon: a matrix of %lld rows", (long long)rows);
    // In this order from the start: every part is a multiple of 16 elements.
    int64_t side = round_up(j.n * j.n * j.size, 64), all = round_up(j.n * j.k * j.size, 64);
    char *room = mel_alloc((size_t)(2 * all + 3 * side + j.n * j.k * 4), err);
    if (!room) return MEL_ENOMEM;
    j.x = room;
    j.panels = j.x + all;
    j.gram = j.panels + all;
    j.inner = j.gram + side;
    j.inner_panels = j.inner + side;
    j.c = (float *)(void *)(j.inner_panels + side);
    const float scale = (float)(1 / (sqrt(square) + 1e-7));
    for (int64_t i = 0; i < rows * columns; i++)
        x[i] *= scale;
    memset(j.x, 0, (size_t)all);
    if (wide)
        for (int64_t i = 0; i < rows; i++)
            mel_rows()->store((int)j.operand, x + i * columns, j.x + i * j.k * j.size, columns);
    else
        turn(&j, x, rows, columns, columns, j.x, j.k);
    int threads = j.n * j.n * j.k >= 1 << 21 ? mel_threads() : 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    iterate(&j);
    if (wide)
        for (int64_t i = 0; i < rows; i++)
            memcpy(x + i * columns, j.c + i * j.k, (size_t)columns * 4);
    else
        mel_train_rows()->transpose32(
            (const uint32_t *)(void *)j.c, columns, rows, j.k, (uint32_t *)(void *)x, columns);
    mel_free(room);
    return MEL_OK;
}

mel_status mel_orthogonal(const mel_tensor *x, mel_dtype compute, mel_tensor **out, mel_error *err) {
    MEL_SPAN("orthogonal");
    char text[128];
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_float(x, "orthogonal", err);
    if (!s && (x->ndim != 2 || mel_tensor_numel(x) == 0))
        s = mel_fail(
            err, MEL_EINVAL, "orthogonal: x is %s, a matrix is wanted", mel_tensor_shape_text(x, text, sizeof text));
    if (!s && compute == MEL_SAME) compute = mel_compute();
    if (!s && compute != MEL_F32 && compute != MEL_BF16)
        s = mel_fail(err, MEL_EINVAL, "orthogonal: compute in f32 or bf16, not %s", mel_dtype_name(compute));
    mel_tensor *y = NULL;
    double square = 0;
    if (!s) s = mel_tensor_create(MEL_F32, 2, x->shape, &y, err);
    if (!s) s = mel_tensor_copy(y, x, err);
    if (!s) s = mel_reduce_all(MEL_SUMSQ, y, &square, err);
    if (!s) s = orthogonal((float *)(void *)y->data, x->shape[0], x->shape[1], square, compute, err);
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}

mel_status mel_muon_step(
    const mel_muon *o, mel_tensor *param, const mel_tensor *grad, mel_tensor *m, mel_tensor *ema, mel_error *err) {
    MEL_SPAN("muon");
    mel_tensor *const state[] = {param, m, ema};
    static const char *const names[] = {"the parameter", "m", "the moving average"};
    mel_status s = mel_need_same(param, "the parameter", grad, "the gradient", "muon", err);
    for (int i = 0; i < 3 && !s; i++)
        if (state[i]) s = mel_need_state(param, state[i], names[i], "muon", err);
    if (!s && !(o->lr >= 0 && o->momentum >= 0 && o->momentum < 1 && o->weight_decay >= 0 && o->ema_decay >= 0 &&
                  o->ema_decay <= 1))
        s = mel_fail(err, MEL_EINVAL, "muon: lr %g, momentum %g, decay %g, EMA %g", o->lr, o->momentum, o->weight_decay,
            o->ema_decay);
    if (s) return s;
    const int64_t count = mel_tensor_numel(param), chunks = (count + CHUNK - 1) / CHUNK;
    if (param->ndim < 2 || count == 0) return mel_fail(err, MEL_EINVAL, "muon: the parameter is no matrix");
    mel_tensor *cast = NULL, *g = NULL;
    s = mel_tensor_cast(grad, MEL_F32, &cast, err);
    if (!s) s = mel_tensor_contiguous(cast, &g, err);
    mel_tensor_unref(cast);
    float *room = NULL;
    if (!s && !(room = mel_alloc((size_t)(count + round_up(chunks, 16)) * 4, err))) s = MEL_ENOMEM;
    float *partial = room, *u = room + round_up(chunks, 16), *pm = (float *)(void *)m->data;
    if (!s) {
        // The momentum itself changes last, so that a step without memory leaves everything as it was.
        const float keep = (float)o->momentum, share = (float)(o->grad_scale * (1 - o->momentum));
        const float *pg = (const float *)(void *)g->data;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (count >= MEL_PARALLEL_FROM)
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t first = c * CHUNK, after = least(first + CHUNK, count);
            for (int64_t i = first; i < after; i++)
                u[i] = keep * (keep * pm[i] + share * pg[i]) + share * pg[i];
            partial[c] = mel_train_rows()->dot(u + first, u + first, after - first);
        }
        double square = 0;
        for (int64_t c = 0; c < chunks; c++)
            square += partial[c];
        const int64_t rows = param->shape[0], columns = count / rows;
        s = orthogonal(u, rows, columns, square, mel_compute(), err);
        const float size = (float)(0.2 * sqrt((double)(rows > columns ? rows : columns)) * o->lr);
        const float rest = (float)(1 - o->lr * o->weight_decay), old = (float)o->ema_decay;
        const float new = (float)(1 - o->ema_decay);
        float *p = (float *)(void *)param->data, *e = ema ? (float *)(void *)ema->data : NULL;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (count >= MEL_PARALLEL_FROM)
        for (int64_t c = 0; c < (s ? 0 : chunks); c++) {
            const int64_t first = c * CHUNK, after = least(first + CHUNK, count);
            for (int64_t i = first; i < after; i++) {
                pm[i] = keep * pm[i] + share * pg[i];
                p[i] = rest * p[i] - size * u[i];
            }
            for (int64_t i = first; i < after && e; i++)
                e[i] = old * e[i] + new *p[i];
        }
    }
    mel_free(room);
    mel_tensor_unref(g);
    return s;
}
