// Buffers between guard bytes, random values, and a clock: shared by the kernel tests.
#ifndef MELIES_TEST_GUARD_H
#define MELIES_TEST_GUARD_H

#include "check.h"

enum {
    GUARD = 128,
    GUARD_BYTE = 0xa5
};

typedef struct guarded {
    unsigned char *block;
    size_t before, bytes;
    void *p; // `offset` bytes past a 64-byte boundary
} guarded;

static guarded guarded_new(size_t bytes, size_t offset) {
    guarded g = {.before = GUARD + offset, .bytes = bytes};
    size_t total = (GUARD + offset + bytes + GUARD + 63) / 64 * 64;
    g.block = aligned_alloc(64, total);
    memset(g.block, GUARD_BYTE, total);
    g.p = g.block + g.before;
    return g;
}

// Frees; true where nothing outside was written.
static bool guarded_end(guarded *g) {
    bool whole = true;
    for (size_t i = 0; i < g->before; i++)
        whole = whole && g->block[i] == GUARD_BYTE;
    for (size_t i = 0; i < GUARD; i++)
        whole = whole && g->block[g->before + g->bytes + i] == GUARD_BYTE;
    free(g->block);
    return whole;
}

static uint64_t random_state = 88172645463325252ull;
static uint64_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}
static int64_t random_below(int64_t n) {
    return (int64_t)(random_bits() % (uint64_t)n);
}
// Uniform in [-size, size).
static float random_float(float size) {
    return size * ((float)(random_bits() >> 40) * 0x1p-23f - 1.0f);
}

// seconds = the time of one call: the best of five runs of about a millisecond.
#define TIME(seconds, call)                                                                                            \
    do {                                                                                                               \
        (seconds) = INFINITY;                                                                                          \
        int64_t calls_ = 1;                                                                                            \
        for (int run_ = 0; run_ < 5;) {                                                                                \
            double start_ = mel_seconds();                                                                             \
            for (int64_t c_ = 0; c_ < calls_; c_++) {                                                                  \
                call;                                                                                                  \
            }                                                                                                          \
            double spent_ = mel_seconds() - start_;                                                                    \
            if (spent_ < 5e-4) {                                                                                       \
                calls_ *= 2;                                                                                           \
                continue;                                                                                              \
            }                                                                                                          \
            if (spent_ / (double)calls_ < (seconds)) (seconds) = spent_ / (double)calls_;                              \
            run_++;                                                                                                    \
        }                                                                                                              \
    } while (0)

#endif
