// Block-quantised types of GGUF as float32, operation for operation as ggml's reference (ggml-quants.c,
// dequantize_row_*), so that the results are the same bits. All scales are float16.
#include "weights/file.h"

#include <string.h>

static float f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    if (rest >= 0x7c00) {
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        bits = sign | ((rest << 13) + ((127 - 15) << 23));
    } else { // subnormal: rest * 2^-24
        float f = (float)rest * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// ---- blocks of 32 ---------------------------------------------------------------------------------------
void mel_dequant_q4_0(const uint8_t *src, void *dst, int64_t count) { // f16 d; 16 bytes of low and high nibbles
    float *y = dst;
    for (; count > 0; count -= 32, src += 18, y += 32) {
        float d = f16(src);
        for (int j = 0; j < 16; j++) {
            y[j] = (float)((src[2 + j] & 15) - 8) * d;
            y[j + 16] = (float)((src[2 + j] >> 4) - 8) * d;
        }
    }
}

void mel_dequant_q4_1(const uint8_t *src, void *dst, int64_t count) { // f16 d, m; 16 bytes
    float *y = dst;
    for (; count > 0; count -= 32, src += 20, y += 32) {
        float d = f16(src), m = f16(src + 2);
        for (int j = 0; j < 16; j++) {
            y[j] = (float)(src[4 + j] & 15) * d + m;
            y[j + 16] = (float)(src[4 + j] >> 4) * d + m;
        }
    }
}

void mel_dequant_q5_0(const uint8_t *src, void *dst, int64_t count) { // f16 d; 32 fifth bits; 16 bytes
    float *y = dst;
    for (; count > 0; count -= 32, src += 22, y += 32) {
        float d = f16(src);
        uint32_t high;
        memcpy(&high, src + 2, 4);
        for (int j = 0; j < 16; j++) {
            int low0 = src[6 + j] & 15, low1 = src[6 + j] >> 4;
            y[j] = (float)((low0 | (int)((high >> j) << 4 & 16)) - 16) * d;
            y[j + 16] = (float)((low1 | (int)(high >> (j + 12) & 16)) - 16) * d;
        }
    }
}

void mel_dequant_q5_1(const uint8_t *src, void *dst, int64_t count) { // f16 d, m; 32 fifth bits; 16 bytes
    float *y = dst;
    for (; count > 0; count -= 32, src += 24, y += 32) {
        float d = f16(src), m = f16(src + 2);
        uint32_t high;
        memcpy(&high, src + 4, 4);
        for (int j = 0; j < 16; j++) {
            int low0 = src[8 + j] & 15, low1 = src[8 + j] >> 4;
            y[j] = (float)(low0 | (int)((high >> j) << 4 & 16)) * d + m;
            y[j + 16] = (float)(low1 | (int)(high >> (j + 12) & 16)) * d + m;
        }
    }
}

void mel_dequant_q8_0(const uint8_t *src, void *dst, int64_t count) { // f16 d; 32 signed bytes
    float *y = dst;
    for (; count > 0; count -= 32, src += 34, y += 32) {
        float d = f16(src);
        for (int j = 0; j < 32; j++)
            y[j] = (float)(int8_t)src[2 + j] * d;
    }
}

// ---- blocks of 256 --------------------------------------------------------------------------------------
void mel_dequant_q2_k(const uint8_t *src, void *dst, int64_t count) { // 16 scale|min nibbles; 64 bytes; f16 d, dmin
    float *y = dst;
    for (; count > 0; count -= 256, src += 84) {
        const uint8_t *scales = src, *q = src + 16;
        float d = f16(src + 80), min = f16(src + 82);
        for (int half = 0; half < 2; half++, q += 32) {
            for (int shift = 0; shift < 8; shift += 2) {
                for (int part = 0; part < 32; part += 16, scales++) {
                    float dl = d * (float)(*scales & 15), ml = min * (float)(*scales >> 4);
                    for (int l = 0; l < 16; l++)
                        *y++ = dl * (float)(q[part + l] >> shift & 3) - ml;
                }
            }
        }
    }
}

// 32 bytes of third bits; 64 bytes of low pairs; 16 scales of 6 bits in 12 bytes; f16 d
void mel_dequant_q3_k(const uint8_t *src, void *dst, int64_t count) {
    float *y = dst;
    for (; count > 0; count -= 256, src += 110) {
        const uint8_t *high = src, *q = src + 32, *packed = src + 96;
        float d = f16(src + 108);
        int8_t scales[16];
        for (int i = 0; i < 16; i++) {
            int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
            scales[i] = (int8_t)(low | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4);
        }
        int is = 0, bit = 1;
        for (int half = 0; half < 2; half++, q += 32) {
            for (int shift = 0; shift < 8; shift += 2, bit <<= 1) {
                for (int part = 0; part < 32; part += 16, is++) {
                    float dl = d * (float)(scales[is] - 32);
                    for (int l = part; l < part + 16; l++)
                        *y++ = dl * (float)((q[l] >> shift & 3) - (high[l] & bit ? 0 : 4));
                }
            }
        }
    }
}

// Scale and minimum number j (of 8) from the 12 bytes of Q4_K and Q5_K: 6 bits each.
static void scale_min(int j, const uint8_t *q, float *scale, float *min) {
    if (j < 4) {
        *scale = (float)(q[j] & 63);
        *min = (float)(q[j + 4] & 63);
    } else {
        *scale = (float)((q[j + 4] & 15) | q[j - 4] >> 6 << 4);
        *min = (float)(q[j + 4] >> 4 | q[j] >> 6 << 4);
    }
}

void mel_dequant_q4_k(const uint8_t *src, void *dst, int64_t count) { // f16 d, dmin; 12 bytes of scales; 128 bytes
    float *y = dst;
    for (; count > 0; count -= 256, src += 144) {
        const uint8_t *q = src + 16;
        float d = f16(src), dmin = f16(src + 2), scale, min;
        for (int j = 0; j < 8; j += 2, q += 32) {
            for (int high = 0; high < 2; high++) {
                scale_min(j + high, src + 4, &scale, &min);
                float d1 = d * scale, m1 = dmin * min;
                for (int l = 0; l < 32; l++)
                    *y++ = d1 * (float)(high ? q[l] >> 4 : q[l] & 15) - m1;
            }
        }
    }
}

// f16 d, dmin; 12 bytes of scales; 32 bytes of fifth bits; 128 bytes
void mel_dequant_q5_k(const uint8_t *src, void *dst, int64_t count) {
    float *y = dst;
    for (; count > 0; count -= 256, src += 176) {
        const uint8_t *fifth = src + 16, *q = src + 48;
        float d = f16(src), dmin = f16(src + 2), scale, min;
        for (int j = 0; j < 8; j += 2, q += 32) {
            for (int high = 0; high < 2; high++) {
                scale_min(j + high, src + 4, &scale, &min);
                float d1 = d * scale, m1 = dmin * min;
                for (int l = 0; l < 32; l++) {
                    int v = (high ? q[l] >> 4 : q[l] & 15) + (fifth[l] >> (j + high) & 1 ? 16 : 0);
                    *y++ = d1 * (float)v - m1;
                }
            }
        }
    }
}

// 128 bytes of low nibbles; 64 bytes of high pairs; 16 signed scales; f16 d
void mel_dequant_q6_k(const uint8_t *src, void *dst, int64_t count) {
    float *y = dst;
    for (; count > 0; count -= 256, src += 210) {
        const uint8_t *low = src, *high = src + 128;
        const uint8_t *scales = src + 192;
        float d = f16(src + 208);
        for (int half = 0; half < 2; half++, low += 64, high += 32, scales += 8, y += 128) {
            for (int l = 0; l < 32; l++) {
                for (int k = 0; k < 4; k++) {
                    int nibble = k < 2 ? low[l + 32 * k] & 15 : low[l + 32 * (k - 2)] >> 4;
                    int v = (nibble | (high[l] >> (2 * k) & 3) << 4) - 32;
                    y[l + 32 * k] = d * (float)(int8_t)scales[l / 16 + 2 * k] * (float)v;
                }
            }
        }
    }
}
