// Scaled-dot-product attention in blocks: a block of queries against one block of keys after another with an online
// softmax (Milakov and Gimelshein 2018; Dao et al. 2022), so that only block x block scores ever exist. Keys and
// values are packed once a head into the panels that the product reads.
#include "kernels/attention.h"
#include "ops/ops.h"

#include <math.h>
#include <string.h>

enum {
    QUERIES = 96,
    KEYS = 256
};
static const int64_t PACKED_MOST = 64ll << 20; // bytes of packed heads at a time

typedef struct job {
    const mel_tensor *q, *k, *v, *bias;
    const float *key_bias;
    int64_t key_bias_step; // floats from one sample to the next
    mel_tensor *out;
    const attention_kernels *kernels;
    mel_dtype operand;
    int64_t size;   // bytes of an operand
    int64_t lq, lk; // tokens
    int64_t depth;  // head width, rounded up to pairs: what q and k are packed to
    int64_t width;  // head width, rounded up to a panel: what v is packed to
    int64_t blocks; // key blocks
    int64_t keys_padded;
    float scale;
    bool causal;
} job;

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static const char *at(const mel_tensor *t, int64_t b, int64_t l, int64_t h) {
    return t->data + (b * t->strides[0] + l * t->strides[1] + h * t->strides[2]) * mel_dtype_size(t->dtype);
}

// n values as operands; bf16 to bf16 is a copy.
static void load_operand(const job *j, mel_dtype dtype, const char *src, char *dst, int64_t n, float *buffer) {
    const row_kernels *rows = mel_rows();
    if (dtype == j->operand) {
        memcpy(dst, src, (size_t)(n * j->size));
    } else {
        rows->load((int)dtype, src, buffer, n);
        rows->store((int)j->operand, buffer, dst, n);
    }
}

// One block of keys and of values of one head into panels. Keys beyond lk are zeros; scores there are cut off later.
static void pack_block(
    const job *j, int64_t b, int64_t h, int64_t block, char *pk, char *pv, char *row, float *buffer) {
    const int64_t panel = j->kernels->panel, pairs = j->kernels->pairs, d = j->k->shape[3];
    int64_t first = block * KEYS, count = j->lk - first < KEYS ? j->lk - first : KEYS;
    int64_t padded = round_up(count, panel);
    memset(pk, 0, (size_t)(padded * j->depth * j->size));
    memset(pv, 0, (size_t)(round_up(count, pairs) * j->width * j->size));
    int64_t k_pairs = round_up(count, pairs);
    for (int64_t i = 0; i < count; i++) {
        // keys: B[depth][key]
        load_operand(j, j->k->dtype, at(j->k, b, first + i, h), row, d, buffer);
        if (j->depth > d) memset(row + d * j->size, 0, (size_t)j->size);
        mel_pack_column(pairs, row, j->depth, pk + i / panel * panel * j->depth * j->size, panel, i % panel);
        // values: B[key][channel]
        load_operand(j, j->v->dtype, at(j->v, b, first + i, h), row, d, buffer);
        for (int64_t p = 0; p * panel < d; p++) {
            int64_t n = d - p * panel < panel ? d - p * panel : panel;
            char *base = pv + (p * panel * k_pairs + i / pairs * panel * pairs + i % pairs) * j->size;
            if (pairs == 2)
                for (int64_t c = 0; c < n; c++)
                    ((uint16_t *)(void *)base)[c * 2] = ((const uint16_t *)(const void *)row)[p * panel + c];
            else
                memcpy(base, row + p * panel * 4, (size_t)n * 4);
        }
    }
}

typedef struct scratch {
    char *q, *p;        // operands: [QUERIES][depth], [QUERIES][KEYS]
    float *s, *acc;     // [QUERIES][KEYS rounded to a panel], [QUERIES][width]
    float *top, *total; // [QUERIES]
    float *buffer;
    char *row;
} scratch;

static void query_block(
    const job *j, int64_t b, int64_t h, int64_t block, const char *pk, const char *pv, const scratch *w) {
    const attention_kernels *k = j->kernels;
    const int64_t d = j->q->shape[3], ld = round_up(KEYS, k->panel);
    int64_t first = block * QUERIES, m = j->lq - first < QUERIES ? j->lq - first : QUERIES;
    for (int64_t i = 0; i < m; i++) {
        char *to = w->q + i * j->depth * j->size;
        load_operand(j, j->q->dtype, at(j->q, b, first + i, h), to, d, w->buffer);
        if (j->depth > d) memset(to + d * j->size, 0, (size_t)((j->depth - d) * j->size));
        w->top[i] = -INFINITY;
        w->total[i] = 0;
    }
    memset(w->acc, 0, sizeof(float) * (size_t)(m * j->width));
    const int64_t shift = j->lk - j->lq; // causal: query i sees keys up to i + shift
    for (int64_t kb = 0; kb < j->blocks; kb++) {
        int64_t key = kb * KEYS, n = j->lk - key < KEYS ? j->lk - key : KEYS;
        if (j->causal && key > first + m - 1 + shift) break;
        int64_t padded = round_up(n, k->panel), n_pairs = round_up(n, k->pairs);
        k->product(m, padded, j->depth, w->q, j->depth, pk + kb * j->keys_padded * j->depth * j->size, w->s, ld, false);
        for (int64_t i = 0; i < m; i++) {
            float *s = w->s + i * ld;
            const float *bias = NULL;
            if (j->bias) {
                const int64_t *t = j->bias->strides;
                int64_t bb = j->bias->shape[0] > 1 ? b : 0, bh = j->bias->shape[1] > 1 ? h : 0;
                bias = (const float *)(const void *)j->bias->data + bb * t[0] + bh * t[1] + (first + i) * t[2] + key;
            }
            if (j->causal)
                for (int64_t c = first + i + shift + 1 > key ? first + i + shift + 1 - key : 0; c < n; c++)
                    s[c] = -INFINITY;
            float before = w->top[i];
            char *p = w->p + i * KEYS * j->size;
            float sum = k->row(
                s, n, j->scale, bias, j->key_bias ? j->key_bias + b * j->key_bias_step + key : NULL, &w->top[i], p);
            if (n_pairs > n) memset(p + n * j->size, 0, (size_t)j->size);
            if (w->top[i] > before && w->total[i] > 0) {
                float shrink = expf(before - w->top[i]);
                w->total[i] *= shrink;
                float *acc = w->acc + i * j->width;
                for (int64_t c = 0; c < j->width; c++)
                    acc[c] *= shrink;
            }
            w->total[i] += sum;
        }
        k->product(m, j->width, n_pairs, w->p, KEYS, pv + kb * KEYS * j->width * j->size, w->acc, j->width, true);
    }
    const row_kernels *rows = mel_rows();
    for (int64_t i = 0; i < m; i++) {
        float *acc = w->acc + i * j->width, r = w->total[i] > 0 ? 1.0f / w->total[i] : 0.0f;
        for (int64_t c = 0; c < d; c++)
            acc[c] *= r;
        int64_t to = ((b * j->lq + first + i) * j->out->shape[2] + h) * d;
        rows->store((int)j->out->dtype, acc, j->out->data + to * mel_dtype_size(j->out->dtype), d);
    }
}

static void *take(char **p, int64_t bytes) {
    void *here = *p;
    *p += round_up(bytes, 64);
    return here;
}

static scratch cut_scratch(const job *j, char *p, int64_t *bytes) {
    char *start = p;
    int64_t d = j->q->shape[3], ld = round_up(KEYS, j->kernels->panel);
    scratch w;
    w.q = take(&p, QUERIES * j->depth * j->size);
    w.p = take(&p, QUERIES * KEYS * j->size);
    w.s = take(&p, QUERIES * ld * 4);
    w.acc = take(&p, QUERIES * j->width * 4);
    w.top = take(&p, QUERIES * 4);
    w.total = take(&p, QUERIES * 4);
    w.buffer = take(&p, (d + 2) * 4);
    w.row = take(&p, (d + 2) * 4);
    *bytes = p - start;
    return w;
}

static mel_status run(job *j, mel_error *err) {
    const int64_t batch = j->q->shape[0], heads = j->q->shape[2], d = j->q->shape[3];
    const attention_kernels *k = j->kernels;
    j->depth = round_up(d, k->pairs);
    j->width = round_up(d, k->panel);
    j->blocks = (j->lk + KEYS - 1) / KEYS;
    j->keys_padded = round_up(KEYS, k->panel);
    int64_t bytes_k = j->blocks * j->keys_padded * j->depth * j->size, bytes_v = j->blocks * KEYS * j->width * j->size;
    int64_t group = PACKED_MOST / (bytes_k + bytes_v + 1);
    if (group < 1) group = 1;
    if (group > batch * heads) group = batch * heads;
    int64_t qblocks = (j->lq + QUERIES - 1) / QUERIES, each;
    int64_t work = j->lq * j->lk * d;
    int threads = work * group >= 1 << 22 ? mel_threads() : 1;
    cut_scratch(j, NULL, &each);
    char *packed = mel_alloc((size_t)(group * (bytes_k + bytes_v)), err);
    char *room = packed ? mel_alloc((size_t)(threads * each), err) : NULL;
    mel_status s = room ? MEL_OK : MEL_ENOMEM;
    for (int64_t g = 0; g < batch * heads && !s; g += group) {
        int64_t count = batch * heads - g < group ? batch * heads - g : group;
        int next_room = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            int mine;
#pragma omp atomic capture
            mine = next_room++;
            int64_t unused;
            scratch w = cut_scratch(j, room + mine * each, &unused);
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < count * j->blocks; t++) {
                int64_t head = g + t / j->blocks, block = t % j->blocks;
                char *base = packed + (head - g) * (bytes_k + bytes_v);
                pack_block(j, head / heads, head % heads, block, base + block * j->keys_padded * j->depth * j->size,
                    base + bytes_k + block * KEYS * j->width * j->size, w.row, w.buffer);
            }
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < count * qblocks; t++) {
                if (mel_canceled()) continue;
                int64_t head = g + t / qblocks;
                const char *base = packed + (head - g) * (bytes_k + bytes_v);
                query_block(j, head / heads, head % heads, t % qblocks, base, base + bytes_k, &w);
            }
        }
        s = mel_check_cancel(err);
    }
    mel_free(room);
    mel_free(packed);
    return s;
}

static mel_status check(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v, const mel_tensor *bias,
    const mel_tensor *key_bias, mel_error *err) {
    char a[128], b[128], c[128];
    bool fits = q->ndim == 4 && k->ndim == 4 && v->ndim == 4;
    if (fits)
        fits = q->shape[0] == k->shape[0] && k->shape[0] == v->shape[0] && q->shape[2] == k->shape[2] &&
               k->shape[2] == v->shape[2] && k->shape[1] == v->shape[1] && q->shape[3] == k->shape[3] &&
               k->shape[3] == v->shape[3] && q->shape[3] > 0;
    if (!fits)
        return mel_fail(err, MEL_EINVAL, "attention: q is %s, k is %s, v is %s: [B, L, H, D] each is wanted",
            mel_tensor_shape_text(q, a, sizeof a), mel_tensor_shape_text(k, b, sizeof b),
            mel_tensor_shape_text(v, c, sizeof c));
    if (bias && (bias->dtype != MEL_F32 || bias->ndim != 4 || (bias->shape[0] != 1 && bias->shape[0] != q->shape[0]) ||
                    (bias->shape[1] != 1 && bias->shape[1] != q->shape[2]) || bias->shape[2] != q->shape[1] ||
                    bias->shape[3] != k->shape[1]))
        return mel_fail(err, MEL_EINVAL,
            "attention: bias is %s %s for q %s and k %s: f32 [1 or B, 1 or H, Lq, Lk] is wanted",
            mel_dtype_name(bias->dtype), mel_tensor_shape_text(bias, a, sizeof a),
            mel_tensor_shape_text(q, b, sizeof b), mel_tensor_shape_text(k, c, sizeof c));
    if (key_bias) {
        int n = key_bias->ndim;
        if (key_bias->dtype != MEL_F32 || n < 1 || n > 2 || key_bias->shape[n - 1] != k->shape[1] ||
            (n == 2 && key_bias->shape[0] != k->shape[0] && key_bias->shape[0] != 1))
            return mel_fail(err, MEL_EINVAL, "attention: key_bias is %s %s for k %s: f32 [B, Lk] is wanted",
                mel_dtype_name(key_bias->dtype), mel_tensor_shape_text(key_bias, a, sizeof a),
                mel_tensor_shape_text(k, b, sizeof b));
    }
    return MEL_OK;
}

static mel_status dense_last(const mel_tensor *t, mel_tensor **out, mel_error *err) {
    if (t->strides[t->ndim - 1] != 1 && t->shape[t->ndim - 1] != 1) return mel_tensor_clone(t, out, err);
    *out = mel_tensor_ref((mel_tensor *)t);
    return MEL_OK;
}

mel_status mel_attention(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v, double scale,
    const mel_tensor *bias, const mel_tensor *key_bias, bool causal, mel_dtype dtype, mel_tensor **out,
    mel_error *err) {
    mel_dtype dst;
    MEL_SPAN("attention");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_out_dtype(q, dtype, "attention", &dst, err);
    if (!s) s = mel_need_float(k, "attention", err);
    if (!s) s = mel_need_float(v, "attention", err);
    if (!s) s = check(q, k, v, bias, key_bias, err);
    if (s) return s;
    MEL_FLOP(4.0 * (double)mel_tensor_numel(q) * (double)k->shape[1]);
    mel_tensor *mine[5] = {NULL}, *y = NULL;
    const mel_tensor *given[5] = {q, k, v, bias, key_bias};
    for (int i = 0; i < 5 && !s; i++)
        if (given[i]) s = i < 4 ? dense_last(given[i], &mine[i], err) : mel_tensor_contiguous(given[i], &mine[i], err);
    if (!s) s = mel_tensor_like(q, dst, &y, err);
    if (!s && mel_tensor_numel(y) > 0) {
        job j = {.q = mine[0],
            .k = mine[1],
            .v = mine[2],
            .bias = mine[3],
            .out = y,
            .scale = (float)scale,
            .causal = causal,
            .lq = q->shape[1],
            .lk = k->shape[1]};
        if (mine[4]) {
            j.key_bias = (const float *)(const void *)mine[4]->data;
            j.key_bias_step = key_bias->ndim == 2 && key_bias->shape[0] > 1 ? j.lk : 0;
        }
        bool half = q->dtype == MEL_BF16 && k->dtype == MEL_BF16 && v->dtype == MEL_BF16;
        j.kernels = mel_product_kernels(half ? MEL_BF16 : MEL_F32);
        j.operand = j.kernels->pairs == 2 ? MEL_BF16 : MEL_F32;
        j.size = mel_dtype_size(j.operand);
        s = j.lk > 0 ? run(&j, err) : mel_tensor_fill(y, 0, err);
    }
    for (int i = 0; i < 5; i++)
        mel_tensor_unref(mine[i]);
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}
