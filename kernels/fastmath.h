// exp, tanh and erf as branch-free polynomials that the compiler turns into vectors: within a few units in the last
// place of libm's.
#ifndef KERNELS_FASTMATH_H
#define KERNELS_FASTMATH_H

#include <math.h>
#include <stdint.h>

static inline float exp_fast(float x) {
    float z = x > 88.7228317f ? 88.7228317f : x; // the last with a finite result
    z = z < -87.33f ? -87.33f : z;
    float k = __builtin_rintf(z * 1.44269504088896341f);
    float r = z - k * 0.693359375f + k * 2.12194440e-4f; // Cody-Waite
    // Cephes expf
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t half = (int32_t)k >> 1; // 2^k in two factors: k = 128 alone has no float
    union {
        uint32_t i;
        float f;
    } a = {(uint32_t)(half + 127) << 23}, b = {(uint32_t)((int32_t)k - half + 127) << 23};
    float e = p * a.f * b.f;
    e = x < -87.33f ? 0.0f : e;
    return x > 88.7228317f ? INFINITY : e;
}

// Rational minimax on [-7.905, 7.905], exactly 1 beyond: gelu multiplies 1 + tanh by an x of any size.
static inline float tanh_fast(float x) {
    float z = x > 7.90531110763549805f ? 7.90531110763549805f : x;
    z = z < -7.90531110763549805f ? -7.90531110763549805f : z;
    float s = z * z;
    float p = -2.76076847742355e-16f;
    p = p * s + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    float q = 1.19825839466702e-06f;
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    float t = z * p / q;
    t = x >= 7.90531110763549805f ? 1.0f : t;
    return x <= -7.90531110763549805f ? -1.0f : t;
}

// Rational minimax on [-4, 4], exactly 1 beyond.
static inline float erf_fast(float x) {
    float z = x > 4.0f ? 4.0f : x;
    z = z < -4.0f ? -4.0f : z;
    float s = z * z;
    float p = -2.72614225801306e-10f;
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    float q = -1.45660718464996e-05f;
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    float t = z * p / q;
    t = x >= 4.0f ? 1.0f : t;
    return x <= -4.0f ? -1.0f : t;
}

#endif
