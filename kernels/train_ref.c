// The naive twin of the rows of training: double, libm, one loop.
#include "rows.h"
#include "train.h"

#include <math.h>
#include <string.h>

static double slope(int kind, double x) {
    const double c = 0.79788456080286536;
    double s, t;
    switch (kind) {
    case K_SILU: s = 1 / (1 + exp(-x)); return s * (1 + x * (1 - s));
    case K_GELU_TANH:
        t = tanh(c * (x + 0.044715 * x * x * x));
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
    case K_GELU_ERF: return 0.5 * (1 + erf(x * sqrt(0.5))) + x * 0.5 * c * exp(-0.5 * x * x);
    case K_QUICK_GELU: s = 1 / (1 + exp(-1.702 * x)); return s * (1 + 1.702 * x * (1 - s));
    case K_RELU: return x > 0;
    case K_TANH: t = tanh(x); return 1 - t * t;
    case K_SIGMOID: s = 1 / (1 + exp(-x)); return s * (1 - s);
    default: return 1;
    }
}

static void act_grad(int kind, const float *x, float *dy, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        dy[i] = (float)(dy[i] * slope(kind, x[i]));
}

static float dot(const float *a, const float *b, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += (double)a[i] * b[i];
    return (float)s;
}

static void accumulate(float *sum, const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        sum[i] += b ? a[i] * b[i] : a[i];
}

static void norm_grad(const norm_row *row, int64_t n) {
    double mean = 0, var = 0, s1 = 0, s2 = 0;
    for (int64_t i = 0; i < n && row->kind == K_NORM_LAYER; i++)
        mean += (double)row->x[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        var += (row->x[i] - mean) * (row->x[i] - mean) / (double)n;
    double r = row->kind == K_NORM_L2 ? 1 / fmax(sqrt(var), 1e-12 / sqrt((double)n)) : 1 / sqrt(var + row->eps);
    for (int64_t i = 0; i < n; i++) {
        double hat = (row->x[i] - mean) * r, w = row->weight ? row->weight[i] : 1;
        double g = row->dy[i] * (row->scale ? 1.0 + row->scale[i] : 1.0);
        if (row->dshift) row->dshift[i] += row->dy[i];
        if (row->dscale) row->dscale[i] += (float)(row->dy[i] * (hat * w + (row->bias ? row->bias[i] : 0)));
        if (row->dbias) row->dbias[i] += (float)g;
        if (row->dweight) row->dweight[i] += (float)(g * hat);
        if (row->kind == K_NORM_LAYER) s1 += g * w / (double)n;
        s2 += g * w * hat / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        double hat = (row->x[i] - mean) * r, w = row->weight ? row->weight[i] : 1;
        double g = row->dy[i] * (row->scale ? 1.0 + row->scale[i] : 1.0);
        row->dx[i] = (float)(r * (g * w - s1 - hat * s2));
    }
}

static void softmax_grad(const float *y, float *dy, int64_t n) {
    float s = dot(y, dy, n);
    for (int64_t i = 0; i < n; i++)
        dy[i] = y[i] * (dy[i] - s);
}

static void adamw(const adamw_step *c, float *p, const float *g, float *m, float *v, float *ema, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double d = (double)g[i] * c->grad_scale;
        m[i] = (float)(c->beta1 * m[i] + (1.0 - c->beta1) * d);
        v[i] = (float)(c->beta2 * v[i] + (1.0 - c->beta2) * d * d);
        p[i] = (float)(p[i] - c->decay * p[i] - c->rate * m[i] / (sqrt(v[i]) * c->correction + c->eps));
        if (ema) ema[i] += c->ema_rest * (p[i] - ema[i]);
    }
}

static void transpose_bf16(const float *src, int64_t rows, int64_t columns, int64_t lds, uint16_t *dst, int64_t ldd) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            row_kernels_ref.store(K_BF16, src + r * lds + c, dst + c * ldd + r, 1);
}

static void transpose32(const uint32_t *src, int64_t rows, int64_t columns, int64_t lds, uint32_t *dst, int64_t ldd) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            dst[c * ldd + r] = src[r * lds + c];
}

static void depthwise(
    const float *x, const float *dy, int64_t count, int64_t step_x, int64_t step, int taps, float *sum) {
    for (int t = 0; t < taps; t++)
        for (int c = 0; c < 16; c++) {
            double s = 0;
            for (int64_t i = 0; i < count; i++)
                s += (double)dy[i * step + c] * x[i * step_x + t * step + c];
            sum[t * step + c] += (float)s;
        }
}

const train_kernels train_kernels_ref = {
    act_grad, dot, accumulate, norm_grad, softmax_grad, adamw, transpose_bf16, transpose32, depthwise};
