// Keys, values and queries as attention's kernels read them: panels of operands, or 8-bit values with a scale a token
// (SageAttention, Zhang et al. 2024: keys lose their mean over the tokens first, which leaves far smaller values to
// quantise and changes no softmax).
#include "ops/attention.h"

#include <string.h>

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

int64_t mel_attention_values_bytes(const attention_job *j) {
    return j->width / SCORES_PANEL * (VALUES_HEAD + SCORES_PANEL * ATTENTION_KEYS);
}

void mel_attention_sizes(attention_job *j) {
    const attention_kernels *k = j->kernels;
    const int64_t d = j->q->shape[3];
    j->keys = round_up(j->lk, MEL_ATTENTION_BLOCK);
    j->depth = round_up(d, j->s8_scores ? 4 : k->pairs);
    j->width = round_up(d, j->s8_values ? SCORES_PANEL : k->panel);
    j->panel_keys = j->s8_scores ? SCORES_PANEL : k->panel;
    j->panel_bytes = j->s8_scores ? SCORES_HEAD + SCORES_PANEL * j->depth : j->panel_keys * j->depth * j->size;
    j->bytes_k = round_up(j->keys / j->panel_keys * j->panel_bytes, 64);
    j->bytes_v = round_up(j->keys * j->width * j->size, 64);
    if (j->s8_values) j->bytes_v = round_up(j->keys, ATTENTION_KEYS) / ATTENTION_KEYS * mel_attention_values_bytes(j);
}

// One token of a head. Heads lie side by side in a token, so that the next one is too far away for the processor to see
// it coming: those ahead are asked for here.
static const char *at(const mel_tensor *t, int64_t b, int64_t l, int64_t h) {
    enum {
        AHEAD = 8,
        LINE = 64
    };
    const int64_t size = mel_dtype_size(t->dtype);
    const char *token = t->data + (b * t->strides[0] + l * t->strides[1] + h * t->strides[2]) * size;
    if (l + AHEAD < t->shape[1])
        for (int64_t byte = 0; byte < t->shape[3] * size; byte += LINE)
            __builtin_prefetch(token + AHEAD * t->strides[1] * size + byte);
    return token;
}

// One token's d values as operands; bf16 to bf16 is a copy.
static void load_operand(const attention_job *j, const mel_tensor *t, const char *src, char *dst, float *buffer) {
    const int64_t d = t->shape[3];
    const row_kernels *rows = mel_rows();
    if (t->dtype == j->operand) {
        memcpy(dst, src, (size_t)(d * j->size));
    } else {
        rows->load((int)t->dtype, src, buffer, d);
        rows->store((int)j->operand, buffer, dst, d);
    }
}

void mel_attention_mean(const attention_job *j, int64_t b, int64_t h, float *buffer, float *mean) {
    const int64_t d = j->k->shape[3];
    memset(mean, 0, (size_t)d * sizeof *mean);
    for (int64_t i = 0; i < j->lk; i++) {
        mel_rows()->load((int)j->k->dtype, at(j->k, b, i, h), buffer, d);
        for (int64_t c = 0; c < d; c++)
            mean[c] += buffer[c];
    }
    for (int64_t c = 0; c < d; c++)
        mean[c] /= (float)j->lk;
}

// A token's values, less `mean` where there is one, as u8 of `depth` values; the scale is returned.
static float quantize(
    const attention_job *j, const mel_tensor *t, const char *src, const float *mean, float *buffer, char *q) {
    const int64_t d = t->shape[3];
    mel_rows()->load((int)t->dtype, src, buffer, d);
    for (int64_t c = 0; mean && c < d; c++)
        buffer[c] -= mean[c];
    memset(q + d, 128, (size_t)(j->depth - d));
    return j->quantizer->quantize(buffer, d, (uint8_t *)q);
}

static void quantized_keys(const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count,
    const float *mean, char *pk, const attention_room *w) {
    for (int64_t i = 0; i < count; i++) {
        char *panel = pk + (first + i) / SCORES_PANEL * j->panel_bytes;
        const int64_t column = (first + i) % SCORES_PANEL;
        float *scales = (float *)(void *)panel;
        int32_t sum = 0;
        uint32_t *values = (uint32_t *)(void *)(panel + SCORES_HEAD), four;
        scales[column] = quantize(j, j->k, at(j->k, b, first + i, h), mean, w->buffer, w->rows);
        for (int64_t t = 0; t < j->depth; t++)
            sum += (uint8_t)w->rows[t];
        scales[SCORES_PANEL + column] = -128.0f * (float)(sum - 128 * (int32_t)j->depth) * scales[column];
        for (int64_t t = 0; t < j->depth / 4; t++) {
            memcpy(&four, w->rows + t * 4, 4);
            values[t * SCORES_PANEL + column] = four ^ 0x80808080u;
        }
    }
}

void mel_attention_pack_keys(const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count,
    const float *mean, char *pk, const attention_room *w) {
    const int64_t panel = j->panel_keys, d = j->k->shape[3];
    memset(pk + first / panel * j->panel_bytes, 0, (size_t)((count + panel - 1) / panel * j->panel_bytes));
    if (j->s8_scores) {
        quantized_keys(j, b, h, first, count, mean, pk, w);
        return;
    }
    for (int64_t i = first; i < first + count; i++) {
        load_operand(j, j->k, at(j->k, b, i, h), w->rows, w->buffer);
        memset(w->rows + d * j->size, 0, (size_t)((j->depth - d) * j->size));
        mel_pack_column(j->kernels->pairs, w->rows, j->depth, pk + i / panel * j->panel_bytes, panel, i % panel);
    }
}

// A whole block of keys, those that are missing as zeros. Adding 1.5 * 2^23 rounds a small float to an integer that
// stands in its last bits.
static void quantized_values(
    const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count, char *pv, const attention_room *w) {
    const int64_t d = j->v->shape[3], width = j->width;
    memset(w->block, 0, (size_t)(ATTENTION_KEYS * width) * sizeof *w->block);
    for (int64_t i = 0; i < count; i++)
        mel_rows()->load((int)j->v->dtype, at(j->v, b, first + i, h), w->block + i * width, d);
    for (int64_t p = 0; p < width / SCORES_PANEL; p++) {
        char *panel = pv + first / ATTENTION_KEYS * mel_attention_values_bytes(j) +
                      p * (VALUES_HEAD + SCORES_PANEL * ATTENTION_KEYS);
        const float *x = w->block + p * SCORES_PANEL;
        float *scales = (float *)(void *)panel, by[SCORES_PANEL], top[SCORES_PANEL] = {0};
        for (int64_t i = 0; i < count; i++)
            for (int64_t c = 0; c < SCORES_PANEL; c++) {
                float v = x[i * width + c] < 0 ? -x[i * width + c] : x[i * width + c];
                top[c] = v > top[c] ? v : top[c];
            }
        for (int64_t c = 0; c < SCORES_PANEL; c++) {
            scales[c] = top[c] > 0 ? top[c] / 127.0f : 1.0f;
            by[c] = 1.0f / scales[c];
        }
        uint32_t *to = (uint32_t *)(void *)(panel + VALUES_HEAD);
        for (int64_t i = 0; i < ATTENTION_KEYS; i += 4)
            for (int64_t c = 0; c < SCORES_PANEL; c++) {
                uint32_t four = 0;
                for (int r = 0; r < 4; r++) {
                    float v = x[(i + r) * width + c] * by[c] + 12582912.0f;
                    uint32_t bits;
                    memcpy(&bits, &v, 4);
                    four |= (bits & 255) << 8 * r;
                }
                to[i / 4 * SCORES_PANEL + c] = four;
            }
    }
}

void mel_attention_pack_values(
    const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count, char *pv, const attention_room *w) {
    const int64_t panel = j->kernels->panel, pairs = j->kernels->pairs, d = j->v->shape[3];
    const int64_t row = j->width * j->size;
    if (j->s8_values) {
        quantized_values(j, b, h, first, count, pv, w);
        return;
    }
    memset(w->rows, 0, (size_t)(2 * row));
    for (int64_t i = 0; i < count; i += pairs) {
        for (int64_t r = 0; r < pairs; r++)
            if (i + r < count)
                load_operand(j, j->v, at(j->v, b, first + i + r, h), w->rows + r * row, w->buffer);
            else
                memset(w->rows + r * row, 0, (size_t)row);
        for (int64_t p = 0; p * panel < d; p++) {
            char *to = pv + (p * j->keys + first + i) * panel * j->size;
            if (pairs == 1) {
                memcpy(to, w->rows + p * panel * j->size, (size_t)(panel * j->size));
                continue;
            }
            const uint16_t *even = (const uint16_t *)(const void *)w->rows + p * panel, *odd = even + j->width;
            for (int64_t c = 0; c < panel; c++)
                ((uint32_t *)(void *)to)[c] = (uint32_t)even[c] | (uint32_t)odd[c] << 16;
        }
    }
}

void mel_attention_load_queries(
    const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count, const attention_room *w) {
    const int64_t d = j->q->shape[3];
    for (int64_t i = 0; i < count; i++) {
        const char *from = at(j->q, b, first + i, h);
        if (j->s8_scores) {
            w->scales[i] = j->scale * quantize(j, j->q, from, NULL, w->buffer, w->q + i * j->depth);
            continue;
        }
        w->scales[i] = j->scale;
        char *to = w->q + i * j->depth * j->size;
        load_operand(j, j->q, from, to, w->buffer);
        memset(to + d * j->size, 0, (size_t)((j->depth - d) * j->size));
    }
}
