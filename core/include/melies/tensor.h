// Tensors: a dtype, up to 8 dimensions, strides in elements, and a share of reference-counted
// storage. A view shares its source's storage and keeps it alive. Row-major unless said otherwise.
#ifndef MELIES_TENSOR_H
#define MELIES_TENSOR_H

#include <melies/base.h>

typedef struct mel_tensor mel_tensor;

typedef enum mel_dtype {
    MEL_SAME = -1, // as an output dtype: the input's
    MEL_F32 = 0,
    MEL_BF16 = 1,
    MEL_F16 = 2,
    MEL_S8 = 3,
    MEL_U8 = 4,
    MEL_S32 = 5,
    MEL_I64 = 6
} mel_dtype;

enum {
    MEL_MAX_DIMS = 8
};

MEL_API int64_t mel_dtype_size(mel_dtype dtype);     // bytes; 0 for an unknown one
MEL_API const char *mel_dtype_name(mel_dtype dtype); // "f32", "bf16", ...; "?" for an unknown one

// ---- making and keeping -------------------------------------------------------------------
// Contents are not initialised. Dimensions may be 0. On success *out is owned by the caller.
// MEL_EINVAL: ndim outside 0..8, a negative dimension, a size that overflows. MEL_ENOMEM.
MEL_API mel_status mel_tensor_create(mel_dtype dtype, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err);
MEL_API mel_status mel_tensor_zeros(mel_dtype dtype, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err);
// Over bytes that somebody else owns: release(owner) is called once when the last view goes (release may be
// NULL). data must be aligned to the dtype. The tensor is read-only where writable is false.
MEL_API mel_status mel_tensor_wrap(mel_dtype dtype, int ndim, const int64_t *shape, void *data, bool writable,
    void (*release)(void *owner), void *owner, mel_tensor **out, mel_error *err);
MEL_API mel_tensor *mel_tensor_ref(mel_tensor *t);
MEL_API void mel_tensor_unref(mel_tensor *t); // NULL is fine

// ---- looking --------------------------------------------------------------------------------
MEL_API mel_dtype mel_tensor_dtype(const mel_tensor *t);
MEL_API int mel_tensor_ndim(const mel_tensor *t);
MEL_API const int64_t *mel_tensor_shape(const mel_tensor *t);   // ndim values
MEL_API const int64_t *mel_tensor_strides(const mel_tensor *t); // ndim values, in elements
MEL_API int64_t mel_tensor_numel(const mel_tensor *t);
MEL_API int64_t mel_tensor_bytes(const mel_tensor *t); // numel * size of one
MEL_API void *mel_tensor_data(const mel_tensor *t);    // address of the first element
MEL_API bool mel_tensor_is_contiguous(const mel_tensor *t);
MEL_API bool mel_tensor_is_writable(const mel_tensor *t);
// Writes "[2, 3, 4]" and returns buffer.
MEL_API const char *mel_tensor_shape_text(const mel_tensor *t, char *buffer, size_t size_bytes);

// ---- views (share storage; axis counts from 0, negative from the end) ------------------------
MEL_API mel_status mel_tensor_slice(
    const mel_tensor *src, int axis, int64_t first, int64_t count, mel_tensor **out, mel_error *err);
// axes: a permutation of 0..ndim-1; out dimension i is src dimension axes[i].
MEL_API mel_status mel_tensor_permute(const mel_tensor *src, const int *axes, mel_tensor **out, mel_error *err);
// One dimension may be -1. A view where strides allow it, else a contiguous copy.
MEL_API mel_status mel_tensor_reshape(
    const mel_tensor *src, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err);
// Stretches dimensions of 1 (and adds leading ones) with stride 0. The result is read-only.
MEL_API mel_status mel_tensor_expand(
    const mel_tensor *src, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err);

// ---- copies ----------------------------------------------------------------------------------
MEL_API mel_status mel_tensor_contiguous(
    const mel_tensor *src, mel_tensor **out, mel_error *err); // src itself (ref) where it is
MEL_API mel_status mel_tensor_clone(const mel_tensor *src, mel_tensor **out, mel_error *err); // contiguous, own storage
// To another dtype. Floats round to nearest even; integers are rounded and saturated; NaN to integer gives 0.
// Same dtype and contiguous: src itself (ref).
MEL_API mel_status mel_tensor_cast(const mel_tensor *src, mel_dtype dtype, mel_tensor **out, mel_error *err);
// dst and src: the same shape (src may broadcast); any dtypes. They may not overlap.
MEL_API mel_status mel_tensor_copy(mel_tensor *dst, const mel_tensor *src, mel_error *err);
MEL_API mel_status mel_tensor_fill(mel_tensor *dst, double value, mel_error *err);
// Element at a flat row-major index, as a double (i64 beyond 2^53 loses digits).
MEL_API mel_status mel_tensor_get(const mel_tensor *t, int64_t index, double *out, mel_error *err);
MEL_API mel_status mel_tensor_set(mel_tensor *t, int64_t index, double value, mel_error *err);

// ---- sources -------------------------------------------------------------------------------------
// A matrix [rows, columns] that is read by rows when needed: a tensor, or a part of a file in any stored type (see
// mel_weights_source). Read-only; any number of threads may read.
typedef struct mel_source mel_source;
// A float matrix; it is kept alive, not copied. MEL_EINVAL: not a matrix of floats.
MEL_API mel_status mel_source_of(const mel_tensor *matrix, mel_source **out, mel_error *err);
MEL_API void mel_source_unref(mel_source *source); // NULL is fine
MEL_API int64_t mel_source_rows(const mel_source *source);
MEL_API int64_t mel_source_columns(const mel_source *source);
// Rows [first, first + count) as a float dtype, dense in dst. MEL_EINVAL: outside the matrix.
MEL_API mel_status mel_source_read(
    const mel_source *source, int64_t first, int64_t count, mel_dtype dtype, void *dst, mel_error *err);

#endif
