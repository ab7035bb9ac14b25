// Packed layers in files: header and checksum.
#include "ops/packed.h"

#include <string.h>

_Static_assert(sizeof(packed_header) == 64, "what follows is aligned for vectors");

static const char MAGIC[8] = "MELPACK1";

enum {
    PIECE = 1 << 20
};

uint64_t mel_packed_mix(uint64_t hash, const void *data, size_t size) {
    const uint8_t *p = data;
    if (!hash) hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

// Four interleaved polynomials over 64-bit words: as fast as memory.
static uint64_t piece_sum(const char *p, int64_t bytes) {
    uint64_t a[4] = {1, 2, 3, 4}, w[4];
    int64_t i = 0;
    for (; i + 32 <= bytes; i += 32) {
        memcpy(w, p + i, 32);
        for (int j = 0; j < 4; j++)
            a[j] = (a[j] ^ w[j]) * 0x9e3779b97f4a7c15u;
    }
    uint64_t all = mel_packed_mix(0, p + i, (size_t)(bytes - i));
    for (int j = 0; j < 4; j++)
        all = (all ^ a[j] ^ (a[j] >> 29)) * 0xbf58476d1ce4e5b9u;
    return all;
}

static uint64_t sum_of(const char *p, int64_t bytes) {
    uint64_t all = (uint64_t)bytes;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) reduction(+ : all) if (bytes > PIECE)
    for (int64_t at = 0; at < bytes; at += PIECE) {
        uint64_t one = piece_sum(p + at, bytes - at < PIECE ? bytes - at : PIECE);
        all += one * (uint64_t)(2 * (at / PIECE) + 1);
    }
    return all;
}

void mel_packed_seal(packed_header *header) {
    memcpy(header->magic, MAGIC, sizeof MAGIC);
    header->sum = sum_of((const char *)(header + 1), header->bytes);
}

mel_status mel_packed_check(const mel_tensor *packed, const packed_header **out, mel_error *err) {
    const int64_t size = mel_tensor_numel(packed);
    const packed_header *h = (const packed_header *)(const void *)packed->data;
    if (packed->dtype != MEL_U8 || !mel_tensor_is_contiguous(packed) || size < (int64_t)sizeof *h ||
        (uintptr_t)packed->data % 64 || memcmp(h->magic, MAGIC, sizeof MAGIC) != 0 ||
        h->bytes != size - (int64_t)sizeof *h)
        return mel_fail(err, MEL_EFORMAT, "linear: this is no packed layer");
    if (sum_of((const char *)(h + 1), h->bytes) != h->sum)
        return mel_fail(err, MEL_EFORMAT, "linear: the packed layer is damaged");
    *out = h;
    return MEL_OK;
}

mel_status mel_linear_packed_check(const mel_tensor *packed, mel_error *err) {
    const packed_header *header;
    return mel_packed_check(packed, &header, err);
}
