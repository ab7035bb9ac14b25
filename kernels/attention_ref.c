#include "attention.h"

#include <math.h>
#include <stddef.h>

static void product(
    int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, float *c, int64_t ldc, bool add) {
    const float *x = a, *y = b;
    const int64_t panel = 8;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const float *column = y + j / panel * panel * k + j % panel;
            float s = add ? c[i * ldc + j] : 0;
            for (int64_t t = 0; t < k; t++)
                s += x[i * lda + t] * column[t * panel];
            c[i * ldc + j] = s;
        }
}

static float row(float *s, int64_t n, float scale, const float *bias, const float *key_bias, float *top, void *p) {
    float *out = p, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        s[i] = s[i] * scale + (bias ? bias[i] : 0) + (key_bias ? key_bias[i] : 0);
        if (s[i] > *top) *top = s[i];
    }
    for (int64_t i = 0; i < n; i++) {
        out[i] = *top == -INFINITY ? 0 : expf(s[i] - *top);
        sum += out[i];
    }
    return sum;
}

static void rows(
    int64_t m, int64_t n, float *s, int64_t lds, const float *scales, float *top, float *sums, void *p, int64_t ldp) {
    for (int64_t i = 0; i < m; i++)
        sums[i] = row(s + i * lds, n, scales[i], NULL, NULL, top + i, (float *)p + i * ldp);
}

const attention_kernels attention_kernels_ref = {8, 8, 1, product, row, rows};
