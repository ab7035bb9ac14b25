// The element types of weight files and how each becomes one of ours.
#include "weights/file.h"

#include <string.h>

#define CONVERT(fn, from, to, expression)                                                                              \
    static void fn(const uint8_t *src, void *dst, int64_t count) {                                                     \
        to *out = dst;                                                                                                 \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            from v;                                                                                                    \
            memcpy(&v, src + i * (int64_t)sizeof v, sizeof v);                                                         \
            out[i] = (expression);                                                                                     \
        }                                                                                                              \
    }

// F8_E5M2: IEEE-like, bias 15. F8_E4M3: the "fn" kind, bias 7, no infinity, NaN is S.1111.111
// (Micikevicius et al. 2022, table 1). Both fit bf16 exactly.
static uint16_t bf16_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)(bits >> 16);
}

static uint16_t bf16_of_f8(uint8_t v, int mantissa_bits, int bias, bool has_inf) {
    uint16_t sign = (uint16_t)((v & 0x80) << 8);
    int mantissa = v & ((1 << mantissa_bits) - 1);
    int top = (1 << (7 - mantissa_bits)) - 1;
    int exponent = (v & 0x7f) >> mantissa_bits;
    if (has_inf && exponent == top) return (uint16_t)(sign | (mantissa ? 0x7fc0 : 0x7f80));
    if (!has_inf && (v & 0x7f) == 0x7f) return (uint16_t)(sign | 0x7fc0);
    if (exponent == 0) { // mantissa * 2^(1 - bias - mantissa_bits), normal in bf16
        float unit = 1.0f;
        for (int i = 0; i < bias + mantissa_bits - 1; i++)
            unit *= 0.5f;
        return (uint16_t)(sign | bf16_of_float((float)mantissa * unit));
    }
    return (uint16_t)(sign | (exponent - bias + 127) << 7 | mantissa << (7 - mantissa_bits));
}

static int64_t i64_of_u64(uint64_t v) {
    return v > INT64_MAX ? INT64_MAX : (int64_t)v;
}

CONVERT(f32_of_f64, double, float, (float)v)
CONVERT(bf16_of_e4m3, uint8_t, uint16_t, bf16_of_f8(v, 3, 7, false))
CONVERT(bf16_of_e5m2, uint8_t, uint16_t, bf16_of_f8(v, 2, 15, true))
CONVERT(s32_of_i16, int16_t, int32_t, v)
CONVERT(s32_of_u16, uint16_t, int32_t, v)
CONVERT(i64_of_u32, uint32_t, int64_t, v)
CONVERT(i64_of_u64s, uint64_t, int64_t, i64_of_u64(v))

// Plain types first, in the order of mel_dtype.
static const stored_type types[] = {
    {"F32", 0, 1, 4, MEL_F32, NULL, NULL},
    {"BF16", 30, 1, 2, MEL_BF16, NULL, NULL},
    {"F16", 1, 1, 2, MEL_F16, NULL, NULL},
    {"I8", 24, 1, 1, MEL_S8, NULL, NULL},
    {"U8", -1, 1, 1, MEL_U8, NULL, NULL},
    {"I32", 26, 1, 4, MEL_S32, NULL, NULL},
    {"I64", 27, 1, 8, MEL_I64, NULL, NULL},
    {"BOOL", -1, 1, 1, MEL_U8, NULL, NULL},
    {"F64", 28, 1, 8, MEL_F32, f32_of_f64, NULL},
    {"F8_E4M3", -1, 1, 1, MEL_BF16, bf16_of_e4m3, NULL},
    {"F8_E5M2", -1, 1, 1, MEL_BF16, bf16_of_e5m2, NULL},
    {"I16", 25, 1, 2, MEL_S32, s32_of_i16, NULL},
    {"U16", -1, 1, 2, MEL_S32, s32_of_u16, NULL},
    {"U32", -1, 1, 4, MEL_I64, i64_of_u32, NULL},
    {"U64", -1, 1, 8, MEL_I64, i64_of_u64s, NULL},
    {"Q4_0", 2, 32, 18, MEL_F32, mel_dequant_q4_0, mel_quant_q4_0},
    {"Q4_1", 3, 32, 20, MEL_F32, mel_dequant_q4_1, mel_quant_q4_1},
    {"Q5_0", 6, 32, 22, MEL_F32, mel_dequant_q5_0, mel_quant_q5_0},
    {"Q5_1", 7, 32, 24, MEL_F32, mel_dequant_q5_1, mel_quant_q5_1},
    {"Q8_0", 8, 32, 34, MEL_F32, mel_dequant_q8_0, mel_quant_q8_0},
    {"Q2_K", 10, 256, 84, MEL_F32, mel_dequant_q2_k, mel_quant_q2_k},
    {"Q3_K", 11, 256, 110, MEL_F32, mel_dequant_q3_k, mel_quant_q3_k},
    {"Q4_K", 12, 256, 144, MEL_F32, mel_dequant_q4_k, mel_quant_q4_k},
    {"Q5_K", 13, 256, 176, MEL_F32, mel_dequant_q5_k, mel_quant_q5_k},
    {"Q6_K", 14, 256, 210, MEL_F32, mel_dequant_q6_k, mel_quant_q6_k},
};
enum {
    TYPES = sizeof types / sizeof types[0]
};

const stored_type *mel_stored_by_name(const char *name) {
    for (int i = 0; i < TYPES; i++) {
        if (types[i].block == 1 && strcmp(types[i].name, name) == 0) return &types[i];
    }
    return NULL;
}

const stored_type *mel_stored_by_any_name(const char *name) {
    for (int i = 0; i < TYPES; i++) {
        if (strcmp(types[i].name, name) == 0) return &types[i];
    }
    return NULL;
}

const stored_type *mel_stored_by_gguf(uint32_t number, const char **why) {
    for (int i = 0; i < TYPES; i++) {
        if (types[i].gguf >= 0 && (uint32_t)types[i].gguf == number) return &types[i];
    }
    bool removed = number == 4 || number == 5 || (number >= 31 && number <= 33) || (number >= 36 && number <= 38);
    *why = removed ? "was removed from the format" : number <= 41U ? "is not built here" : "is unknown";
    return NULL;
}

const stored_type *mel_stored_of_dtype(mel_dtype dtype) {
    return dtype >= MEL_F32 && dtype <= MEL_I64 ? &types[dtype] : NULL;
}

bool mel_dense_size(const stored_type *type, int ndim, const int64_t *shape, int64_t *count, int64_t *bytes) {
    int64_t n = 1, b;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(n, shape[i], &n)) return false;
    }
    if (n % type->block != 0 || __builtin_mul_overflow(n / type->block, (int64_t)type->block_size, &b)) return false;
    *count = n;
    *bytes = b;
    return true;
}
