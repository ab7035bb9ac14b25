// Attention in 8 bits: queries and probabilities as u8, keys and values as s8, exact sums in s32, floats as the
// results. attention_s8_ref.c is the naive twin.
#ifndef KERNELS_ATTENTION_S8_H
#define KERNELS_ATTENTION_S8_H

#include <stdint.h>

enum {
    SCORES_PANEL = 64,
    SCORES_HEAD = SCORES_PANEL * 8, // bytes of a panel of keys before its values
    VALUES_HEAD = SCORES_PANEL * 4  // the same of values
};                                  // keys, or channels of values, of a packed panel

// A panel of keys: [64] f32 scales of the keys, [64] f32 offsets (-128 times the sum of a key's values times its scale,
// which takes the queries' offset of 128 back out), then [k / 4][64][4] s8, none of them -128. k is a multiple of 4.
// A panel of values: [64] f32 scales of the channels, then [keys / 4][64][4] s8.
typedef struct attention_s8_kernels {
    // s[i][j] = (q_i . key_j) * scale of key j for m queries, ldq bytes apart, and 64 * panels keys; rows of s are lds
    // floats apart. The scales of the queries are left to the softmax.
    void (*scores)(
        int64_t m, int64_t panels, int64_t k, const uint8_t *q, int64_t ldq, const int8_t *keys, float *s, int64_t lds);
    // top[i] = the largest s[i][j] * scales[i] of n >= 1 finite scores, p[i][j] = round(255 exp(s[i][j] * scales[i] -
    // top[i])), sums[i] = their sum; scales from 0 on, rows of p ldp bytes apart.
    void (*rows)(int64_t m, int64_t n, const float *s, int64_t lds, const float *scales, float *top, float *sums,
        uint8_t *p, int64_t ldp);
    // acc[i][c] += weights[i] * scale of channel c * sum over k keys of p[i][t] * value[first + t][c], for 64 * panels
    // channels. A panel holds `keys` keys; first and k are multiples of 4; rows of acc are lda floats apart.
    void (*add)(int64_t m, int64_t panels, int64_t k, const uint8_t *p, int64_t ldp, const int8_t *values, int64_t keys,
        int64_t first, const float *weights, float *acc, int64_t lda);
} attention_s8_kernels;

extern const attention_s8_kernels attention_s8_kernels_ref, attention_s8_kernels_avx2, attention_s8_kernels_avx512,
    attention_s8_kernels_amx;

#endif
