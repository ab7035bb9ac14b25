// Inside of the writers: what safetensors and GGUF share.
#ifndef MELIES_WEIGHTS_WRITER_H
#define MELIES_WEIGHTS_WRITER_H

#include "weights/file.h"

typedef struct slot {
    const char *name;
    const stored_type *type;
    int ndim;
    int64_t shape[MEL_MAX_DIMS];
    int64_t offset, bytes; // from the begin of the data
    int64_t row_bytes;     // of one step along the first dimension
    int64_t rows_left;     // that are not written yet
} slot;

typedef struct pair {
    const char *key, *value; // value: NULL where the number counts
    mel_meta_type type;      // of number
    double number;
} pair;

struct mel_weights_writer {
    const char *path, *temporary;
    int fd;           // -1 once closed
    bool gguf, quick; // GGUF instead of safetensors; quantise without a search
    bool started, failed;
    int64_t base; // bytes before the data
    int64_t end;  // of the file; 0: the last tensor's
    arena arena;
    slot *slots;
    int64_t count, capacity;
    pair *pairs;
    int64_t pair_count, pair_capacity;
};

// GGUF's header: *out is mel_alloc'd, *size its bytes up to the data; sets the slots' offsets and the file's end.
mel_status mel_gguf_header(mel_weights_writer *w, uint8_t **out, int64_t *size, mel_error *err);

#endif
