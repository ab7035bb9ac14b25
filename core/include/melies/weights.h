// Files of named tensors. Reading: safetensors (also sharded through an index), GGUF and PyTorch's zip container,
// told apart by content. Writing: safetensors and GGUF. Files are mapped read-only; a tensor whose stored type is one
// of ours and whose bytes are aligned is a view of the file, every other one is a converted copy. Little-endian only.
// A file that another program cuts short while it is open ends this program (SIGBUS), as with every mapped file.
#ifndef MELIES_WEIGHTS_H
#define MELIES_WEIGHTS_H

#include <melies/tensor.h>

// ---- opening ---------------------------------------------------------------------------------
// Reads nothing but the description; never runs what a file holds (a .pth pickle is interpreted by a small list of
// harmless opcodes). Read-only afterwards: any number of threads may use one handle.
typedef struct mel_weights mel_weights;

// MEL_EIO: cannot be opened or mapped. MEL_EFORMAT: not what it claims to be; the message names file, field and value.
// MEL_EUNSUPPORTED: valid, but holds a type or a layout not known here.
MEL_API mel_status mel_weights_open(const char *path, mel_weights **out, mel_error *err);
// Over bytes in memory, which must outlive the handle and every tensor of it. name stands in messages. An index of
// shards is MEL_EUNSUPPORTED here: it has no folder.
MEL_API mel_status mel_weights_open_memory(
    const void *data, int64_t size_bytes, const char *name, mel_weights **out, mel_error *err);
// Tensors taken from it stay valid: they keep the mapping alive. NULL is fine.
MEL_API void mel_weights_close(mel_weights *w);

// ---- what is in it -----------------------------------------------------------------------------
MEL_API const char *mel_weights_path(const mel_weights *w);
MEL_API const char *mel_weights_format(const mel_weights *w); // "safetensors", "safetensors index", "gguf", "pth"
// Tensors are numbered 0..count-1 in byte order of their names. A number outside that gives NULL or -1.
MEL_API int64_t mel_weights_count(const mel_weights *w);
MEL_API const char *mel_weights_name(const mel_weights *w, int64_t index);
MEL_API int64_t mel_weights_find(const mel_weights *w, const char *name); // -1 where there is none
// The type in the file: "F32", "F8_E4M3", "Q4_K" ...
MEL_API const char *mel_weights_stored(const mel_weights *w, int64_t index);
// What mel_weights_tensor gives for MEL_SAME: F32 BF16 F16 I8 U8 I32 I64 as stored; F64 -> f32; F8_* -> bf16 (exact);
// BOOL -> u8; I16, U16 -> s32; U32 -> i64; U64 -> i64 (saturated); block-quantised -> f32. MEL_SAME where no such
// index.
MEL_API mel_dtype mel_weights_dtype(const mel_weights *w, int64_t index);
MEL_API int mel_weights_ndim(const mel_weights *w, int64_t index);
MEL_API const int64_t *mel_weights_shape(const mel_weights *w, int64_t index); // row-major, also for GGUF
MEL_API int64_t mel_weights_bytes(const mel_weights *w, int64_t index);        // as stored
MEL_API int64_t mel_weights_offset(const mel_weights *w, int64_t index);       // of its first byte in its file
MEL_API const char *mel_weights_file(const mel_weights *w, int64_t index);     // that file: the shard of an index

// ---- tensors -------------------------------------------------------------------------------------
// The tensor called name, as dtype (MEL_SAME: see mel_weights_dtype). Views of the file are read-only. Other dtypes
// go through mel_weights_dtype's, then mel_tensor_cast. *out is owned by the caller.
// MEL_EINVAL: no such tensor. MEL_ENOMEM, MEL_ECANCELED.
MEL_API mel_status mel_weights_tensor(
    const mel_weights *w, const char *name, mel_dtype dtype, mel_tensor **out, mel_error *err);
// The stored bytes, u8 [mel_weights_bytes]: for those who work on quantised blocks themselves.
MEL_API mel_status mel_weights_raw(const mel_weights *w, const char *name, mel_tensor **out, mel_error *err);
// The tensor called name as a matrix [first dimension, the rest] that is read by rows when needed: quantised blocks are
// turned into floats a few rows at a time. It keeps the file's mapping alive. MEL_EINVAL: no such tensor, fewer than
// two dimensions, not floats.
MEL_API mel_status mel_weights_source(const mel_weights *w, const char *name, mel_source **out, mel_error *err);
// The same times factors, another tensor of the file with one value or one a row: fp8 with its scales.
MEL_API mel_status mel_weights_scaled_source(
    const mel_weights *w, const char *name, const char *factors, mel_source **out, mel_error *err);
// Hints about the pages of one tensor, or of all where name is NULL: read ahead; give the memory back (a later access
// reads the file again). MEL_EINVAL: no such tensor.
MEL_API mel_status mel_weights_prefetch(const mel_weights *w, const char *name, mel_error *err);
MEL_API mel_status mel_weights_drop(const mel_weights *w, const char *name, mel_error *err);

// ---- metadata --------------------------------------------------------------------------------------
// Key and value pairs, numbered 0..count-1 in byte order of the keys. The type codes are GGUF's.
typedef enum mel_meta_type {
    MEL_META_U8 = 0,
    MEL_META_I8 = 1,
    MEL_META_U16 = 2,
    MEL_META_I16 = 3,
    MEL_META_U32 = 4,
    MEL_META_I32 = 5,
    MEL_META_F32 = 6,
    MEL_META_BOOL = 7,
    MEL_META_STRING = 8,
    MEL_META_U64 = 10,
    MEL_META_I64 = 11,
    MEL_META_F64 = 12
} mel_meta_type;

typedef struct mel_meta_value {
    int32_t type;     // a mel_meta_type
    double number;    // of every type but a string
    int64_t integer;  // of whole numbers, exact; MEL_META_U64: the same 64 bits; a bool is 0 or 1
    const char *text; // of a string: UTF-8 by convention, not ended by a zero, lives as long as the handle
    int64_t length;   // bytes of text
} mel_meta_value;

// How many pairs, their keys, and what kind of value each has.
MEL_API int64_t mel_weights_meta_count(const mel_weights *w);
MEL_API const char *mel_weights_meta_key(const mel_weights *w, int64_t index); // NULL outside 0..count-1
MEL_API int64_t mel_weights_meta_find(const mel_weights *w, const char *key);  // -1 where there is none
MEL_API int64_t mel_weights_meta_length(const mel_weights *w, int64_t index);  // elements of an array; -1: not an array
// element: 0..length-1 of an array, 0 of a single value. MEL_EINVAL: no such value.
MEL_API mel_status mel_weights_meta_get(
    const mel_weights *w, int64_t index, int64_t element, mel_meta_value *out, mel_error *err);

// ---- writing safetensors -------------------------------------------------------------------------------
// create, then metadata and declare for everything, then write each tensor once in any order, then finish. The file
// appears under its name only in finish (written beside it under a temporary name, synced, renamed). The layout depends
// on the declarations only: widest dtype first, then byte order of the names, so that every tensor is aligned to its
// dtype. Any failure leaves the writer fit only for mel_weights_writer_free.
typedef struct mel_weights_writer mel_weights_writer;

MEL_API mel_status mel_weights_writer_create(const char *path, mel_weights_writer **out, mel_error *err);
// MEL_EINVAL: empty or repeated key, a text that is not UTF-8, after the first write.
MEL_API mel_status mel_weights_writer_metadata(
    mel_weights_writer *writer, const char *key, const char *value, mel_error *err);
// dtypes are stored as F32 BF16 F16 I8 U8 I32 I64.
MEL_API mel_status mel_weights_writer_declare(
    mel_weights_writer *writer, const char *name, mel_dtype dtype, int ndim, const int64_t *shape, mel_error *err);
// tensor has the declared dtype and shape (views are fine).
MEL_API mel_status mel_weights_writer_write(
    mel_weights_writer *writer, const char *name, const mel_tensor *tensor, mel_error *err);
// MEL_EINVAL: a declared tensor was not written (named). MEL_EIO. The writer is still to be freed.
MEL_API mel_status mel_weights_writer_finish(mel_weights_writer *writer, mel_error *err);
// ---- writing GGUF, writing by rows ------------------------------------------------------------------------
// The same for GGUF version 3. metadata is text; numbers: MEL_META_U32, MEL_META_F32, MEL_META_BOOL. Tensors of more
// than four dimensions have the outer ones merged, with the shape under "comfy.gguf.orig_shape.NAME".
MEL_API mel_status mel_weights_writer_create_gguf(const char *path, mel_weights_writer **out, mel_error *err);
MEL_API mel_status mel_weights_writer_number(
    mel_weights_writer *writer, const char *key, mel_meta_type type, double value, mel_error *err);
// stored: a plain type of either format, or in GGUF Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K, whose rows must
// be whole blocks (MEL_EINVAL). MEL_EUNSUPPORTED: a type that is read only.
MEL_API mel_status mel_weights_writer_declare_stored(
    mel_weights_writer *writer, const char *name, const char *stored, int ndim, const int64_t *shape, mel_error *err);
// Rows [first, first + count) of the first dimension: floats of the declared shape but for count, converted to what was
// declared, block-quantised ones with the values of ggml's reference. Every row once, in any order. MEL_EINVAL: values
// that are not finite for a block-quantised type.
MEL_API mel_status mel_weights_writer_rows(
    mel_weights_writer *writer, const char *name, int64_t first, const mel_tensor *rows, mel_error *err);
// K-quants without the search for the best scales: many times faster, the error some 10% larger.
MEL_API void mel_weights_writer_set_quick(mel_weights_writer *writer, bool quick);
// Removes the temporary file unless finish succeeded. NULL is fine.
MEL_API void mel_weights_writer_free(mel_weights_writer *writer);

#endif
