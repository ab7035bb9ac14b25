// Cleaning of text before CLIP's byte-pair encoding.
#ifndef MELIES_TEXT_LOWER_H
#define MELIES_TEXT_LOWER_H

#include "text/buffer.h"

#include <melies/regex.h>

// Appends text (valid UTF-8) in lower case as Python's str.lower does, with the final sigma of Greek.
// case_runs: compiled by mel_case_runs_compile.
mel_status mel_lower(const mel_regex *case_runs, const char *text, size_t size_bytes, mel_buffer *out, mel_error *err);
mel_status mel_case_runs_compile(mel_regex **out, mel_error *err);
// Appends text without white space at its ends, and with each run of it inside as one space.
mel_status mel_collapse_spaces(const char *text, size_t size_bytes, mel_buffer *out, mel_error *err);
// Appends text with HTML's character references resolved as Python's html.unescape does: numbers, the names of
// Latin-1 and the usual typographic ones. html.c
mel_status mel_html_unescape(const char *text, size_t size_bytes, mel_buffer *out, mel_error *err);

#endif
