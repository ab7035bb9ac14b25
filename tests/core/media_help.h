// A folder of files, whole files as bytes and repeatable random numbers, for the tests of media.
#ifndef MELIES_TEST_MEDIA_HELP_H
#define MELIES_TEST_MEDIA_HELP_H

#include "check.h"

static char folder[64];

static const char *in(const char *name) {
    static char paths[4][256];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, 256, "%s/%s", folder, name);
    return path;
}

static uint32_t state = 12345;
static inline uint32_t random_number(void) { // xorshift32
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static inline size_t load(const char *path, uint8_t *bytes, size_t room) {
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(bytes, 1, room, f) : 0;
    if (f) fclose(f);
    return n;
}

static inline void store(const char *path, const uint8_t *bytes, size_t size) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, size, f) == size);
    if (f) fclose(f);
}

#endif
