// The inside of a tensor, for the core. Lua and plugins see the handle only.
#ifndef MELIES_CORE_TENSOR_H
#define MELIES_CORE_TENSOR_H

#include <melies/tensor.h>
#include <stdatomic.h>

typedef struct mel_storage {
    atomic_int refs;
    void (*release)(void *owner); // NULL: nobody frees the data
    void *owner;
} mel_storage;

struct mel_tensor {
    atomic_int refs;
    mel_dtype dtype;
    int ndim;
    bool writable;
    int64_t shape[MEL_MAX_DIMS];
    int64_t strides[MEL_MAX_DIMS]; // elements
    char *data;
    mel_storage *storage;
};

// a * b that says no instead of wrapping.
static inline bool mel_mul_ok(int64_t a, int64_t b, int64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

// A contiguous tensor of a's shape.
mel_status mel_tensor_like(const mel_tensor *a, mel_dtype dtype, mel_tensor **out, mel_error *err);
// axis from -ndim..ndim-1 to 0..ndim-1, or MEL_EINVAL naming `what`.
mel_status mel_axis(const mel_tensor *t, int axis, const char *what, int *out, mel_error *err);
bool mel_is_float(mel_dtype dtype);
// The strides with which t walks along `shape` when broadcast from the right; false where it does not fit.
bool mel_broadcast_strides(const mel_tensor *t, int ndim, const int64_t *shape, int64_t *strides);

// A source reads `count` rows from `first` on as floats of `dtype` into dst. base: row 0 where the rows lie dense in
// memory as `stored` and need no conversion, else NULL.
struct mel_source {
    atomic_int refs;
    int64_t rows, columns;
    mel_dtype stored;
    const char *base;
    mel_status (*read)(const void *owner, int64_t first, int64_t count, mel_dtype dtype, void *dst, mel_error *err);
    void (*release)(void *owner);
    void *owner;
};
mel_status mel_source_create(const mel_source *fields, mel_source **out, mel_error *err); // takes over owner
mel_source *mel_source_ref(mel_source *source);

#endif
