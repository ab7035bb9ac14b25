#include "gemm_s8.h"

#include <math.h>

static void product(int64_t m, int64_t n, int64_t k, const uint8_t *a, int64_t lda, const int8_t *b, int32_t *c,
    int64_t ldc, bool add) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const int8_t *column = b + j / S8_PANEL * S8_PANEL * k + j % S8_PANEL * 4;
            int32_t s = add ? c[i * ldc + j] : 0;
            for (int64_t t = 0; t < k; t++)
                s += (int32_t)a[i * lda + t] * column[t / 4 * S8_PANEL * 4 + t % 4];
            c[i * ldc + j] = s;
        }
}

static float quantize(const float *x, int64_t n, uint8_t *q) {
    float top = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabsf(x[i]) > top) top = fabsf(x[i]);
    float scale = top > 0 ? top / 127.0f : 1.0f;
    for (int64_t i = 0; i < n; i++) {
        float v = nearbyintf(x[i] * (1.0f / scale));
        v = v < -127 ? -127 : v > 127 ? 127 : v;
        q[i] = (uint8_t)((int)(v == v ? v : 0) + 128);
    }
    return scale;
}

static void finish(const int32_t *c, int64_t n, const int32_t *sums, float row_scale, const float *scales,
    const float *bias, float *y) {
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)(c[i] - 128 * sums[i]) * (row_scale * scales[i]) + (bias ? bias[i] : 0.0f);
}

static void rotate(float *x, int64_t n, int64_t block) {
    const float by = 1.0f / sqrtf((float)block);
    for (int64_t h = 1; h < block; h *= 2)
        for (int64_t i = 0; i < n; i++) {
            if (i & h) continue;
            float a = x[i], b = x[i + h];
            x[i] = a + b;
            x[i + h] = a - b;
        }
    for (int64_t i = 0; i < n; i++)
        x[i] *= by;
}

const gemm_s8_kernels gemm_s8_kernels_ref = {product, quantize, finish, rotate};
