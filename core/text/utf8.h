// UTF-8, one character at a time.
#ifndef MELIES_TEXT_UTF8_H
#define MELIES_TEXT_UTF8_H

#include "text/buffer.h"

#define MEL_REPLACEMENT "\xEF\xBF\xBD" // U+FFFD
#define MEL_SPACE_MARK "\xE2\x96\x81"  // U+2581, how pieces spell a space

// Length in bytes of the valid character at text (size_bytes > 0), or 0 where there is none; *code_point may be NULL.
size_t mel_utf8_decode(const char *text, size_t size_bytes, uint32_t *code_point);
// Length that the lead byte announces, at most size_bytes and never 0: how sentencepiece walks text.
size_t mel_utf8_step(const char *text, size_t size_bytes);
mel_status mel_utf8_append(mel_buffer *buffer, uint32_t code_point, mel_error *err);
// Appends text; each byte that is in no valid character becomes U+FFFD.
mel_status mel_utf8_append_valid(mel_buffer *buffer, const char *text, size_t size_bytes, mel_error *err);
// White space as Python's str.isspace and \s see it.
bool mel_utf8_is_space(uint32_t code_point);

#endif
