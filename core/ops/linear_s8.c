// Linear layers in 8 bits: weights s8 with a scale a row of the weight (an output channel), activations quantised a
// token at a time as they come (Dettmers et al. 2022, "vector-wise"), sums in s32, one pass to floats with bias and
// activation.
#include "ops/linear_s8.h"
#include "ops/packed.h"

#include "kernels/gemm_s8.h"

#include <math.h>
#include <string.h>

enum {
    TOKENS = 192,
    DEPTH = 4096
}; // rows of x in a task; columns of x against one stretch of a panel

struct linear_s8 {
    int64_t n, k, n_padded, k_padded;
    int8_t *panels;
    float *scales;  // [n_padded]
    float *divide;  // [k]: 1 / smooth, with the signs of the rotation, or NULL
    int64_t rotate; // block of the rotation, or 0
    int32_t *sums;  // [n_padded]: of the quantised weights of an output channel
    bool mapped;    // all of them lie in somebody else's memory
};

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static const gemm_s8_kernels *kernels(void) {
    const mel_isa isa = mel_cpu_isa();
    return isa == MEL_ISA_AMX           ? &gemm_s8_kernels_amx
           : isa >= MEL_ISA_AVX512_BF16 ? &gemm_s8_kernels_avx512
                                        : &gemm_s8_kernels_ref;
}

void mel_s8_free(linear_s8 *layer) {
    if (!layer) return;
    if (!layer->mapped) {
        mel_free(layer->panels);
        mel_free(layer->scales);
        mel_free(layer->sums);
        mel_free(layer->divide);
    }
    mel_free(layer);
}

int64_t mel_s8_bytes(const linear_s8 *layer) {
    return layer->mapped ? 0 : layer->n_padded * (layer->k_padded + 8);
}

static linear_s8 *empty_layer(int64_t n, int64_t k, mel_error *err) {
    linear_s8 *l = mel_alloc_zero(sizeof *l, err);
    if (!l) return NULL;
    l->n = n;
    l->k = k;
    l->n_padded = round_up(n, S8_PANEL);
    l->k_padded = round_up(k, 4);
    return l;
}

// ---- in files: panels, scales, sums, divide, each from a multiple of 64 bytes on -------------------

enum {
    S8_LAYOUT = 2 // raised by every change of what is stored
};

typedef struct parts {
    int64_t scales, sums, divide, end;
} parts;

static parts parts_of(int64_t n, int64_t k, int64_t form) {
    const int64_t channels = round_up(n, S8_PANEL);
    parts p;
    p.scales = round_up(channels * round_up(k, 4), 64);
    p.sums = p.scales + channels * 4;
    p.divide = p.sums + channels * 4;
    p.end = p.divide + (form & 1 ? round_up(k * 4, 64) : 0);
    return p;
}

int64_t mel_s8_packed_bytes(int64_t n, int64_t k, int64_t form) {
    return parts_of(n, k, form).end;
}

int64_t mel_s8_form(const linear_s8 *layer) {
    return (layer->divide != NULL) + 2 * layer->rotate;
}

uint64_t mel_s8_layout(int64_t n, int64_t k) {
    const int64_t fields[] = {S8_LAYOUT, S8_PANEL, n, k};
    return mel_packed_mix(0, fields, sizeof fields);
}

void mel_s8_store(const linear_s8 *l, char *to) {
    const parts p = parts_of(l->n, l->k, mel_s8_form(l));
    memset(to, 0, (size_t)p.end);
    memcpy(to, l->panels, (size_t)(l->n_padded * l->k_padded));
    memcpy(to + p.scales, l->scales, (size_t)l->n_padded * 4);
    memcpy(to + p.sums, l->sums, (size_t)l->n_padded * 4);
    if (l->divide) memcpy(to + p.divide, l->divide, (size_t)l->k * 4);
}

// A power of two from 16 on that divides k.
static bool can_rotate(int64_t block, int64_t k) {
    return block >= 16 && (block & (block - 1)) == 0 && k % block == 0;
}

mel_status mel_s8_map(int64_t n, int64_t k, int64_t form, const char *from, linear_s8 **out, mel_error *err) {
    const parts p = parts_of(n, k, form);
    const int64_t rotate = form / 2;
    if (form < 0 || (rotate && (!can_rotate(rotate, k) || !(form & 1))))
        return mel_fail(err, MEL_EFORMAT, "linear: the packed layer has an unknown form, %lld", (long long)form);
    linear_s8 *l = empty_layer(n, k, err);
    if (!l) return MEL_ENOMEM;
    char *base = (char *)from; // read only: nothing writes to the parts of a made layer
    l->mapped = true;
    l->panels = (int8_t *)base;
    l->scales = (float *)(void *)(base + p.scales);
    l->sums = (int32_t *)(void *)(base + p.sums);
    if (form & 1) l->divide = (float *)(void *)(base + p.divide);
    l->rotate = rotate;
    *out = l;
    return MEL_OK;
}

// ---- making ----------------------------------------------------------------------------------------

// One row of weights, quantised (with the offset of 128 that activations have) into q, then dealt to its panel.
static void pack_row(linear_s8 *l, int64_t row, const float *w, uint8_t *q) {
    int8_t *panel = l->panels + row / S8_PANEL * S8_PANEL * l->k_padded + row % S8_PANEL * 4;
    int32_t sum = 0;
    l->scales[row] = kernels()->quantize(w, l->k, q);
    for (int64_t t = 0; t < l->k; t++)
        sum += q[t];
    for (int64_t t = l->k; t < l->k_padded; t++)
        q[t] = 128;
    for (int64_t t = 0; t < l->k_padded; t += 4) {
        uint32_t four;
        memcpy(&four, q + t, 4);
        four ^= 0x80808080u; // less the offset
        memcpy(panel + t * S8_PANEL, &four, 4);
    }
    l->sums[row] = sum - (int32_t)(128 * l->k);
}

static bool all_finite(const float *w, int64_t n) {
    uint32_t worst = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, w + i, 4);
        bits &= 0x7fffffffu;
        worst = bits > worst ? bits : worst;
    }
    return worst < 0x7f800000u;
}

// The sign of column k under a rotation: without signs a row of equal values would meet in one. SplitMix64's mix.
static float sign_of(int64_t k) {
    uint64_t z = (uint64_t)(k + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return (z >> 40) & 1 ? -1.0f : 1.0f;
}

mel_status mel_s8_create(
    const mel_source *source, const float *smooth, int64_t rotate, linear_s8 **out, mel_error *err) {
    if (rotate && !can_rotate(rotate, source->columns))
        return mel_fail(err, MEL_EINVAL, "linear: %lld columns cannot be rotated in blocks of %lld",
            (long long)source->columns, (long long)rotate);
    linear_s8 *l = empty_layer(source->rows, source->columns, err);
    if (!l) return MEL_ENOMEM;
    l->panels = mel_alloc_zero((size_t)(l->n_padded * l->k_padded), err);
    l->scales = l->panels ? mel_alloc_zero((size_t)l->n_padded * 4, err) : NULL;
    l->sums = l->scales ? mel_alloc_zero((size_t)l->n_padded * 4, err) : NULL;
    mel_status status = l->sums ? MEL_OK : MEL_ENOMEM;
    float *multiply = NULL; // [k]: smooth with the signs
    if ((smooth || rotate) && !status) {
        l->rotate = rotate;
        l->divide = mel_alloc((size_t)l->k * 4, err);
        multiply = l->divide ? mel_alloc((size_t)l->k * 4, err) : NULL;
        if (!multiply) status = MEL_ENOMEM;
        for (int64_t i = 0; i < l->k && !status; i++) {
            if (smooth && (!(smooth[i] > 0) || !isfinite(smooth[i])))
                status = mel_fail(
                    err, MEL_EINVAL, "linear: smoothing value %lld is %g", (long long)i + 1, (double)smooth[i]);
            multiply[i] = (smooth ? smooth[i] : 1.0f) * (rotate ? sign_of(i) : 1.0f);
            l->divide[i] = 1.0f / multiply[i];
        }
    }
    mel_error first = {0};
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (status == MEL_OK)
    for (int64_t at = 0; at < l->n; at += S8_PANEL) {
        if (status) continue;
        int64_t count = l->n - at < S8_PANEL ? l->n - at : S8_PANEL;
        mel_error e = {0};
        float *rows = mel_alloc((size_t)(count * l->k) * 4 + (size_t)l->k_padded, &e);
        mel_status s = rows ? mel_source_read(source, at, count, MEL_F32, rows, &e) : MEL_ENOMEM;
        for (int64_t r = 0; r < count && !s; r++) {
            float *w = rows + r * l->k;
            if (multiply) mel_rows()->binary(K_MUL, w, 1, multiply, 1, w, l->k);
            if (rotate) kernels()->rotate(w, l->k, rotate);
            if (!all_finite(w, l->k))
                s = mel_fail(&e, MEL_EINVAL, "linear: weight row %lld is not finite", (long long)(at + r + 1));
            else
                pack_row(l, at + r, w, (uint8_t *)(rows + count * l->k));
        }
        mel_free(rows);
        if (s) {
#pragma omp critical(mel_s8)
            if (!status) {
                status = s;
                first = e;
            }
        }
    }
    mel_free(multiply);
    if (status) {
        if (err && first.message[0]) *err = first;
        mel_s8_free(l);
        return status;
    }
    *out = l;
    return MEL_OK;
}

mel_status mel_s8_run(const linear_s8 *l, const mel_tensor *x, int64_t m, const float *bias, mel_act act,
    mel_dtype dtype, void *y, mel_error *err) {
    const gemm_s8_kernels *k8 = kernels();
    const row_kernels *rows = mel_rows();
    // Columns of a task: wide enough to reuse the tokens, narrow enough to share out.
    const int64_t wide = 4 * S8_PANEL, across = (l->n_padded + wide - 1) / wide, blocks = (m + TOKENS - 1) / TOKENS;
    int threads = m * l->n * l->k >= 1 << 22 ? mel_threads() : 1;
    const int64_t each = TOKENS * wide * 4 + (wide + l->k_padded) * 4;
    uint8_t *q = mel_alloc_zero((size_t)(m * l->k_padded), err);
    float *scales = q ? mel_alloc((size_t)m * 4, err) : NULL;
    char *room = scales ? mel_alloc((size_t)(threads * each), err) : NULL;
    mel_status s = room ? MEL_OK : MEL_ENOMEM;
    if (!s) {
        const int64_t xs = mel_dtype_size(x->dtype), ys = mel_dtype_size(dtype);
        int next_room = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            int mine;
#pragma omp atomic capture
            mine = next_room++;
            int32_t *c = (int32_t *)(void *)(room + mine * each);
            float *line = (float *)(c + TOKENS * wide);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < m; i++) {
                rows->load((int)x->dtype, x->data + i * l->k * xs, line, l->k);
                if (l->divide) rows->binary(K_MUL, line, 1, l->divide, 1, line, l->k);
                if (l->rotate) k8->rotate(line, l->k, l->rotate);
                scales[i] = k8->quantize(line, l->k, q + i * l->k_padded);
            }
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < blocks * across; task++) {
                if (mel_canceled()) continue;
                int64_t first = task % blocks * TOKENS, count = m - first < TOKENS ? m - first : TOKENS;
                int64_t left = task / blocks * wide, n = l->n_padded - left < wide ? l->n_padded - left : wide;
                int64_t real = l->n - left < n ? l->n - left : n;
                for (int64_t j = 0; j < n; j += S8_PANEL)
                    for (int64_t from = 0; from < l->k_padded; from += DEPTH) {
                        int64_t depth = l->k_padded - from < DEPTH ? l->k_padded - from : DEPTH;
                        k8->product(count, S8_PANEL, depth, q + first * l->k_padded + from, l->k_padded,
                            l->panels + (left + j) * l->k_padded + from * S8_PANEL, c + j, wide, from > 0);
                    }
                for (int64_t i = 0; i < count; i++) {
                    k8->finish(c + i * wide, real, l->sums + left, scales[first + i], l->scales + left,
                        bias ? bias + left : NULL, line);
                    if (act) rows->act((int)act, line, real);
                    rows->store((int)dtype, line, (char *)y + ((first + i) * l->n + left) * ys, real);
                }
            }
        }
        s = mel_check_cancel(err);
    }
    mel_free(room);
    mel_free(scales);
    mel_free(q);
    return s;
}
