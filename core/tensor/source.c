// Matrices that are read by rows when needed.
#include "tensor/rows.h"

mel_status mel_source_create(const mel_source *fields, mel_source **out, mel_error *err) {
    mel_source *s = mel_alloc(sizeof *s, err);
    if (!s) return MEL_ENOMEM;
    *s = *fields;
    atomic_init(&s->refs, 1);
    *out = s;
    return MEL_OK;
}

mel_source *mel_source_ref(mel_source *source) {
    if (source) atomic_fetch_add(&source->refs, 1);
    return source;
}

void mel_source_unref(mel_source *source) {
    if (!source || atomic_fetch_sub(&source->refs, 1) != 1) return;
    if (source->release) source->release(source->owner);
    mel_free(source);
}

int64_t mel_source_rows(const mel_source *source) {
    return source->rows;
}
int64_t mel_source_columns(const mel_source *source) {
    return source->columns;
}

mel_status mel_source_read(
    const mel_source *source, int64_t first, int64_t count, mel_dtype dtype, void *dst, mel_error *err) {
    if (first < 0 || count < 0 || first > source->rows || count > source->rows - first || !mel_is_float(dtype))
        return mel_fail(err, MEL_EINVAL, "source: %lld rows from %lld on of %lld, as %s", (long long)count,
            (long long)first + 1, (long long)source->rows, mel_dtype_name(dtype));
    return source->read(source->owner, first, count, dtype, dst, err);
}

// ---- over a tensor ----------------------------------------------------------------------------------

static mel_status read_tensor(
    const void *owner, int64_t first, int64_t count, mel_dtype dtype, void *dst, mel_error *err) {
    const mel_tensor *t = owner;
    mel_tensor *rows, *to;
    mel_status s = mel_tensor_slice(t, 0, first, count, &rows, err);
    if (s) return s;
    s = mel_tensor_wrap(dtype, 2, rows->shape, dst, true, NULL, NULL, &to, err);
    if (!s) {
        s = mel_tensor_copy(to, rows, err);
        mel_tensor_unref(to);
    }
    mel_tensor_unref(rows);
    return s;
}

static void release_tensor(void *owner) {
    mel_tensor_unref(owner);
}

mel_status mel_source_of(const mel_tensor *matrix, mel_source **out, mel_error *err) {
    char shape[128];
    if (matrix->ndim != 2 || !mel_is_float(matrix->dtype))
        return mel_fail(err, MEL_EINVAL, "source: a float matrix is wanted, not %s %s", mel_dtype_name(matrix->dtype),
            mel_tensor_shape_text(matrix, shape, sizeof shape));
    mel_tensor *kept = mel_tensor_ref((mel_tensor *)matrix);
    mel_source fields = {.rows = matrix->shape[0],
        .columns = matrix->shape[1],
        .stored = matrix->dtype,
        .base = mel_tensor_is_contiguous(matrix) ? matrix->data : NULL,
        .read = read_tensor,
        .release = release_tensor,
        .owner = kept};
    mel_status s = mel_source_create(&fields, out, err);
    if (s) mel_tensor_unref(kept);
    return s;
}
