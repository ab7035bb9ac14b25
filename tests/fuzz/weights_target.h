// What the fuzzers of weight files share: open the bytes, read all there is to read, close.
//   clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined ... tests/fuzz/fuzz_gguf.c core/... (see
//   docs/weights.md)
// With -DMELIES_FUZZ_REPLAY and without -fsanitize=fuzzer: a program that runs the files it is given once.
#ifndef MELIES_WEIGHTS_TARGET_H
#define MELIES_WEIGHTS_TARGET_H

#include <melies/weights.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Adds up bytes so that a sanitizer sees every one of them.
static void weights_touch(const void *data, int64_t bytes) {
    const uint8_t *p = data;
    unsigned sum = 0;
    for (int64_t i = 0; i < bytes; i++)
        sum += p[i];
    __asm__ volatile("" : : "r"(sum));
}

// Returns whether the bytes were accepted.
static bool weights_target(const uint8_t *data, size_t size, const char *name) {
    mel_weights *w = NULL;
    mel_error err = {0};
    if (mel_weights_open_memory(data, (int64_t)size, name, &w, &err) != MEL_OK) {
        for (const char *c = err.message; *c; c++) {
            if ((unsigned char)*c < 0x20) abort(); // a message is one line
        }
        if (!err.message[0] || w) abort();
        return false;
    }
    for (int64_t i = 0; i < mel_weights_count(w); i++) {
        const char *key = mel_weights_name(w, i);
        mel_tensor *t = NULL;
        if (mel_weights_find(w, key) != i) abort();
        if (mel_weights_tensor(w, key, MEL_SAME, &t, &err) == MEL_OK) {
            weights_touch(mel_tensor_data(t), mel_tensor_bytes(t));
            mel_tensor_unref(t);
        }
        if (mel_weights_raw(w, key, &t, &err) == MEL_OK) {
            weights_touch(mel_tensor_data(t), mel_tensor_bytes(t));
            mel_tensor_unref(t);
        }
    }
    for (int64_t i = 0; i < mel_weights_meta_count(w); i++) {
        int64_t length = mel_weights_meta_length(w, i);
        mel_meta_value v;
        for (int64_t k = 0; k < (length < 0 ? 1 : length); k++) {
            if (mel_weights_meta_get(w, i, k, &v, &err) != MEL_OK) abort();
            if (v.type == MEL_META_STRING) weights_touch(v.text, v.length);
        }
    }
    mel_weights_close(w);
    return true;
}

#ifdef MELIES_FUZZ_REPLAY
static int weights_replay(int count, char **files, const char *name) {
    for (int i = 1; i < count; i++) {
        FILE *f = fopen(files[i], "rb");
        if (!f) return fprintf(stderr, "%s: cannot be opened\n", files[i]), 1;
        size_t size = 0, room = 64 << 20;
        uint8_t *data = malloc(room);
        if (data) size = fread(data, 1, room, f);
        fclose(f);
        uint8_t *exact = realloc(data, size ? size : 1); // a read past the end is seen
        printf("%s: %s\n", files[i], weights_target(exact, size, name) ? "accepted" : "refused");
        free(exact);
    }
    return 0;
}
#endif

#endif
