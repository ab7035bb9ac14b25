#include "scores_s8.h"

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

const scores_s8_kernels scores_s8_kernels_ref = {scores};
