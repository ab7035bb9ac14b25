// Tensors of a file as matrices that are read by rows when needed.
#include "tensor/rows.h"
#include "weights/file.h"

#include <string.h>

typedef struct rows_of {
    mapping *map;
    const stored_type *type;
    const uint8_t *data;
    int64_t columns, row_bytes;
} rows_of;

static mel_status read_rows(
    const void *owner, int64_t first, int64_t count, mel_dtype dtype, void *dst, mel_error *err) {
    const rows_of *r = owner;
    const row_kernels *k = mel_rows();
    int64_t out_row = r->columns * mel_dtype_size(dtype), wide = mel_dtype_size(r->type->dtype);
    void *buffer = mel_alloc((size_t)(r->columns * (wide + 4)), err);
    if (!buffer) return MEL_ENOMEM;
    float *line = (float *)buffer;
    char *natural = (char *)buffer + r->columns * 4;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *src = r->data + (first + i) * r->row_bytes;
        char *to = (char *)dst + i * out_row;
        if (r->type->dtype == dtype) {
            if (r->type->convert)
                r->type->convert(src, to, r->columns);
            else
                memcpy(to, src, (size_t)r->row_bytes);
            continue;
        }
        if (r->type->convert)
            r->type->convert(src, natural, r->columns);
        else
            memcpy(natural, src, (size_t)r->row_bytes);
        k->load((int)r->type->dtype, natural, line, r->columns);
        k->store((int)dtype, line, to, r->columns);
    }
    mel_free(buffer);
    return MEL_OK;
}

static void release_rows(void *owner) {
    rows_of *r = owner;
    mel_mapping_unref(r->map);
    mel_free(r);
}

// A strided entry (a transposed .pth) has no rows in memory: its dense copy is the source.
static mel_status copy_source(const mel_weights *w, const char *name, mel_source **out, mel_error *err) {
    mel_tensor *t = NULL, *matrix = NULL;
    mel_status s = mel_weights_tensor(w, name, MEL_SAME, &t, err);
    if (!s) s = mel_tensor_reshape(t, 2, (int64_t[]){t->shape[0], -1}, &matrix, err);
    if (!s) s = mel_source_of(matrix, out, err);
    mel_tensor_unref(matrix);
    mel_tensor_unref(t);
    return s;
}

mel_status mel_weights_source(const mel_weights *w, const char *name, mel_source **out, mel_error *err) {
    int64_t index = mel_weights_find(w, name);
    if (index < 0) return FAIL(MEL_EINVAL, "%s: has no tensor '%s'", w->path, name ? name : "(null)");
    const entry *e = &w->entries[index];
    if (e->ndim < 2 || !mel_is_float(e->type->dtype))
        return FAIL(MEL_EINVAL, "%s: tensor '%s' is %s with %d dimensions: no matrix of floats", w->path, e->name,
            e->type->name, e->ndim);
    if (e->strides) return copy_source(w, name, out, err);
    int64_t columns = 1;
    for (int i = 1; i < e->ndim; i++)
        columns *= e->shape[i];
    if (columns % e->type->block) return copy_source(w, name, out, err); // blocks that run over the ends of rows
    rows_of *r = mel_alloc(sizeof *r, err);
    if (!r) return MEL_ENOMEM;
    mapping *m = (mapping *)e->map;
    atomic_fetch_add(&m->refs, 1);
    *r = (rows_of){m, e->type, m->data + e->offset, columns, columns / e->type->block * e->type->block_size};
    bool aligned = (uintptr_t)r->data % (uintptr_t)mel_dtype_size(e->type->dtype) == 0;
    mel_source fields = {.rows = e->shape[0],
        .columns = columns,
        .stored = e->type->dtype,
        .base = !e->type->convert && aligned ? (const char *)r->data : NULL,
        .read = read_rows,
        .release = release_rows,
        .owner = r};
    mel_status s = mel_source_create(&fields, out, err);
    if (s) release_rows(r);
    return s;
}
