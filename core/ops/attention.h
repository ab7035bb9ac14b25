// What the two halves of blocked attention share: attention.c, which divides the work, and attention_pack.c, which lays
// keys, values and queries out for the kernels.
#ifndef MELIES_CORE_ATTENTION_H
#define MELIES_CORE_ATTENTION_H

#include "kernels/attention.h"
#include "kernels/attention_s8.h"
#include "kernels/gemm_s8.h"
#include "ops/ops.h"

enum {
    ATTENTION_QUERIES = 96, // rows of a task without a mask
    ATTENTION_KEYS = 256    // keys between two looks at the softmax
};

typedef struct attention_job {
    const mel_tensor *q, *k, *v, *bias;
    const float *key_bias;
    int64_t key_bias_step; // floats from one sample to the next
    mel_tensor *out;
    const attention_kernels *kernels;
    const attention_s8_kernels *s8;
    bool s8_scores, s8_values; // false: from operands as they are
    const gemm_s8_kernels *quantizer;
    mel_dtype operand;
    int64_t size;                    // bytes of an operand
    int64_t lq, lk;                  // tokens
    int64_t keys;                    // tokens, rounded up to whole blocks of a mask: what is packed
    int64_t depth;                   // head width, rounded up to what a step of the scores takes
    int64_t width;                   // head width, rounded up to a panel: what v is packed to
    int64_t panel_keys, panel_bytes; // of a panel of k
    int64_t bytes_k, bytes_v;        // of a head's panels
    const int32_t *offsets, *blocks; // mask: query block i sees blocks[offsets[i]] to blocks[offsets[i + 1] - 1]
    float scale;
    bool causal;
} attention_job;

// Room of one thread.
typedef struct attention_room {
    char *q, *p;           // [QUERIES][depth] operands or u8, [QUERIES][KEYS] operands
    float *scales;         // [QUERIES]: what a row's scores are times
    float *s, *acc;        // [QUERIES][KEYS], [QUERIES][width]
    float *top, *before;   // [QUERIES]: the largest score so far, and before these keys
    float *total, *sums;   // [QUERIES]: of exponentials so far, and of these keys
    float *peak, *weights; // [QUERIES], 8-bit values: the largest score of these keys, what their sums are times
    float *buffer;         // [width]
    float *block;          // [KEYS][width], 8-bit values
    char *rows;            // two rows of operands
} attention_room;

// The sizes of j's panels from its tensors, kernels and lengths.
void mel_attention_sizes(attention_job *j);
// Bytes of one block of KEYS keys of 8-bit values.
int64_t mel_attention_values_bytes(const attention_job *j);
// mean[c] of the keys of one head. Scores lose by it what is the same for all keys, which a softmax does not see.
void mel_attention_mean(const attention_job *j, int64_t b, int64_t h, float *buffer, float *mean);
// Keys [first, first + count) of a head into its panels, count a whole number of blocks or all that are left; what lies
// beyond the last key is zeros. mean: of mel_attention_mean, for 8 bits.
void mel_attention_pack_keys(const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count,
    const float *mean, char *pk, const attention_room *w);
// The same of the values: [width / panel][keys / pairs][panel][pairs]; in 8 bits, of KEYS keys at a time, panels of
// channels with a scale each.
void mel_attention_pack_values(
    const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count, char *pv, const attention_room *w);
void mel_attention_load_queries(
    const attention_job *j, int64_t b, int64_t h, int64_t first, int64_t count, const attention_room *w);

#endif
