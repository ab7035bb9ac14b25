#include "rows.h"

#include <math.h>
#include <string.h>

static float from_bf16(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if (f != f) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float from_f16(uint16_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float sign = h >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf((float)mantissa, -24);
    return sign * ldexpf((float)(mantissa + 1024), exponent - 25);
}

static uint16_t to_f16(float f) {
    uint16_t sign = signbit(f) ? 0x8000 : 0;
    float a = fabsf(f);
    if (f != f) return sign | 0x7e00;
    if (a >= 65520.0f) return sign | 0x7c00;
    if (a < 0x1p-14f) return (uint16_t)(sign | (int)nearbyintf(a * 0x1p24f)); // 1024 carries into the exponent rightly
    int exponent;
    frexpf(a, &exponent);                                     // a = m * 2^exponent, m in [0.5, 1)
    int mantissa = (int)nearbyintf(ldexpf(a, 11 - exponent)); // 1024..2048
    return (uint16_t)(sign | (((exponent + 14) << 10) + (mantissa - 1024)));
}

static double rounded(float x, double low, double high) {
    if (x != x) return 0;
    double r = nearbyint((double)x);
    return r < low ? low : r > high ? high : r;
}

static void load(int dtype, const void *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        switch (dtype) {
        case K_F32: dst[i] = ((const float *)src)[i]; break;
        case K_BF16: dst[i] = from_bf16(((const uint16_t *)src)[i]); break;
        case K_F16: dst[i] = from_f16(((const uint16_t *)src)[i]); break;
        case K_S8: dst[i] = ((const int8_t *)src)[i]; break;
        case K_U8: dst[i] = ((const uint8_t *)src)[i]; break;
        case K_S32: dst[i] = (float)((const int32_t *)src)[i]; break;
        default: dst[i] = (float)((const int64_t *)src)[i]; break;
        }
    }
}

static void store(int dtype, const float *src, void *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        switch (dtype) {
        case K_F32: ((float *)dst)[i] = src[i]; break;
        case K_BF16: ((uint16_t *)dst)[i] = to_bf16(src[i]); break;
        case K_F16: ((uint16_t *)dst)[i] = to_f16(src[i]); break;
        case K_S8: ((int8_t *)dst)[i] = (int8_t)rounded(src[i], -128, 127); break;
        case K_U8: ((uint8_t *)dst)[i] = (uint8_t)rounded(src[i], 0, 255); break;
        case K_S32: ((int32_t *)dst)[i] = (int32_t)rounded(src[i], INT32_MIN, INT32_MAX); break;
        default: {
            double r = rounded(src[i], -0x1p63, 0x1p63);
            ((int64_t *)dst)[i] = r >= 0x1p63 ? INT64_MAX : (int64_t)r;
        }
        }
    }
}

static float act_one(int act, float x) {
    switch (act) {
    case K_SILU: return x / (1 + expf(-x));
    case K_GELU_TANH: return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case K_GELU_ERF: return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    case K_QUICK_GELU: return x / (1 + expf(-1.702f * x));
    case K_RELU: return x < 0 ? 0 : x;
    case K_TANH: return tanhf(x);
    case K_SIGMOID: return 1 / (1 + expf(-x));
    default: return x;
    }
}

static void act(int kind, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = act_one(kind, x[i]);
}

static float unary_one(int op, float x) {
    switch (op) {
    case K_NEG: return -x;
    case K_ABS: return fabsf(x);
    case K_EXP: return expf(x);
    case K_LOG: return logf(x);
    case K_SQRT: return sqrtf(x);
    case K_RSQRT: return 1 / sqrtf(x);
    case K_SQUARE: return x * x;
    case K_SIN: return sinf(x);
    case K_COS: return cosf(x);
    case K_ROUND: return nearbyintf(x);
    case K_FLOOR: return floorf(x);
    default: return 1 / x;
    }
}

static void unary(int op, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = unary_one(op, x[i]);
}

static float binary_one(int op, float a, float b) {
    switch (op) {
    case K_ADD: return a + b;
    case K_SUB: return a - b;
    case K_MUL: return a * b;
    case K_DIV: return a / b;
    case K_MAX: return a > b || a != a ? a : b;
    case K_MIN: return a < b || a != a ? a : b;
    default: return powf(a, b);
    }
}

static void binary(int op, const float *a, int step_a, const float *b, int step_b, float *out, int64_t n) {
    float a0 = n ? a[0] : 0, b0 = n ? b[0] : 0;
    for (int64_t i = 0; i < n; i++)
        out[i] = binary_one(op, step_a ? a[i] : a0, step_b ? b[i] : b0);
}

static void axpy(float *y, float alpha, const float *x, int step_x, const float *gate, int step_gate, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += alpha * x[i * step_x] * (gate ? gate[i * step_gate] : 1.0f);
}

static float sum(const float *x, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += x[i];
    return (float)s;
}

static float sumsq(const float *x, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += (double)x[i] * x[i];
    return (float)s;
}

static float max(const float *x, int64_t n) {
    float m = x[0];
    for (int64_t i = 1; i < n; i++)
        if (x[i] > m) m = x[i];
    return m;
}

static void layer_norm(const float *x, float *y, int64_t n, float eps, const float *weight, const float *bias,
    const float *scale, const float *shift) {
    double mean = 0, var = 0;
    for (int64_t i = 0; i < n; i++)
        mean += x[i];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++)
        var += (x[i] - mean) * (x[i] - mean);
    double r = 1 / sqrt(var / (double)n + eps);
    for (int64_t i = 0; i < n; i++) {
        double v = (x[i] - mean) * r;
        v = v * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
        y[i] = (float)(v * (scale ? 1.0 + scale[i] : 1) + (shift ? shift[i] : 0));
    }
}

static void rms_norm(
    const float *x, float *y, int64_t n, float eps, const float *weight, const float *scale, const float *shift) {
    double ss = 0;
    for (int64_t i = 0; i < n; i++)
        ss += (double)x[i] * x[i];
    double r = 1 / sqrt(ss / (double)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)(x[i] * r * (weight ? weight[i] : 1) * (scale ? 1.0 + scale[i] : 1) + (shift ? shift[i] : 0));
}

static void l2_norm(const float *x, float *y, int64_t n, const float *weight) {
    double ss = 0;
    for (int64_t i = 0; i < n; i++)
        ss += (double)x[i] * x[i];
    double norm = sqrt(ss);
    double r = sqrt((double)n) / (norm > 1e-12 ? norm : 1e-12);
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)(x[i] * r * (weight ? weight[i] : 1));
}

static void softmax(float *x, int64_t n) {
    float m = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (x[i] > m) m = x[i];
    double s = 0;
    for (int64_t i = 0; i < n; i++) {
        x[i] = m == -INFINITY ? 0 : expf(x[i] - m);
        s += x[i];
    }
    for (int64_t i = 0; i < n && s > 0; i++)
        x[i] = (float)(x[i] / s);
}

static void rope(float *x, const float *cos_row, const float *sin_row, int64_t n, bool interleaved) {
    for (int64_t i = 0; i < n / 2; i++) {
        int64_t p = interleaved ? 2 * i : i, q = interleaved ? 2 * i + 1 : i + n / 2;
        float a = x[p], b = x[q];
        x[p] = a * cos_row[i] - b * sin_row[i];
        x[q] = a * sin_row[i] + b * cos_row[i];
    }
}

const row_kernels row_kernels_ref = {
    load, store, act, unary, binary, axpy, sum, sumsq, max, layer_norm, rms_norm, l2_norm, softmax, rope};
