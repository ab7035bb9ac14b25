// Scaled-dot-product attention in blocks: a block of queries against some keys after another with an online softmax
// (Milakov and Gimelshein 2018; Dao et al. 2022), so that only block x block scores ever exist. Keys and values are
// packed once a head into the panels that the products read. A mask by blocks names the keys that a block of queries
// sees; others cost nothing.
#include "ops/attention.h"

#include <math.h>
#include <string.h>

enum {
    S8_WIDEST = 1 << 16
};                                             // channels of a head whose 8-bit products still sum up in 32 bits
static const int64_t PACKED_MOST = 64ll << 20; // bytes of packed heads at a time

// Keys [key, key + count) stand in columns of the scores from `column` on.
typedef struct run {
    int64_t key, count, column;
} run;
enum {
    RUNS = ATTENTION_KEYS / MEL_ATTENTION_BLOCK
};

// The next keys that query block `block` sees, from *at on, as runs; their number, 0 at the end. Biases are laid out by
// key, so that with one of them there is only one run.
static int next_runs(const attention_job *j, int64_t block, int64_t *at, run *runs) {
    if (!j->offsets) {
        if (*at >= j->lk) return 0;
        runs[0] = (run){*at, j->lk - *at < ATTENTION_KEYS ? j->lk - *at : ATTENTION_KEYS, 0};
        *at += ATTENTION_KEYS;
        return 1;
    }
    int count = 0;
    int64_t column = 0;
    for (; j->offsets[block] + *at < j->offsets[block + 1] && column < ATTENTION_KEYS; ++*at) {
        int64_t key = (int64_t)j->blocks[j->offsets[block] + *at] * MEL_ATTENTION_BLOCK;
        int64_t n = j->lk - key < MEL_ATTENTION_BLOCK ? j->lk - key : MEL_ATTENTION_BLOCK;
        // Blocks of 8-bit values have scales of their own.
        const bool apart = j->s8_values && key % ATTENTION_KEYS == 0;
        if (count && !apart && runs[count - 1].key + runs[count - 1].count == key) {
            runs[count - 1].count += n;
        } else {
            if (count && (j->bias || j->key_bias)) break;
            runs[count++] = (run){key, n, column};
        }
        column += n;
    }
    return count;
}

static const float *bias_at(const attention_job *j, int64_t b, int64_t h, int64_t query, int64_t key) {
    if (!j->bias) return NULL;
    const int64_t *t = j->bias->strides, *n = j->bias->shape;
    return (const float *)(const void *)j->bias->data + (n[0] > 1 ? b : 0) * t[0] + (n[1] > 1 ? h : 0) * t[1] +
           query * t[2] + key;
}

// Scores of m rows against one run, then their share of the sums.
static void scores_of(const attention_job *j, int64_t m, run r, const char *pk, const attention_room *w) {
    const char *panels = pk + r.key / j->panel_keys * j->panel_bytes;
    const int64_t columns = (r.count + j->panel_keys - 1) / j->panel_keys * j->panel_keys;
    if (j->s8_scores)
        j->s8->scores(m, columns / SCORES_PANEL, j->depth, (const uint8_t *)w->q, j->depth, (const int8_t *)panels,
            w->s + r.column, ATTENTION_KEYS);
    else
        j->kernels->product(m, columns, j->depth, w->q, j->depth, panels, w->s + r.column, ATTENTION_KEYS, false);
}

static void add_values(const attention_job *j, int64_t m, run r, const char *pv, const attention_room *w) {
    if (j->s8_values) {
        j->s8->add(m, j->width / SCORES_PANEL, (r.count + 3) / 4 * 4, (const uint8_t *)w->p + r.column, ATTENTION_KEYS,
            (const int8_t *)pv + r.key / ATTENTION_KEYS * mel_attention_values_bytes(j), ATTENTION_KEYS,
            r.key % ATTENTION_KEYS, w->weights, w->acc, j->width);
        return;
    }
    const attention_kernels *k = j->kernels;
    const int64_t n = (r.count + k->pairs - 1) / k->pairs * k->pairs;
    for (int64_t c = 0; c < j->width; c += k->panel)
        k->product(m, k->panel, n, w->p + r.column * j->size, ATTENTION_KEYS,
            pv + (c * j->keys + r.key * k->panel) * j->size, w->acc + c, j->width, true);
}

// The softmax of m rows, one at a time: with biases, and without the keys that a causal mask hides.
static void softmax_with_biases(const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t m, const run *runs,
    int count, const attention_room *w) {
    const int64_t key = runs[0].key, n = runs[count - 1].column + runs[count - 1].count;
    const float *key_bias = j->key_bias ? j->key_bias + b * j->key_bias_step + key : NULL;
    for (int64_t i = 0; i < m; i++) {
        int64_t seen = n, last = first + i + j->lk - j->lq;
        for (int r = 0; j->causal && r < count; r++)
            if (runs[r].key + runs[r].count > last + 1) {
                seen = runs[r].column + (last + 1 > runs[r].key ? last + 1 - runs[r].key : 0);
                break;
            }
        char *p = w->p + i * ATTENTION_KEYS * j->size;
        w->sums[i] = j->kernels->row(
            w->s + i * ATTENTION_KEYS, seen, w->scales[i], bias_at(j, b, h, first + i, key), key_bias, &w->top[i], p);
        memset(p + seen * j->size, 0, (size_t)((n - seen) * j->size));
    }
}

// The softmax of m rows as probabilities in 8 bits, which count from the largest score of these keys alone.
static void softmax_s8(const attention_job *j, int64_t m, int64_t n, const attention_room *w) {
    uint8_t *p = (uint8_t *)w->p;
    j->s8->rows(m, n, w->s, ATTENTION_KEYS, w->scales, w->peak, w->sums, p, ATTENTION_KEYS);
    for (int64_t i = 0; i < m; i++) {
        if (w->peak[i] > w->top[i]) w->top[i] = w->peak[i];
        w->weights[i] = expf(w->peak[i] - w->top[i]);
        w->sums[i] *= w->weights[i];
        memset(p + i * ATTENTION_KEYS + n, 0, (size_t)((n + 3) / 4 * 4 - n));
    }
}

static void query_block(const attention_job *j, int64_t b, int64_t h, int64_t block, int64_t rows, const char *pk,
    const char *pv, const attention_room *w) {
    const int64_t d = j->q->shape[3], first = block * rows, m = j->lq - first < rows ? j->lq - first : rows;
    mel_attention_load_queries(j, b, h, first, m, w);
    for (int64_t i = 0; i < m; i++) {
        w->top[i] = -INFINITY;
        w->total[i] = 0;
    }
    memset(w->acc, 0, sizeof(float) * (size_t)(m * j->width));
    run runs[RUNS];
    int64_t at = 0;
    for (int count; (count = next_runs(j, block, &at, runs)) > 0;) {
        if (j->causal && runs[0].key > first + m - 1 + j->lk - j->lq) break;
        const int64_t n = runs[count - 1].column + runs[count - 1].count;
        for (int r = 0; r < count; r++)
            scores_of(j, m, runs[r], pk, w);
        memcpy(w->before, w->top, (size_t)m * sizeof *w->top);
        if (j->s8_values)
            softmax_s8(j, m, n, w);
        else if (j->bias || j->key_bias || j->causal || j->scale < 0)
            softmax_with_biases(j, b, h, first, m, runs, count, w);
        else
            j->kernels->rows(m, n, w->s, ATTENTION_KEYS, w->scales, w->top, w->sums, w->p, ATTENTION_KEYS);
        for (int64_t i = 0; i < m; i++) {
            if (!j->s8_values && n % j->kernels->pairs)
                memset(w->p + (i * ATTENTION_KEYS + n) * j->size, 0, (size_t)j->size);
            if (w->top[i] > w->before[i] && w->total[i] > 0) {
                float shrink = expf(w->before[i] - w->top[i]);
                w->total[i] *= shrink;
                float *acc = w->acc + i * j->width;
                for (int64_t c = 0; c < j->width; c++)
                    acc[c] *= shrink;
            }
            w->total[i] += w->sums[i];
        }
        for (int r = 0; r < count; r++)
            add_values(j, m, runs[r], pv, w);
    }
    const int64_t step = j->out->shape[2] * d * mel_dtype_size(j->out->dtype); // bytes from token to token
    char *to = j->out->data + ((b * j->lq + first) * step) + h * step / j->out->shape[2];
    for (int64_t i = 0; i < m; i++, to += step) {
        float *acc = w->acc + i * j->width, r = w->total[i] > 0 ? 1.0f / w->total[i] : 0.0f;
        for (int64_t byte = 0; byte < step / j->out->shape[2] && i + 8 < m; byte += 64)
            __builtin_prefetch(to + 8 * step + byte, 1);
        for (int64_t c = 0; c < d; c++)
            acc[c] *= r;
        mel_rows()->store((int)j->out->dtype, acc, to, d);
    }
}

static void *take(char **p, int64_t bytes) {
    void *here = *p;
    *p += (bytes + 63) / 64 * 64;
    return here;
}

static attention_room cut_room(const attention_job *j, char *p, int64_t *bytes) {
    char *start = p;
    attention_room w;
    w.q = take(&p, ATTENTION_QUERIES * j->depth * j->size);
    w.p = take(&p, ATTENTION_QUERIES * ATTENTION_KEYS * j->size);
    w.scales = take(&p, ATTENTION_QUERIES * 4);
    w.s = take(&p, ATTENTION_QUERIES * ATTENTION_KEYS * 4);
    w.acc = take(&p, ATTENTION_QUERIES * j->width * 4);
    w.top = take(&p, ATTENTION_QUERIES * 4);
    w.before = take(&p, ATTENTION_QUERIES * 4);
    w.total = take(&p, ATTENTION_QUERIES * 4);
    w.sums = take(&p, ATTENTION_QUERIES * 4);
    w.peak = take(&p, ATTENTION_QUERIES * 4);
    w.weights = take(&p, ATTENTION_QUERIES * 4);
    w.block = take(&p, j->s8_values ? ATTENTION_KEYS * j->width * 4 : 0);
    w.buffer = take(&p, (j->width + 4) * 4);
    w.rows = take(&p, 2 * (j->width + 4) * 4);
    *bytes = p - start;
    return w;
}

static mel_status run_job(attention_job *j, mel_error *err) {
    const int64_t batch = j->q->shape[0], heads = j->q->shape[2], d = j->q->shape[3];
    mel_attention_sizes(j);
    const int64_t packed_head = j->bytes_k + j->bytes_v, mean_head = j->s8_scores ? d : 0;
    int64_t group = PACKED_MOST / (packed_head + 1);
    if (group < 1) group = 1;
    if (group > batch * heads) group = batch * heads;
    const int64_t rows = j->offsets ? MEL_ATTENTION_BLOCK : ATTENTION_QUERIES;
    const int64_t qblocks = (j->lq + rows - 1) / rows, kblocks = (j->lk + ATTENTION_KEYS - 1) / ATTENTION_KEYS;
    int64_t work = j->lq * j->lk * d, each;
    int threads = work * group >= 1 << 22 ? mel_threads() : 1;
    cut_room(j, NULL, &each);
    char *packed = mel_alloc((size_t)(group * packed_head), err);
    char *room = packed ? mel_alloc((size_t)(threads * each), err) : NULL;
    float *means = room ? mel_alloc((size_t)(group * mean_head + 1) * 4, err) : NULL;
    mel_status s = means ? MEL_OK : MEL_ENOMEM;
    for (int64_t g = 0; g < batch * heads && !s; g += group) {
        int64_t count = batch * heads - g < group ? batch * heads - g : group;
        int next_room = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            int mine;
#pragma omp atomic capture
            mine = next_room++;
            int64_t unused;
            attention_room w = cut_room(j, room + mine * each, &unused);
            if (j->s8_scores) {
#pragma omp for schedule(dynamic)
                for (int64_t t = 0; t < count; t++)
                    mel_attention_mean(j, (g + t) / heads, (g + t) % heads, w.buffer, means + t * d);
            }
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < count * kblocks; t++) {
                int64_t head = t / kblocks, b = (g + head) / heads, h = (g + head) % heads;
                int64_t first = t % kblocks * ATTENTION_KEYS;
                int64_t n = j->lk - first < ATTENTION_KEYS ? j->lk - first : ATTENTION_KEYS;
                char *base = packed + head * packed_head;
                mel_attention_pack_keys(j, b, h, first, n, means + head * mean_head, base, &w);
                mel_attention_pack_values(j, b, h, first, n, base + j->bytes_k, &w);
            }
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < count * qblocks; t++) {
                if (mel_canceled()) continue;
                int64_t head = g + t / qblocks;
                const char *base = packed + (head - g) * packed_head;
                query_block(j, head / heads, head % heads, t % qblocks, rows, base, base + j->bytes_k, &w);
            }
        }
        s = mel_check_cancel(err);
    }
    mel_free(means);
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

// A mask's two tensors, and how many pairs of blocks it lets through.
static mel_status check_mask(
    const mel_tensor *offsets, const mel_tensor *blocks, int64_t lq, int64_t lk, int64_t *seen, mel_error *err) {
    const int64_t nq = (lq + MEL_ATTENTION_BLOCK - 1) / MEL_ATTENTION_BLOCK;
    const int64_t nk = (lk + MEL_ATTENTION_BLOCK - 1) / MEL_ATTENTION_BLOCK;
    char a[128], b[128];
    if (!offsets || !blocks)
        return mel_fail(err, MEL_EINVAL, "attention: a mask is offsets and blocks; only %s were given",
            offsets ? "offsets" : "blocks");
    if (offsets->dtype != MEL_S32 || blocks->dtype != MEL_S32 || offsets->ndim != 1 || blocks->ndim != 1 ||
        offsets->shape[0] != nq + 1)
        return mel_fail(err, MEL_EINVAL,
            "attention: the mask is %s %s and %s %s: s32 offsets [%lld] and s32 blocks [n] are wanted for %lld queries",
            mel_dtype_name(offsets->dtype), mel_tensor_shape_text(offsets, a, sizeof a), mel_dtype_name(blocks->dtype),
            mel_tensor_shape_text(blocks, b, sizeof b), (long long)nq + 1, (long long)lq);
    const int32_t *at = (const int32_t *)(const void *)offsets->data;
    const int32_t *key = (const int32_t *)(const void *)blocks->data;
    if (at[0] != 0 || at[nq] != blocks->shape[0])
        return mel_fail(err, MEL_EINVAL, "attention: the mask's offsets go from %d to %d, not from 0 to %lld",
            (int)at[0], (int)at[nq], (long long)blocks->shape[0]);
    for (int64_t i = 0; i < nq; i++)
        if (at[i] > at[i + 1] || at[i + 1] > blocks->shape[0])
            return mel_fail(err, MEL_EINVAL, "attention: the mask's offset %lld is %d, the next %d", (long long)i + 1,
                (int)at[i], (int)at[i + 1]);
    for (int64_t i = 0; i < nq; i++)
        for (int64_t t = at[i]; t < at[i + 1]; t++)
            if (key[t] < 0 || key[t] >= nk || (t > at[i] && key[t] <= key[t - 1]))
                return mel_fail(err, MEL_EINVAL,
                    "attention: the mask gives query block %lld key block %d: ascending ones from 0 to %lld are wanted",
                    (long long)i, (int)key[t], (long long)nk - 1);
    *seen = blocks->shape[0];
    return MEL_OK;
}

static void choose_kernels(attention_job *j, bool half) {
    const mel_isa isa = mel_cpu_isa();
    j->kernels = mel_product_kernels(half ? MEL_BF16 : MEL_F32);
    j->operand = j->kernels->pairs == 2 ? MEL_BF16 : MEL_F32;
    j->size = mel_dtype_size(j->operand);
    const bool vnni = isa >= MEL_ISA_AVX512_BF16; // every processor with the one has the other
    j->s8 = isa == MEL_ISA_AMX    ? &attention_s8_kernels_amx
            : vnni                ? &attention_s8_kernels_avx512
            : isa >= MEL_ISA_AVX2 ? &attention_s8_kernels_avx2
                                  : &attention_s8_kernels_ref;
    j->quantizer = vnni ? &gemm_s8_kernels_avx512 : &gemm_s8_kernels_ref;
}

mel_status mel_attention_with(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v,
    const mel_attention_options *o, mel_tensor **out, mel_error *err) {
    mel_dtype dst;
    MEL_SPAN("attention");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_out_dtype(q, o->dtype, "attention", &dst, err);
    if (!s) s = mel_need_float(k, "attention", err);
    if (!s) s = mel_need_float(v, "attention", err);
    if (!s) s = check(q, k, v, o->bias, o->key_bias, err);
    if (!s && o->s8_scores && q->shape[3] > S8_WIDEST)
        s = mel_fail(err, MEL_EINVAL, "attention: heads of %lld are too wide for scores in 8 bits, at most %d",
            (long long)q->shape[3], S8_WIDEST);
    if (!s && o->s8_values && (o->bias || o->key_bias || o->causal || o->scale < 0))
        s = mel_fail(err, MEL_EINVAL, "attention: values in 8 bits go with no %s",
            o->bias       ? "bias"
            : o->key_bias ? "key_bias"
            : o->causal   ? "causal mask"
                          : "scale below 0");
    if (s) return s;
    enum {
        Q,
        K,
        V,
        BIAS,
        KEY_BIAS,
        OFFSETS,
        BLOCKS,
        GIVEN
    };
    const mel_tensor *given[GIVEN] = {q, k, v, o->bias, o->key_bias, o->offsets, o->blocks};
    mel_tensor *mine[GIVEN] = {NULL}, *y = NULL;
    for (int i = 0; i < GIVEN && !s; i++)
        if (given[i])
            s = i < KEY_BIAS ? dense_last(given[i], &mine[i], err) : mel_tensor_contiguous(given[i], &mine[i], err);
    const int64_t lq = q->shape[1], lk = k->shape[1];
    double pairs = (double)lq * (double)lk;
    if (!s && (o->offsets || o->blocks)) {
        int64_t seen = 0;
        s = check_mask(mine[OFFSETS], mine[BLOCKS], lq, lk, &seen, err);
        pairs = (double)seen * MEL_ATTENTION_BLOCK * MEL_ATTENTION_BLOCK;
    }
    MEL_FLOP(4.0 * pairs * (double)(q->shape[0] * q->shape[2] * q->shape[3]));
    if (!s) s = mel_tensor_like(q, dst, &y, err);
    if (!s && mel_tensor_numel(y) > 0) {
        attention_job j = {.q = mine[Q],
            .k = mine[K],
            .v = mine[V],
            .bias = mine[BIAS],
            .out = y,
            .scale = (float)o->scale,
            .causal = o->causal,
            .s8_scores = o->s8_scores,
            .s8_values = o->s8_values,
            .lq = lq,
            .lk = lk};
        if (o->offsets) {
            j.offsets = (const int32_t *)(const void *)mine[OFFSETS]->data;
            j.blocks = (const int32_t *)(const void *)mine[BLOCKS]->data;
        }
        if (o->key_bias) {
            j.key_bias = (const float *)(const void *)mine[KEY_BIAS]->data;
            j.key_bias_step = o->key_bias->ndim == 2 && o->key_bias->shape[0] > 1 ? lk : 0;
        }
        choose_kernels(&j, q->dtype == MEL_BF16 && k->dtype == MEL_BF16 && v->dtype == MEL_BF16);
        s = lk > 0 ? run_job(&j, err) : mel_tensor_fill(y, 0, err);
    }
    for (int i = 0; i < GIVEN; i++)
        mel_tensor_unref(mine[i]);
    if (s)
        mel_tensor_unref(y);
    else
        *out = y;
    return s;
}

mel_status mel_attention(const mel_tensor *q, const mel_tensor *k, const mel_tensor *v, double scale,
    const mel_tensor *bias, const mel_tensor *key_bias, bool causal, mel_dtype dtype, mel_tensor **out,
    mel_error *err) {
    const mel_attention_options options = {
        .scale = scale, .bias = bias, .key_bias = key_bias, .causal = causal, .dtype = dtype};
    return mel_attention_with(q, k, v, &options, out, err);
}
