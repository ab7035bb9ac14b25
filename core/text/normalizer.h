// sentencepiece's normaliser: the rules compiled into the model (a double-array trie and replacement strings,
// longest match first), then its handling of white space.
#ifndef MELIES_TEXT_NORMALIZER_H
#define MELIES_TEXT_NORMALIZER_H

#include "text/buffer.h"
#include "text/trie.h"

typedef struct mel_normalizer {
    bool add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces, whitespace_as_suffix;
    const char *units; // double array of little-endian uint32, unaligned, borrowed; NULL: no rules
    size_t unit_count;
    const char *strings; // replacements, each ending in NUL
    size_t strings_size;
    const mel_trie *verbatim; // texts that pass unchanged (user-defined pieces), borrowed; NULL: none
} mel_normalizer;

// Reads <uint32 trie size><trie><strings>; charsmap is borrowed. Empty means no rules. MEL_EFORMAT.
mel_status mel_normalizer_set_rules(
    mel_normalizer *normalizer, const char *charsmap, size_t size_bytes, mel_error *err);
// What becomes of the start of text (size_bytes > 0): returns the bytes consumed (>= 1), sets the replacement.
size_t mel_normalizer_prefix(
    const mel_normalizer *normalizer, const char *text, size_t size_bytes, const char **out, size_t *out_size_bytes);
// Appends the normalised text.
mel_status mel_normalizer_run(
    const mel_normalizer *normalizer, const char *text, size_t size_bytes, mel_buffer *out, mel_error *err);

#endif
