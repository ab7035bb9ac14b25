// A matrix in fp8 with its factors, read by rows: value * factor, one factor for all or one a row (ComfyUI's
// "scale_weight" and "weight_scale").
#include "tensor/rows.h"
#include "weights/file.h"

typedef struct scaled {
    mel_source *source;
    mel_tensor *factors; // f32 [1] or [rows], dense
} scaled;

static mel_status read_scaled(
    const void *owner, int64_t first, int64_t count, mel_dtype dtype, void *dst, mel_error *err) {
    const scaled *s = owner;
    const row_kernels *k = mel_rows();
    const float *factors = mel_tensor_data(s->factors);
    int64_t columns = s->source->columns, out_row = columns * mel_dtype_size(dtype);
    float *line = mel_alloc((size_t)columns * sizeof *line, err);
    if (!line) return MEL_ENOMEM;
    mel_status status = MEL_OK;
    for (int64_t i = 0; i < count && status == MEL_OK; i++) {
        status = s->source->read(s->source->owner, first + i, 1, MEL_F32, line, err);
        float factor = factors[mel_tensor_numel(s->factors) > 1 ? first + i : 0];
        for (int64_t j = 0; j < columns; j++)
            line[j] *= factor;
        if (status == MEL_OK) k->store((int)dtype, line, (char *)dst + i * out_row, columns);
    }
    mel_free(line);
    return status;
}

static void release_scaled(void *owner) {
    scaled *s = owner;
    mel_source_unref(s->source);
    mel_tensor_unref(s->factors);
    mel_free(s);
}

mel_status mel_weights_scaled_source(
    const mel_weights *w, const char *name, const char *factors, mel_source **out, mel_error *err) {
    scaled *s = mel_alloc_zero(sizeof *s, err);
    if (!s) return MEL_ENOMEM;
    mel_tensor *stored = NULL;
    mel_status status = mel_weights_source(w, name, &s->source, err);
    if (status == MEL_OK) status = mel_weights_tensor(w, factors, MEL_F32, &stored, err);
    if (status == MEL_OK) status = mel_tensor_contiguous(stored, &s->factors, err);
    mel_tensor_unref(stored);
    if (status == MEL_OK) {
        int64_t n = mel_tensor_numel(s->factors);
        if (n != 1 && n != s->source->rows) {
            status = FAIL(MEL_EINVAL, "%s: '%s' has %lld values, '%s' %lld rows", w->path, factors, (long long)n, name,
                (long long)s->source->rows);
        }
    }
    if (status == MEL_OK) {
        mel_source fields = {.rows = s->source->rows,
            .columns = s->source->columns,
            .stored = MEL_F32,
            .read = read_scaled,
            .release = release_scaled,
            .owner = s};
        status = mel_source_create(&fields, out, err);
    }
    if (status != MEL_OK) release_scaled(s);
    return status;
}
