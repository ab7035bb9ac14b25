#include "text/buffer.h"

#include <string.h>

mel_status mel_buffer_reserve(mel_buffer *buffer, size_t more_bytes, mel_error *err) {
    if (buffer->data && more_bytes <= buffer->capacity - buffer->size) return MEL_OK;
    if (more_bytes > SIZE_MAX / 4 || buffer->size > SIZE_MAX / 4)
        return mel_fail(err, MEL_ENOMEM, "text of %zu + %zu bytes is too large", buffer->size, more_bytes);
    size_t capacity = buffer->size + buffer->size / 2 + more_bytes;
    if (capacity < 256) capacity = 256;
    char *data = mel_alloc(capacity, err);
    if (!data) return MEL_ENOMEM;
    if (buffer->data) memcpy(data, buffer->data, buffer->size);
    mel_free(buffer->data);
    buffer->data = data;
    buffer->capacity = capacity;
    return MEL_OK;
}

mel_status mel_buffer_append(mel_buffer *buffer, const void *bytes, size_t size_bytes, mel_error *err) {
    if (!size_bytes) return MEL_OK;
    mel_status status = mel_buffer_reserve(buffer, size_bytes, err);
    if (status) return status;
    memcpy(buffer->data + buffer->size, bytes, size_bytes);
    buffer->size += size_bytes;
    return MEL_OK;
}

void mel_buffer_finish(mel_buffer *buffer) {
    mel_free(buffer->data);
    *buffer = (mel_buffer){0};
}

mel_status mel_buffer_take(mel_buffer *buffer, char **out, size_t *size_bytes, mel_error *err) {
    mel_status status = mel_buffer_reserve(buffer, 1, err);
    if (status) return status;
    buffer->data[buffer->size] = '\0';
    *out = buffer->data;
    *size_bytes = buffer->size;
    *buffer = (mel_buffer){0};
    return MEL_OK;
}
