// Attention scores in 8 bits: queries as u8 (value + 128), keys as s8, exact sums in s32, floats as the result.
// scores_s8_ref.c is the naive twin.
#ifndef KERNELS_SCORES_S8_H
#define KERNELS_SCORES_S8_H

#include <stdint.h>

enum {
    SCORES_PANEL = 64,
    SCORES_HEAD = SCORES_PANEL * 8
}; // keys of a packed panel; bytes of a panel before its values

// A panel: [64] f32 scales of the keys, [64] f32 offsets (-128 times the sum of a key's values times its scale, which
// takes the queries' offset back out), then [k / 4][64][4] s8, none of them -128. k is a multiple of 4.
typedef struct scores_s8_kernels {
    // s[i][j] = (q_i . key_j) * scale of key j for m queries, ldq bytes apart, and 64 * panels keys; rows of s are lds
    // floats apart. The scales of the queries are left to the softmax.
    void (*scores)(
        int64_t m, int64_t panels, int64_t k, const uint8_t *q, int64_t ldq, const int8_t *keys, float *s, int64_t lds);
} scores_s8_kernels;

extern const scores_s8_kernels scores_s8_kernels_ref, scores_s8_kernels_avx2, scores_s8_kernels_avx512;

#endif
