// A growing block of bytes from mel_alloc. Zero-initialised is empty; mel_buffer_finish gives it back.
#ifndef MELIES_TEXT_BUFFER_H
#define MELIES_TEXT_BUFFER_H

#include <melies/base.h>

typedef struct mel_buffer {
    char *data;
    size_t size, capacity; // bytes
} mel_buffer;

// Room for more_bytes beyond size; data may move. MEL_ENOMEM leaves the buffer as it was.
mel_status mel_buffer_reserve(mel_buffer *buffer, size_t more_bytes, mel_error *err);
mel_status mel_buffer_append(mel_buffer *buffer, const void *bytes, size_t size_bytes, mel_error *err);
void mel_buffer_finish(mel_buffer *buffer);
// Hands the block, with a NUL behind its size bytes, to the caller, and empties the buffer.
mel_status mel_buffer_take(mel_buffer *buffer, char **out, size_t *size_bytes, mel_error *err);

#endif
