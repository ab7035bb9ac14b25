// Floats as the block-quantised types of GGUF, with the values that ggml's reference chooses (ggml-quants.c,
// quantize_row_*_ref: facts only). Blocks whose scale rounds to zero keep zeros where ggml leaves what its search
// found last; they read as the same values. Input is finite.
#include "weights/file.h"

#include <math.h>
#include <string.h>

static uint16_t f16_bits(float f) { // to nearest, ties to even
    uint32_t bits, sign;
    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) { // subnormal: the sum has the bits at its end
        float magnitude, half = 0.5f;
        memcpy(&magnitude, &bits, 4);
        magnitude += half;
        memcpy(&bits, &magnitude, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
}

static void put_f16(uint8_t *p, float f) {
    uint16_t h = f16_bits(f);
    memcpy(p, &h, 2);
}

static float get_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    uint32_t rest = h & 0x7fff, bits = rest >= 0x7c00 ? 0x7f800000 : (rest << 13) + ((127 - 15) << 23);
    float f;
    memcpy(&f, &bits, 4);
    if (rest < 0x400) f = (float)rest * 0x1p-24f;
    return h & 0x8000 ? -f : f;
}

// For |v| < 2^22; ties to even.
static int nearest(float v) {
    return (int)((v + 12582912.0f) - 12582912.0f);
}

static int within(int v, int low, int high) {
    return v < low ? low : v > high ? high : v;
}

// ---- blocks of 32 ----------------------------------------------------------------------------------------
// The value of the largest magnitude, with its sign; the first of several.
static float furthest(const float *x, int n) {
    float most = 0, value = 0;
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) > most) {
            most = fabsf(x[i]);
            value = x[i];
        }
    }
    return value;
}

static void range_of(const float *x, int n, float *low, float *high) {
    *low = *high = x[0];
    for (int i = 1; i < n; i++) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

// x * inverse + shift, cut to a whole number of 0..top, for the 32 values of a block. offset: subtracted first.
static void codes(const float *x, float offset, float inverse, float shift, int top, uint8_t *out) {
    for (int j = 0; j < 32; j++) {
        int v = (int)((x[j] - offset) * inverse + shift);
        out[j] = (uint8_t)(v < top ? v : top);
    }
}

static void pack_low(const uint8_t *q, uint8_t *dst) {
    for (int j = 0; j < 16; j++)
        dst[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
}

static void pack_fifth(const uint8_t *q, uint8_t *dst) {
    uint32_t high = 0;
    for (int j = 0; j < 32; j++)
        high |= (uint32_t)(q[j] >> 4 & 1) << j;
    memcpy(dst, &high, 4);
}

static float inverse_of(float d) {
    return d != 0 ? 1.0f / d : 0.0f;
}

void mel_quant_q4_0(const float *x, uint8_t *dst, int64_t count, bool quick) {
    (void)quick;
    uint8_t q[32];
    for (; count > 0; count -= 32, x += 32, dst += 18) {
        float d = furthest(x, 32) / -8;
        put_f16(dst, d);
        codes(x, 0, inverse_of(d), 8.5f, 15, q);
        pack_low(q, dst + 2);
    }
}

void mel_quant_q4_1(const float *x, uint8_t *dst, int64_t count, bool quick) {
    (void)quick;
    uint8_t q[32];
    for (; count > 0; count -= 32, x += 32, dst += 20) {
        float low, high;
        range_of(x, 32, &low, &high);
        float d = (high - low) / 15;
        put_f16(dst, d);
        put_f16(dst + 2, low);
        codes(x, low, inverse_of(d), 0.5f, 15, q);
        pack_low(q, dst + 4);
    }
}

void mel_quant_q5_0(const float *x, uint8_t *dst, int64_t count, bool quick) {
    (void)quick;
    uint8_t q[32];
    for (; count > 0; count -= 32, x += 32, dst += 22) {
        float d = furthest(x, 32) / -16;
        put_f16(dst, d);
        codes(x, 0, inverse_of(d), 16.5f, 31, q);
        pack_fifth(q, dst + 2);
        pack_low(q, dst + 6);
    }
}

void mel_quant_q5_1(const float *x, uint8_t *dst, int64_t count, bool quick) {
    (void)quick;
    uint8_t q[32];
    for (; count > 0; count -= 32, x += 32, dst += 24) {
        float low, high;
        range_of(x, 32, &low, &high);
        float d = (high - low) / 31;
        put_f16(dst, d);
        put_f16(dst + 2, low);
        codes(x, low, inverse_of(d), 0.5f, 31, q);
        pack_fifth(q, dst + 4);
        pack_low(q, dst + 8);
    }
}

void mel_quant_q8_0(const float *x, uint8_t *dst, int64_t count, bool quick) {
    (void)quick;
    for (; count > 0; count -= 32, x += 32, dst += 34) {
        float most = 0;
        for (int j = 0; j < 32; j++)
            most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
        float d = most / 127, inverse = inverse_of(d);
        put_f16(dst, d);
        for (int j = 0; j < 32; j++) { // half away from zero, as roundf
            float v = x[j] * inverse;
            dst[2 + j] = (uint8_t)(int8_t)(int)(v + (v < 0 ? -0.5f : 0.5f));
        }
    }
}

// ---- blocks of 256: searches, four parts side by side ---------------------------------------------------------
// Each lane does what the reference does for one part, in its order, so that the sums have the same bits.
typedef float lanes __attribute__((vector_size(16)));
typedef int32_t masks __attribute__((vector_size(16)));

static lanes pick(masks m, lanes yes, lanes no) {
    return (lanes)((m & (masks)yes) | (~m & (masks)no));
}
static lanes of(float v) {
    return (lanes){v, v, v, v};
}
static lanes magnitude(lanes v) {
    return (lanes)((masks)v & 0x7fffffff);
}
static lanes whole(lanes v, float low, float high) {
    v = (v + 12582912.0f) - 12582912.0f;
    v = pick(v < low, of(low), v);
    return pick(v > high, of(high), v);
}

// Values i of four neighbouring parts of n.
static void turn(const float *x, int n, lanes *out) {
    for (int i = 0; i < n; i++)
        out[i] = (lanes){x[i], x[n + i], x[2 * n + i], x[3 * n + i]};
}

typedef struct affine {
    int n, steps;     // values in a part; widenings of the step that are tried
    float top, first; // highest code; first widening, the others 0.1 apart
    bool absolute;    // the error is |difference|, not its square
} affine;

static lanes error_of(
    const affine *a, const lanes *x, const lanes *w, lanes scale, lanes low, lanes inverse, lanes from) {
    lanes sum = of(0);
    for (int i = 0; i < a->n; i++) {
        lanes difference = scale * whole(inverse * (x[i] - from), 0, a->top) + low - x[i];
        sum += w[i] * (a->absolute ? magnitude(difference) : difference * difference);
    }
    return sum;
}

// scale and minimum (as a positive offset) of four parts: x is about scale * code - offset, weighted least squares over
// several step widths.
static void fit_affine(const affine *a, const lanes *x, const lanes *w, float *scales, float *offsets) {
    lanes low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < a->n; i++) {
        low = pick(x[i] < low, x[i], low);
        high = pick(x[i] > high, x[i], high);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = pick(low > 0.0f, of(0), low);
    masks flat = high == low;
    lanes inverse = a->top / pick(flat, of(1), high - low), scale = 1.0f / inverse, min = low;
    lanes best = a->steps < 0 ? of(0) : error_of(a, x, w, scale, low, inverse, low);
    for (int is = 0; is <= a->steps; is++) {
        lanes start = min, range = high - start; // as the reference: each try starts at the minimum found so far
        inverse = (a->first + 0.1f * (float)is + a->top) / pick(range > 0.0f, range, of(1));
        lanes sum_l = of(0), sum_l2 = of(0), sum_xl = of(0);
        for (int i = 0; i < a->n; i++) {
            lanes l = whole(inverse * (x[i] - start), 0, a->top);
            sum_l += w[i] * l;
            sum_l2 += w[i] * l * l;
            sum_xl += w[i] * l * x[i];
        }
        lanes determinant = sum_w * sum_l2 - sum_l * sum_l;
        masks solvable = determinant > 0.0f;
        determinant = pick(solvable, determinant, of(1));
        lanes new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        lanes new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        masks above = new_min > 0.0f;
        new_scale = pick(above, sum_xl / pick(sum_l2 > 0.0f, sum_l2, of(1)), new_scale);
        new_min = pick(above, of(0), new_min);
        lanes error = error_of(a, x, w, new_scale, new_min, inverse, start);
        masks better = solvable & (error < best);
        best = pick(better, error, best);
        scale = pick(better, new_scale, scale);
        min = pick(better, new_min, min);
    }
    scale = pick(flat, of(0), scale);
    min = -pick(flat, low, min);
    memcpy(scales, &scale, sizeof scale);
    memcpy(offsets, &min, sizeof min);
}

// Scales of four parts of 16: x is about scale * code, codes -32..31, weights x^2.
static void fit_signed(const lanes *x, int steps, float *scales) {
    lanes most = of(0), value = of(0);
    for (int i = 0; i < 16; i++) {
        lanes m = magnitude(x[i]);
        value = pick(m > most, x[i], value);
        most = pick(m > most, m, most);
    }
    masks zero = most < 1e-15f;
    value = pick(zero, of(1), value);
    lanes scale = of(0), best = of(0);
    for (int try = 0; try <= 2 * steps; try++) { // 0, then -steps..steps without 0
        int is = try == 0 ? 0 : try <= steps ? try - 1 - steps : try - steps;
        lanes inverse = -(32 + 0.1f * (float)is) / value, sum_xl = of(0), sum_l2 = of(0);
        for (int i = 0; i < 16; i++) {
            lanes l = whole(inverse * x[i], -32, 31), w = x[i] * x[i];
            sum_xl += w * x[i] * l;
            sum_l2 += w * l * l;
        }
        lanes new_scale = pick(sum_l2 > 0.0f, sum_xl / pick(sum_l2 > 0.0f, sum_l2, of(1)), of(0));
        if (try == 0) {
            scale = new_scale;
            best = scale * sum_xl;
            continue;
        }
        masks better = (sum_l2 > 0.0f) & (sum_xl * sum_xl > best * sum_l2);
        scale = pick(better, new_scale, scale);
        best = pick(better, new_scale * sum_xl, best);
    }
    scale = pick(zero, of(0), scale);
    memcpy(scales, &scale, sizeof scale);
}

static float largest(const float *v, int n) {
    float most = 0;
    for (int i = 0; i < n; i++)
        most = v[i] > most ? v[i] : most;
    return most;
}

// ---- Q2_K ------------------------------------------------------------------------------------------------------
// Two bits a code, four codes a byte, 32 apart.
static void pack_pairs(const uint8_t *q, uint8_t *dst) {
    for (int half = 0; half < 2; half++, q += 128, dst += 32) {
        for (int l = 0; l < 32; l++)
            dst[l] = (uint8_t)((q[l] & 3) | (q[l + 32] & 3) << 2 | (q[l + 64] & 3) << 4 | (q[l + 96] & 3) << 6);
    }
}

// Codes of one part: (x + offset) / scale, zeros where the scale is zero.
static void part_codes(const float *x, int n, float scale, float offset, int low, int high, int shift, uint8_t *q) {
    for (int i = 0; i < n; i++)
        q[i] = scale != 0 ? (uint8_t)(within(nearest((x[i] + offset) / scale), low, high) + shift) : 0;
}

void mel_quant_q2_k(const float *x, uint8_t *dst, int64_t count, bool quick) {
    const affine a = {.n = 16, .steps = quick ? -1 : 15, .top = 3, .first = -0.5f, .absolute = true};
    for (; count > 0; count -= 256, x += 256, dst += 84) {
        float scales[16], offsets[16];
        uint8_t q[256];
        for (int p = 0; p < 16; p += 4) {
            lanes v[16], w[16];
            turn(x + 16 * p, 16, v);
            for (int i = 0; i < 16; i++)
                w[i] = magnitude(v[i]);
            fit_affine(&a, v, w, scales + p, offsets + p);
        }
        float most = largest(scales, 16), deepest = largest(offsets, 16);
        put_f16(dst + 80, most / 15);
        put_f16(dst + 82, deepest / 15);
        float d = get_f16(dst + 80), dmin = get_f16(dst + 82);
        for (int p = 0; p < 16; p++) {
            int s = most > 0 ? nearest(15 / most * scales[p]) : 0,
                m = deepest > 0 ? nearest(15 / deepest * offsets[p]) : 0;
            dst[p] = (uint8_t)(within(s, 0, 15) | within(m, 0, 15) << 4);
            part_codes(x + 16 * p, 16, d * (float)(dst[p] & 15), dmin * (float)(dst[p] >> 4), 0, 3, 0, q + 16 * p);
        }
        pack_pairs(q, dst + 16);
    }
}

// ---- Q3_K ------------------------------------------------------------------------------------------------------
// The scale of 16 values with codes -4..3: straight rounding, then codes are moved one by one while it helps.
static float fit_third(const float *x, bool quick) {
    float value = furthest(x, 16), sum_xl = 0, sum_l2 = 0;
    int codes_[16];
    if (fabsf(value) < 1e-15f) return 0;
    float inverse = -4 / value;
    for (int i = 0; i < 16; i++) {
        int l = codes_[i] = within(nearest(inverse * x[i]), -4, 3);
        float w = x[i] * x[i];
        sum_xl += w * x[i] * (float)l;
        sum_l2 += w * (float)l * (float)l;
    }
    bool moved = !quick;
    for (int pass = 0; pass < 5 && moved; pass++) {
        moved = false;
        for (int i = 0; i < 16; i++) {
            float w = x[i] * x[i], l = (float)codes_[i];
            float rest_xl = sum_xl - w * x[i] * l, rest_l2 = sum_l2 - w * l * l;
            if (!(rest_xl > 0)) continue;
            float wanted = x[i] * rest_l2 / rest_xl;
            int to = within(nearest(wanted < -8 ? -8 : wanted > 8 ? 8 : wanted), -4, 3);
            if (to == codes_[i]) continue;
            rest_xl += w * x[i] * (float)to;
            rest_l2 += w * (float)to * (float)to;
            if (rest_l2 > 0 && rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2) {
                codes_[i] = to;
                sum_xl = rest_xl;
                sum_l2 = rest_l2;
                moved = true;
            }
        }
    }
    return sum_l2 > 0 ? sum_xl / sum_l2 : 0;
}

void mel_quant_q3_k(const float *x, uint8_t *dst, int64_t count, bool quick) {
    for (; count > 0; count -= 256, x += 256, dst += 110) {
        float scales[16];
        uint8_t q[256], *packed = dst + 96;
        for (int p = 0; p < 16; p++)
            scales[p] = fit_third(x + 16 * p, quick);
        float most = furthest(scales, 16), inverse = most != 0 ? -32 / most : 0;
        memset(dst, 0, 110);
        if (most != 0) put_f16(dst + 108, 1 / inverse);
        float d = get_f16(dst + 108);
        for (int p = 0; p < 16; p++) {
            int s = within(nearest(inverse * scales[p]), -32, 31) + 32;
            if (most == 0) s = 0;
            packed[p % 8] = (uint8_t)(packed[p % 8] | (s & 15) << (p < 8 ? 0 : 4));
            packed[8 + p % 4] = (uint8_t)(packed[8 + p % 4] | s >> 4 << (2 * (p / 4)));
            part_codes(x + 16 * p, 16, d * (float)(s - 32), 0, -4, 3, 4, q + 16 * p);
        }
        for (int j = 0; j < 256; j++) {
            if (q[j] > 3) dst[j % 32] = (uint8_t)(dst[j % 32] | 1 << (j / 32));
        }
        pack_pairs(q, dst + 32);
    }
}

// ---- Q4_K, Q5_K --------------------------------------------------------------------------------------------------
// f16 d, dmin and the 12 bytes of eight scales and minima; codes in q.
static void affine_block(const affine *a, const float *x, uint8_t *dst, uint8_t *q) {
    float scales[8], offsets[8];
    for (int p = 0; p < 8; p += 4) {
        lanes v[32], w[32], sum = of(0);
        turn(x + 32 * p, 32, v);
        for (int i = 0; i < 32; i++)
            sum += v[i] * v[i];
        sum /= 32.0f;
        for (int k = 0; k < 4; k++)
            sum[k] = sqrtf(sum[k]);
        for (int i = 0; i < 32; i++)
            w[i] = sum + magnitude(v[i]);
        fit_affine(a, v, w, scales + p, offsets + p);
    }
    float most = largest(scales, 8), deepest = largest(offsets, 8);
    float to_scale = most > 0 ? 63 / most : 0, to_min = deepest > 0 ? 63 / deepest : 0;
    put_f16(dst, most / 63);
    put_f16(dst + 2, deepest / 63);
    float d = get_f16(dst), dmin = get_f16(dst + 2);
    uint8_t *packed = dst + 4;
    memset(packed, 0, 12);
    for (int p = 0; p < 8; p++) {
        int s = within(nearest(to_scale * scales[p]), 0, 63), m = within(nearest(to_min * offsets[p]), 0, 63);
        if (p < 4) {
            packed[p] = (uint8_t)(packed[p] | s);
            packed[p + 4] = (uint8_t)(packed[p + 4] | m);
        } else {
            packed[p + 4] = (uint8_t)((s & 15) | (m & 15) << 4);
            packed[p - 4] = (uint8_t)(packed[p - 4] | s >> 4 << 6);
            packed[p] = (uint8_t)(packed[p] | m >> 4 << 6);
        }
        part_codes(x + 32 * p, 32, d * (float)s, dmin * (float)m, 0, (int)a->top, 0, q + 32 * p);
    }
}

// Low nibbles of 64 codes in 32 bytes.
static void pack_nibbles(const uint8_t *q, uint8_t *dst) {
    for (int j = 0; j < 256; j += 64, dst += 32) {
        for (int l = 0; l < 32; l++)
            dst[l] = (uint8_t)((q[j + l] & 15) | (q[j + l + 32] & 15) << 4);
    }
}

void mel_quant_q4_k(const float *x, uint8_t *dst, int64_t count, bool quick) {
    const affine a = {.n = 32, .steps = quick ? -1 : 20, .top = 15, .first = -1};
    uint8_t q[256];
    for (; count > 0; count -= 256, x += 256, dst += 144) {
        affine_block(&a, x, dst, q);
        pack_nibbles(q, dst + 16);
    }
}

void mel_quant_q5_k(const float *x, uint8_t *dst, int64_t count, bool quick) {
    const affine a = {.n = 32, .steps = quick ? -1 : 15, .top = 31, .first = -0.5f};
    uint8_t q[256];
    for (; count > 0; count -= 256, x += 256, dst += 176) {
        affine_block(&a, x, dst, q);
        memset(dst + 16, 0, 32);
        for (int j = 0; j < 256; j++)
            dst[16 + j % 32] = (uint8_t)(dst[16 + j % 32] | (q[j] >> 4) << (j / 32));
        pack_nibbles(q, dst + 48);
    }
}

// ---- Q6_K --------------------------------------------------------------------------------------------------------
void mel_quant_q6_k(const float *x, uint8_t *dst, int64_t count, bool quick) {
    for (; count > 0; count -= 256, x += 256, dst += 210) {
        float scales[16];
        uint8_t q[256], *low = dst, *high = dst + 128;
        for (int p = 0; p < 16; p += 4) {
            lanes v[16];
            turn(x + 16 * p, 16, v);
            fit_signed(v, quick ? 0 : 9, scales + p);
        }
        float most = furthest(scales, 16);
        memset(dst, 0, 210);
        if (fabsf(most) < 1e-15f) continue;
        float inverse = -128 / most;
        put_f16(dst + 208, 1 / inverse);
        float d = get_f16(dst + 208);
        for (int p = 0; p < 16; p++) {
            int s = within(nearest(inverse * scales[p]), -128, 127);
            dst[192 + p] = (uint8_t)(int8_t)s;
            part_codes(x + 16 * p, 16, d * (float)s, 0, -32, 31, 32, q + 16 * p);
        }
        for (int half = 0; half < 2; half++, low += 64, high += 32) {
            const uint8_t *c = q + 128 * half;
            for (int l = 0; l < 32; l++) {
                low[l] = (uint8_t)((c[l] & 15) | (c[l + 64] & 15) << 4);
                low[l + 32] = (uint8_t)((c[l + 32] & 15) | (c[l + 96] & 15) << 4);
                high[l] = (uint8_t)(c[l] >> 4 | c[l + 32] >> 4 << 2 | c[l + 64] >> 4 << 4 | c[l + 96] >> 4 << 6);
            }
        }
    }
}
