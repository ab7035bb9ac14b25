// Inside of core/weights: the handle that every format fills, and what the formats share.
#ifndef MELIES_WEIGHTS_FILE_H
#define MELIES_WEIGHTS_FILE_H

#include <melies/weights.h>
#include <stdatomic.h>

// mel_fail where the compiler sees that the status is not MEL_OK. They take the error from err.
#define FAIL(status, ...) (mel_fail(err, status, __VA_ARGS__), status)
#define REFUSE(...) FAIL(MEL_EFORMAT, __VA_ARGS__)

// ---- memory of a handle: small pieces that go together ------------------------------------------
typedef struct arena {
    struct arena_chunk *chunks;
} arena;

void *mel_arena_alloc(arena *a, size_t size_bytes, mel_error *err); // 16-byte aligned, zeroed
char *mel_arena_text(arena *a, const char *text, size_t length, mel_error *err);
void mel_arena_free(arena *a);

// Makes room for one more of *items (mel_alloc, doubling). false: no memory, *err is set.
bool mel_grow(void **items, int64_t count, int64_t *capacity, size_t item_bytes, mel_error *err);

// ---- a file's bytes, counted by the handle and by the tensors that are views of it --------------
typedef struct mapping {
    atomic_int refs;
    const uint8_t *data;
    size_t size;
    bool mapped; // munmap at the end; else somebody else's memory
    char path[]; // for messages
} mapping;

mel_status mel_mapping_open(const char *path, mapping **out, mel_error *err);
mel_status mel_mapping_borrow(const void *data, size_t size, const char *name, mapping **out, mel_error *err);
void mel_mapping_unref(void *m);

// ---- element types as stored -----------------------------------------------------------------------
typedef struct stored_type {
    const char *name;
    int32_t gguf;       // ggml's number, -1 where it has none
    int32_t block;      // elements in a block; 1 for plain types
    int32_t block_size; // bytes of a block
    mel_dtype dtype;    // what it is read as
    // src: count elements (whole blocks), any alignment; dst: count of dtype. NULL: the bytes are dtype's own.
    void (*convert)(const uint8_t *src, void *dst, int64_t count);
    // The other way, count finite floats (whole blocks); quick: without a search for the best scales. NULL: a plain
    // type.
    void (*quantize)(const float *src, uint8_t *dst, int64_t count, bool quick);
} stored_type;

const stored_type *mel_stored_by_name(const char *name);
// NULL for a number that is unknown; then *why is "removed from the format", "not known here" ...
const stored_type *mel_stored_by_gguf(uint32_t number, const char **why);
const stored_type *mel_stored_of_dtype(mel_dtype dtype);

// The type called name, block-quantised ones included; NULL where there is none.
const stored_type *mel_stored_by_any_name(const char *name);

// quantize.c: ggml's choice of scales and codes.
void mel_quant_q4_0(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q4_1(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q5_0(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q5_1(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q8_0(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q2_k(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q3_k(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q4_k(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q5_k(const float *src, uint8_t *dst, int64_t count, bool quick);
void mel_quant_q6_k(const float *src, uint8_t *dst, int64_t count, bool quick);

// dequant.c: ggml's reference arithmetic.
void mel_dequant_q4_0(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q4_1(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q5_0(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q5_1(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q8_0(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q2_k(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q3_k(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q4_k(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q5_k(const uint8_t *src, void *dst, int64_t count);
void mel_dequant_q6_k(const uint8_t *src, void *dst, int64_t count);

// ---- the handle --------------------------------------------------------------------------------------
typedef struct entry {
    const char *name; // in the arena
    const stored_type *type;
    const mapping *map;
    int64_t offset, bytes; // in map; bytes = what a dense copy takes
    int ndim;
    int64_t shape[MEL_MAX_DIMS];
    const int64_t *strides; // in elements, >= 0; NULL: dense
} entry;

typedef struct meta {
    const char *key;
    int32_t type;
    int64_t length; // -1: not an array
    const char *text;
    int64_t text_length;      // a single string
    const uint8_t *bytes;     // other values, packed
    const int64_t *positions; // array of strings: where each one's length field stands, from bytes
} meta;

struct mel_weights {
    const char *path;
    const char *format;
    arena arena;
    mapping **maps;
    int64_t map_count, map_capacity;
    entry *entries;
    int64_t count, capacity;
    meta *metas;
    int64_t meta_count, meta_capacity;
};

// Each fills w from m (already in w->maps). Entries may come in any order; names are checked for repeats afterwards.
mel_status mel_read_safetensors(mel_weights *w, const mapping *m, mel_error *err);
mel_status mel_read_index(mel_weights *w, const mapping *m, mel_error *err);
mel_status mel_read_gguf(mel_weights *w, const mapping *m, mel_error *err);
mel_status mel_read_pth(mel_weights *w, const mapping *m, mel_error *err);

mel_status mel_weights_map(mel_weights *w, mapping *m, mel_error *err); // takes over the reference, also on failure
mel_status mel_weights_add(mel_weights *w, const entry *e, mel_error *err);
mel_status mel_weights_add_meta(mel_weights *w, const meta *m, mel_error *err);
mel_status mel_weights_sort(mel_weights *w, mel_error *err);      // by name; MEL_EFORMAT: a repeated one
mel_status mel_weights_sort_meta(mel_weights *w, mel_error *err); // by key, likewise

// Product of the dimensions and bytes of that many elements of type; false: negative, overflow, or a rest of a block.
bool mel_dense_size(const stored_type *type, int ndim, const int64_t *shape, int64_t *count, int64_t *bytes);

// A name from a file for a one-line message: control bytes become \xNN, long ones are cut. Returns buffer.
enum {
    SHOWN = 120
};
const char *mel_shown(char buffer[SHOWN], const char *text, size_t length);

#endif
