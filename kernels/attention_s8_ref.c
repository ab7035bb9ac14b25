#include "attention_s8.h"

#include <math.h>

static void scores(
    int64_t m, int64_t panels, int64_t k, const uint8_t *q, int64_t ldq, const int8_t *keys, float *s, int64_t lds) {
    for (int64_t p = 0; p < panels; p++) {
        const int8_t *panel = keys + p * (SCORES_HEAD + SCORES_PANEL * k), *values = panel + SCORES_HEAD;
        const float *scales = (const float *)(const void *)panel;
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < SCORES_PANEL; j++) {
                int32_t sum = 0;
                for (int64_t t = 0; t < k; t++)
                    sum += (q[i * ldq + t] - 128) * values[(t / 4 * SCORES_PANEL + j) * 4 + t % 4];
                s[i * lds + p * SCORES_PANEL + j] = (float)sum * scales[j];
            }
    }
}

static void rows(int64_t m, int64_t n, const float *s, int64_t lds, const float *scales, float *top, float *sums,
    uint8_t *p, int64_t ldp) {
    for (int64_t i = 0; i < m; i++) {
        top[i] = -INFINITY;
        for (int64_t j = 0; j < n; j++)
            if (s[i * lds + j] * scales[i] > top[i]) top[i] = s[i * lds + j] * scales[i];
        int32_t sum = 0;
        for (int64_t j = 0; j < n; j++) {
            p[i * ldp + j] = (uint8_t)nearbyintf(255 * expf(s[i * lds + j] * scales[i] - top[i]));
            sum += p[i * ldp + j];
        }
        sums[i] = (float)sum;
    }
}

static void add(int64_t m, int64_t panels, int64_t k, const uint8_t *p, int64_t ldp, const int8_t *values, int64_t keys,
    int64_t first, const float *weights, float *acc, int64_t lda) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = 0; c < panels * SCORES_PANEL; c++) {
            const int8_t *panel = values + c / SCORES_PANEL * (VALUES_HEAD + SCORES_PANEL * keys);
            int32_t sum = 0;
            for (int64_t t = 0; t < k; t++)
                sum += p[i * ldp + t] *
                       panel[VALUES_HEAD + ((first + t) / 4 * SCORES_PANEL + c % SCORES_PANEL) * 4 + t % 4];
            acc[i * lda + c] += (float)sum * (weights[i] * ((const float *)(const void *)panel)[c % SCORES_PANEL]);
        }
}

const attention_s8_kernels attention_s8_kernels_ref = {scores, rows, add};
