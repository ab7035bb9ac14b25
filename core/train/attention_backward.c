// Backward of scaled-dot-product attention. For a block of queries of one head the scores against all keys are computed
// again, P = softmax(S); then dV += P^T dO, dS = P (dO V^T - rowsum(P dO V^T)), dQ = scale dS K, dK += scale dS^T Q
// (Dao et al. 2022, Appendix B.4). Heads are tasks of their own, and samples too unless they share a bias whose
// gradient is wanted; within a task the order is fixed.
#include "base/span.h"
#include "kernels/attention.h"
#include "train/train.h"

#include <math.h>
#include <string.h>

enum {
    QUERIES = 96
};

typedef struct job {
    const mel_tensor *q, *k, *v, *dout; // last axis dense
    mel_tensor *dq, *dk, *dv, *dbias;
    const mel_tensor *bias;
    const float *key_bias;
    int64_t key_bias_step;
    const attention_kernels *kernels;
    mel_dtype operand;
    int64_t size; // bytes of an operand
    int64_t lq, lk, d;
    int64_t depth, width; // d rounded up to pairs, to a panel's vectors
    int64_t keys;         // lk rounded up to a panel's vectors (and so to pairs)
    float scale;
    bool causal;
} job;

typedef struct scratch {
    char *k_rows, *v_rows;      // panels B[depth][key] of k and of v
    char *k_panels;             // panels B[key][channel]
    char *q_rows, *do_rows;     // [QUERIES][depth] operands
    char *q_panels, *do_panels; // panels B[query][channel]
    char *ds, *turned;          // operands [QUERIES][keys] and transposed [keys][QUERIES]
    float *p, *dp;              // [QUERIES][keys]
    float *dq, *dk, *dv;        // [QUERIES][width], [keys][width] twice
    float *buffer;
} scratch;

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static void *take(char **p, int64_t bytes) {
    void *here = *p;
    *p += round_up(bytes, 64);
    return here;
}

static int64_t cut(const job *j, char *base, scratch *w) {
    char *p = base;
    w->k_rows = take(&p, j->keys * j->depth * j->size);
    w->v_rows = take(&p, j->keys * j->depth * j->size);
    w->k_panels = take(&p, j->keys * j->width * j->size);
    w->q_rows = take(&p, QUERIES * j->depth * j->size);
    w->do_rows = take(&p, QUERIES * j->depth * j->size);
    w->q_panels = take(&p, QUERIES * j->width * j->size);
    w->do_panels = take(&p, QUERIES * j->width * j->size);
    w->ds = take(&p, QUERIES * j->keys * j->size);
    w->turned = take(&p, j->keys * QUERIES * j->size);
    w->p = take(&p, QUERIES * j->keys * 4);
    w->dp = take(&p, QUERIES * j->keys * 4);
    w->dq = take(&p, QUERIES * j->width * 4);
    w->dk = take(&p, j->keys * j->width * 4);
    w->dv = take(&p, j->keys * j->width * 4);
    w->buffer = take(&p, j->width * 4);
    return p - base;
}

static const char *at(const mel_tensor *t, int64_t b, int64_t l, int64_t h) {
    return t->data + (b * t->strides[0] + l * t->strides[1] + h * t->strides[2]) * mel_dtype_size(t->dtype);
}

// Row l of a head as `depth` operands.
static void load_row(const job *j, const mel_tensor *t, int64_t b, int64_t l, int64_t h, char *dst, float *buffer) {
    const char *src = at(t, b, l, h);
    // Rows of one head lie apart, and this is their first use in a while.
    const char *later = src + 8 * t->strides[1] * mel_dtype_size(t->dtype);
    for (int64_t i = 0; i < j->d * mel_dtype_size(t->dtype); i += 64)
        __builtin_prefetch(later + i);
    if (t->dtype == j->operand) {
        memcpy(dst, src, (size_t)(j->d * j->size));
    } else {
        mel_rows()->load((int)t->dtype, src, buffer, j->d);
        mel_rows()->store((int)j->operand, buffer, dst, j->d);
    }
    if (j->depth > j->d) memset(dst + j->d * j->size, 0, (size_t)((j->depth - j->d) * j->size));
}

// Rows of `count` values as panels B[row][channel], `rows` (a multiple of pairs) deep; panels were cleared.
static void pack_rows(const job *j, const char *row, int64_t i, int64_t rows, char *panels) {
    const int64_t panel = j->kernels->panel, pairs = j->kernels->pairs;
    for (int64_t first = 0; first < j->width; first += panel) {
        int64_t columns = j->width - first < panel ? j->width - first : panel;
        int64_t n = j->d - first < columns ? j->d - first : columns;
        char *base = panels + (first * rows + i / pairs * columns * pairs + i % pairs) * j->size;
        if (n <= 0) break;
        if (pairs == 2)
            for (int64_t c = 0; c < n; c++)
                ((uint16_t *)(void *)base)[c * 2] = ((const uint16_t *)(const void *)row)[first + c];
        else
            memcpy(base, row + first * 4, (size_t)n * 4);
    }
}

// Keys as columns: panels B[depth][key].
static void pack_column(const job *j, const char *row, int64_t i, char *panels) {
    const int64_t panel = j->kernels->panel, first = i / panel * panel;
    int64_t columns = j->keys - first < panel ? j->keys - first : panel;
    mel_pack_column(j->kernels->pairs, row, j->depth, panels + first * j->depth * j->size, columns, i - first);
}

// dst [columns][QUERIES] operands = src [m][keys] transposed; m rounded up to pairs is filled with zeros.
static void turn(const job *j, const float *src, int64_t m, int64_t padded, char *dst) {
    if (padded > m)
        for (int64_t c = 0; c < j->lk; c++)
            memset(dst + (c * QUERIES + m) * j->size, 0, (size_t)((padded - m) * j->size));
    if (j->operand == MEL_BF16) {
        mel_train_rows()->transpose_bf16(src, m, j->lk, j->keys, (uint16_t *)(void *)dst, QUERIES);
        return;
    }
    float *out = (float *)(void *)dst;
    for (int64_t r = 0; r < m; r += 16)
        for (int64_t c = 0; c < j->lk; c++)
            for (int64_t i = r; i < m && i < r + 16; i++)
                out[c * QUERIES + i] = src[i * j->keys + c];
}

static void add_row(float *s, const float *b, int64_t n) {
    if (b) mel_train_rows()->accumulate(s, b, NULL, n);
}

static void query_block(const job *j, int64_t b, int64_t h, int64_t first, const scratch *w) {
    const attention_kernels *k = j->kernels;
    const row_kernels *rows = mel_rows();
    const train_kernels *train = mel_train_rows();
    int64_t m = j->lq - first < QUERIES ? j->lq - first : QUERIES, deep = round_up(m, k->pairs);
    memset(w->q_panels, 0, (size_t)(deep * j->width * j->size));
    memset(w->do_panels, 0, (size_t)(deep * j->width * j->size));
    for (int64_t i = 0; i < m; i++) {
        char *q = w->q_rows + i * j->depth * j->size, *o = w->do_rows + i * j->depth * j->size;
        load_row(j, j->q, b, first + i, h, q, w->buffer);
        load_row(j, j->dout, b, first + i, h, o, w->buffer);
        pack_rows(j, q, i, deep, w->q_panels);
        pack_rows(j, o, i, deep, w->do_panels);
    }
    k->product(m, j->keys, j->depth, w->q_rows, j->depth, w->k_rows, w->p, j->keys, false);
    k->product(m, j->keys, j->depth, w->do_rows, j->depth, w->v_rows, w->dp, j->keys, false);
    for (int64_t i = 0; i < m; i++) {
        float *p = w->p + i * j->keys, *dp = w->dp + i * j->keys, *dbias = NULL;
        for (int64_t c = 0; c < j->lk; c++)
            p[c] *= j->scale;
        if (j->bias) {
            const int64_t *t = j->bias->strides;
            int64_t bb = j->bias->shape[0] > 1 ? b : 0, bh = j->bias->shape[1] > 1 ? h : 0;
            add_row(p, (const float *)(void *)j->bias->data + bb * t[0] + bh * t[1] + (first + i) * t[2], j->lk);
            if (j->dbias) {
                const int64_t *s = j->dbias->shape;
                dbias = (float *)(void *)j->dbias->data + ((bb * s[1] + bh) * s[2] + first + i) * s[3];
            }
        }
        if (j->key_bias) add_row(p, j->key_bias + b * j->key_bias_step, j->lk);
        if (j->causal)
            for (int64_t c = first + i + j->lk - j->lq + 1 > 0 ? first + i + j->lk - j->lq + 1 : 0; c < j->lk; c++)
                p[c] = -INFINITY;
        rows->softmax(p, j->lk);
        train->softmax_grad(p, dp, j->lk);
        if (dbias) train->accumulate(dbias, dp, NULL, j->lk);
        for (int64_t c = 0; c < j->lk; c++)
            dp[c] *= j->scale;
        for (int64_t c = j->lk; c < j->keys; c++)
            dp[c] = 0;
        rows->store((int)j->operand, dp, w->ds + i * j->keys * j->size, j->keys);
    }
    if (j->dv) {
        turn(j, w->p, m, deep, w->turned);
        k->product(j->lk, j->width, deep, w->turned, QUERIES, w->do_panels, w->dv, j->width, true);
    }
    if (j->dk) {
        turn(j, w->dp, m, deep, w->turned);
        k->product(j->lk, j->width, deep, w->turned, QUERIES, w->q_panels, w->dk, j->width, true);
    }
    if (j->dq) {
        k->product(m, j->width, j->keys, w->ds, j->keys, w->k_panels, w->dq, j->width, false);
        for (int64_t i = 0; i < m; i++)
            rows->store((int)j->dq->dtype, w->dq + i * j->width, (char *)at(j->dq, b, first + i, h), j->d);
    }
}

static void head(const job *j, int64_t b, int64_t h, const scratch *w) {
    memset(w->k_rows, 0, (size_t)(j->keys * j->depth * j->size));
    memset(w->v_rows, 0, (size_t)(j->keys * j->depth * j->size));
    memset(w->k_panels, 0, (size_t)(j->keys * j->width * j->size));
    memset(w->dk, 0, (size_t)(j->keys * j->width) * 4);
    memset(w->dv, 0, (size_t)(j->keys * j->width) * 4);
    for (int64_t i = 0; i < j->lk; i++) {
        char *row = w->q_rows;
        load_row(j, j->k, b, i, h, row, w->buffer);
        pack_column(j, row, i, w->k_rows);
        pack_rows(j, row, i, j->keys, w->k_panels);
        load_row(j, j->v, b, i, h, row, w->buffer);
        pack_column(j, row, i, w->v_rows);
    }
    for (int64_t first = 0; first < j->lq && !mel_canceled(); first += QUERIES)
        query_block(j, b, h, first, w);
    for (int64_t i = 0; i < j->lk; i++) {
        if (j->dk) mel_rows()->store((int)j->dk->dtype, w->dk + i * j->width, (char *)at(j->dk, b, i, h), j->d);
        if (j->dv) mel_rows()->store((int)j->dv->dtype, w->dv + i * j->width, (char *)at(j->dv, b, i, h), j->d);
    }
}

static mel_status run(job *j, mel_error *err) {
    const int64_t batch = j->q->shape[0], heads = j->q->shape[2];
    j->depth = round_up(j->d, j->kernels->pairs);
    j->width = round_up(j->d, j->kernels->width);
    j->keys = round_up(j->lk, j->kernels->width);
    // A task is a sample and a head, or all samples of a head where they add to one bias, or all.
    bool by_sample = !j->dbias || j->dbias->shape[0] == batch, by_head = !j->dbias || j->dbias->shape[1] == heads;
    int64_t tasks_b = by_sample ? batch : 1, tasks_h = by_head ? heads : 1, tasks = tasks_b * tasks_h;
    int64_t per_b = batch / tasks_b, per_h = heads / tasks_h;
    int threads = tasks * j->lq * j->lk * j->d >= 1 << 20 ? mel_threads() : 1;
    if (threads > tasks) threads = (int)tasks;
    scratch w;
    int64_t each = cut(j, NULL, &w);
    char *room = mel_alloc((size_t)(threads * each), err);
    if (!room) return MEL_ENOMEM;
    int next_room = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int mine;
#pragma omp atomic capture
        mine = next_room++;
        scratch part;
        cut(j, room + mine * each, &part);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tasks; t++)
            for (int64_t i = 0; i < per_b * per_h; i++)
                head(j, t / tasks_h * per_b + i / per_h, t % tasks_h * per_h + i % per_h, &part);
    }
    mel_free(room);
    return mel_check_cancel(err);
}

static mel_status dense_last(const mel_tensor *t, mel_tensor **out, mel_error *err) {
    if (t->strides[t->ndim - 1] != 1 && t->shape[t->ndim - 1] != 1) return mel_tensor_clone(t, out, err);
    *out = mel_tensor_ref((mel_tensor *)t);
    return MEL_OK;
}

static mel_status check(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v, const mel_tensor *dout,
    const mel_tensor *bias, const mel_tensor *key_bias, mel_error *err) {
    char a[128], b[128], c[128];
    mel_status s = mel_need_float(q, "attention_backward", err);
    if (!s) s = mel_need_same(q, "q", dout, "the gradient", "attention_backward", err);
    if (!s) s = mel_need_same(k, "k", v, "v", "attention_backward", err);
    if (s) return s;
    if (q->ndim != 4 || k->ndim != 4 || q->shape[0] != k->shape[0] || q->shape[2] != k->shape[2] ||
        q->shape[3] != k->shape[3] || q->shape[3] < 1)
        return mel_fail(err, MEL_EINVAL, "attention_backward: q is %s, k is %s: [B, L, H, D] each is wanted",
            mel_tensor_shape_text(q, a, sizeof a), mel_tensor_shape_text(k, b, sizeof b));
    if (bias && (bias->dtype != MEL_F32 || bias->ndim != 4 || (bias->shape[0] != 1 && bias->shape[0] != q->shape[0]) ||
                    (bias->shape[1] != 1 && bias->shape[1] != q->shape[2]) || bias->shape[2] != q->shape[1] ||
                    bias->shape[3] != k->shape[1]))
        return mel_fail(err, MEL_EINVAL, "attention_backward: bias is %s %s for q %s and k %s",
            mel_dtype_name(bias->dtype), mel_tensor_shape_text(bias, c, sizeof c),
            mel_tensor_shape_text(q, a, sizeof a), mel_tensor_shape_text(k, b, sizeof b));
    if (key_bias) {
        int n = key_bias->ndim;
        if (key_bias->dtype != MEL_F32 || n < 1 || n > 2 || key_bias->shape[n - 1] != k->shape[1] ||
            (n == 2 && key_bias->shape[0] != k->shape[0] && key_bias->shape[0] != 1))
            return mel_fail(err, MEL_EINVAL, "attention_backward: key_bias is %s %s for k %s",
                mel_dtype_name(key_bias->dtype), mel_tensor_shape_text(key_bias, c, sizeof c),
                mel_tensor_shape_text(k, b, sizeof b));
    }
    return MEL_OK;
}

mel_status mel_attention_backward(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v, const mel_tensor *dout,
    double scale, const mel_tensor *bias, const mel_tensor *key_bias, bool causal, mel_tensor **dq, mel_tensor **dk,
    mel_tensor **dv, mel_tensor **dbias, mel_error *err) {
    MEL_SPAN("attention backward");
    mel_status s = mel_check_cancel(err);
    if (!s) s = check(q, k, v, dout, bias, key_bias, err);
    if (s) return s;
    if (dbias && !bias) return mel_fail(err, MEL_EINVAL, "attention_backward: there is no bias to have a gradient");
    const mel_tensor *given[6] = {q, k, v, dout, bias, key_bias};
    mel_tensor *mine[6] = {NULL};
    job j = {.scale = (float)scale, .causal = causal, .lq = q->shape[1], .lk = k->shape[1], .d = q->shape[3]};
    for (int i = 0; i < 6 && !s; i++)
        if (given[i]) s = i < 4 ? dense_last(given[i], &mine[i], err) : mel_tensor_contiguous(given[i], &mine[i], err);
    if (!s && dq) s = mel_tensor_like(q, q->dtype, &j.dq, err);
    if (!s && dk) s = mel_tensor_like(k, k->dtype, &j.dk, err);
    if (!s && dv) s = mel_tensor_like(v, v->dtype, &j.dv, err);
    if (!s && dbias) s = mel_tensor_zeros(MEL_F32, bias->ndim, bias->shape, &j.dbias, err);
    if (!s && mel_tensor_numel(q) > 0 && j.lk > 0) {
        j.q = mine[0], j.k = mine[1], j.v = mine[2], j.dout = mine[3], j.bias = mine[4];
        if (mine[5]) {
            j.key_bias = (const float *)(void *)mine[5]->data;
            j.key_bias_step = key_bias->ndim == 2 && key_bias->shape[0] > 1 ? j.lk : 0;
        }
        bool half = q->dtype == MEL_BF16 && k->dtype == MEL_BF16 && v->dtype == MEL_BF16;
        j.kernels = mel_product_kernels(half ? MEL_BF16 : MEL_F32);
        j.operand = j.kernels->pairs == 2 ? MEL_BF16 : MEL_F32;
        j.size = mel_dtype_size(j.operand);
        s = run(&j, err);
    } else if (!s) { // no queries or no keys: nothing moves
        mel_tensor *none[] = {j.dq, j.dk, j.dv};
        for (int i = 0; i < 3 && !s; i++)
            if (none[i]) s = mel_tensor_fill(none[i], 0, err);
    }
    for (int i = 0; i < 6; i++)
        mel_tensor_unref(mine[i]);
    if (s) {
        mel_tensor *made[] = {j.dq, j.dk, j.dv, j.dbias};
        for (int i = 0; i < 4; i++)
            mel_tensor_unref(made[i]);
        return s;
    }
    if (dq) *dq = j.dq;
    if (dk) *dk = j.dk;
    if (dv) *dv = j.dv;
    if (dbias) *dbias = j.dbias;
    return MEL_OK;
}
