// The two layers under a .pth file: a zip container and a pickle.
#ifndef MELIES_WEIGHTS_PTH_H
#define MELIES_WEIGHTS_PTH_H

#include "weights/file.h"

// ---- zip.c: records that are stored, not compressed ----------------------------------------------
typedef struct zip_record {
    const char *name;
    int64_t offset, bytes;
} zip_record;

// The directory, sorted by name, in w's arena. Handles zip64. Everything lies inside the file.
mel_status mel_zip_list(mel_weights *w, const mapping *m, zip_record **out, int64_t *count, mel_error *err);
const zip_record *mel_zip_find(const zip_record *records, int64_t count, const char *name);

// ---- pickle.c: values without code -----------------------------------------------------------------
typedef enum value_kind {
    VALUE_MARK,
    VALUE_NONE, // also numbers that carry nothing for us
    VALUE_BOOL,
    VALUE_INT,
    VALUE_TEXT,
    VALUE_TUPLE,
    VALUE_LIST,
    VALUE_DICT, // items: key, value, key, value ...
    VALUE_GLOBAL,
    VALUE_STORAGE,
    VALUE_TENSOR
} value_kind;

typedef struct value value;
struct value {
    value_kind kind;
    int64_t integer;         // int, bool; global: which; storage: elements; tensor: first element
    const char *text;        // text, storage: its key; not ended by a zero
    int64_t length;          // bytes of text
    const stored_type *type; // storage, and the global that names its class
    value **items;           // tensor: storage, shape, strides
    int64_t count, capacity;
};

// Interprets the pickle in bytes [offset, offset + size) of m. Understands what dictionaries of tensors are made of and
// refuses all else (MEL_EUNSUPPORTED). *out is in w's arena. The graph may have shared parts, and cycles.
mel_status mel_unpickle(
    mel_weights *w, const mapping *m, int64_t offset, int64_t size, const value **out, mel_error *err);

#endif
