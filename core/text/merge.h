// The merging of byte-pair encoding: the best pair of neighbours first, the leftmost among equals, until none is
// left. n log n by a heap. For tables in the order they were learned this equals merging all of a pair at a time.
#ifndef MELIES_TEXT_MERGE_H
#define MELIES_TEXT_MERGE_H

#include <melies/base.h>

typedef struct mel_symbol {
    const char *text;   // neighbours lie next to each other
    uint32_t size;      // bytes; 0: merged away
    int32_t prev, next; // -1: none
    int32_t id;
    bool frozen; // never merged
} mel_symbol;

// Whether left and right merge; then *score (higher goes first) and *id of the result.
typedef bool (*mel_merge_lookup)(
    void *context, const mel_symbol *left, const mel_symbol *right, double *score, int32_t *id);

// Sets prev and next of all count symbols, and merges in place. Symbol 0 stays the first of the chain.
mel_status mel_merge(mel_symbol *symbols, size_t count, mel_merge_lookup lookup, void *context, mel_error *err);

#endif
