#define DOT(c, a, b) _tile_dpbusd(c, a, b)
#include "amx.inc"
#include "attention_s8.h"

enum {
    MOST = 96 // rows of sums on the stack
};

// Sums stand where the scores will.
static void tiled_scores(
    int64_t m, int64_t panels, int64_t k, const uint8_t *q, int64_t ldq, const int8_t *keys, float *s, int64_t lds) {
    const int64_t step = SCORES_HEAD + SCORES_PANEL * k;
    const tiled_work w = {
        SCORES_PANEL * panels, k / 4, (const char *)q, (const char *)keys + SCORES_HEAD, step, ldq, (char *)s, lds * 4};
    tiled(&w, m, false);
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < panels; p++)
            for (int v = 0; v < SCORES_PANEL; v += 16) {
                float *to = s + i * lds + p * SCORES_PANEL + v;
                const __m512 scale = _mm512_loadu_ps(keys + p * step + v * 4);
                const __m512 offset = _mm512_loadu_ps(keys + p * step + SCORES_PANEL * 4 + v * 4);
                const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(to));
                _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, scale, offset));
            }
}

static void tiled_add(int64_t m, int64_t panels, int64_t k, const uint8_t *p, int64_t ldp, const int8_t *values,
    int64_t keys, int64_t first, const float *weights, float *acc, int64_t lda) {
    int32_t sums[MOST * SCORES_PANEL];
    for (int64_t c = 0; c < panels; c++) {
        const int8_t *scales = values + c * (VALUES_HEAD + SCORES_PANEL * keys);
        const char *panel = (const char *)scales + VALUES_HEAD + first * SCORES_PANEL;
        for (int64_t i = 0; i < m; i += MOST) {
            const int64_t count = m - i < MOST ? m - i : MOST;
            const tiled_work w = {
                SCORES_PANEL, k / 4, (const char *)p + i * ldp, panel, 0, ldp, (char *)sums, SCORES_PANEL * 4};
            tiled(&w, count, false);
            for (int64_t r = 0; r < count; r++)
                for (int v = 0; v < SCORES_PANEL; v += 16) {
                    const __m512 by = _mm512_mul_ps(_mm512_set1_ps(weights[i + r]), _mm512_loadu_ps(scales + v * 4));
                    const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * SCORES_PANEL + v));
                    float *to = acc + (i + r) * lda + c * SCORES_PANEL + v;
                    _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, by, _mm512_loadu_ps(to)));
                }
        }
    }
}

#define TABLE attention_s8_kernels_amx
#define SCORES tiled_scores
#define ADD tiled_add
#include "attention_s8.inc"
