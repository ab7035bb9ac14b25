// The packed form of a linear layer as it is kept in a file: a header, then what the layer keeps in memory.
#ifndef MELIES_CORE_PACKED_H
#define MELIES_CORE_PACKED_H

#include "ops/ops.h"

typedef struct packed_header {
    char magic[8];
    uint64_t layout; // of the layout in this process: another one is refused
    uint64_t sum;    // of the bytes behind the header
    int64_t bytes;   // behind the header
    int64_t n, k, compute;
    int64_t flags; // mel_s8_form, or 0
} packed_header;

// FNV-1a over more bytes.
uint64_t mel_packed_mix(uint64_t hash, const void *data, size_t size);
// Fills in magic and sum from what lies behind the header.
void mel_packed_seal(packed_header *header);
// u8, dense, with a header whose size and sum are right; else MEL_EFORMAT.
mel_status mel_packed_check(const mel_tensor *packed, const packed_header **out, mel_error *err);

#endif
