// Source: google/sentencepiece, src/normalizer.cc; units of the double array as in darts-clone.
#include "text/normalizer.h"
#include "text/utf8.h"

#include <string.h>

// Bytes. The rules of nmt_nfkc stay below 64; a broken trie may have cycles.
enum {
    REPLACEMENT_MAX = 256,
    RULE_MAX = 256
};

static uint32_t read_u32(const char *bytes) {
    const unsigned char *b = (const unsigned char *)bytes;
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

mel_status mel_normalizer_set_rules(
    mel_normalizer *normalizer, const char *charsmap, size_t size_bytes, mel_error *err) {
    if (!size_bytes) return MEL_OK;
    if (size_bytes <= 4) return mel_fail(err, MEL_EFORMAT, "normalisation rules are %zu bytes", size_bytes);
    uint32_t trie_size = read_u32(charsmap);
    size_t rest = size_bytes - 4;
    if (trie_size > rest || trie_size % 4 || !trie_size)
        return mel_fail(err, MEL_EFORMAT, "normalisation rules: a trie of %u bytes in %zu", trie_size, rest);
    const char *strings = charsmap + 4 + trie_size;
    size_t strings_size = rest - trie_size, run = 0;
    for (size_t i = 0; i < strings_size; i++) {
        run = strings[i] ? run + 1 : 0;
        if (run > REPLACEMENT_MAX)
            return mel_fail(
                err, MEL_EFORMAT, "normalisation rules: a replacement longer than %d bytes", REPLACEMENT_MAX);
    }
    normalizer->units = charsmap + 4;
    normalizer->unit_count = trie_size / 4;
    normalizer->strings = strings;
    normalizer->strings_size = strings_size;
    return MEL_OK;
}

static uint32_t offset_of(uint32_t unit) {
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

// Longest rule that text starts with, 0 for none; *value is its place in strings.
static size_t longest_rule(const mel_normalizer *n, const char *text, size_t size_bytes, uint32_t *value) {
    size_t longest = 0;
    uint32_t at = offset_of(read_u32(n->units));
    for (size_t i = 0; i < size_bytes && i < RULE_MAX; i++) {
        unsigned char byte = (unsigned char)text[i];
        at ^= byte;
        if (at >= n->unit_count) break;
        uint32_t unit = read_u32(n->units + 4 * (size_t)at);
        if ((unit & (1u << 31 | 0xFF)) != byte) break;
        at ^= offset_of(unit);
        if (at >= n->unit_count) break;
        if (unit >> 8 & 1) {
            longest = i + 1;
            *value = read_u32(n->units + 4 * (size_t)at) & 0x7FFFFFFF;
        }
    }
    return longest;
}

size_t mel_normalizer_prefix(
    const mel_normalizer *n, const char *text, size_t size_bytes, const char **out, size_t *out_size_bytes) {
    if (n->verbatim) {
        size_t length = mel_trie_longest(n->verbatim, text, size_bytes, NULL);
        if (length) {
            *out = text;
            return *out_size_bytes = length;
        }
    }
    uint32_t value = 0;
    size_t length = n->units ? longest_rule(n, text, size_bytes, &value) : 0;
    if (length) {
        bool inside = value < n->strings_size;
        *out = inside ? n->strings + value : "";
        *out_size_bytes = inside ? strnlen(*out, n->strings_size - value) : 0;
        return length;
    }
    length = mel_utf8_decode(text, size_bytes, NULL);
    *out = length ? text : MEL_REPLACEMENT;
    *out_size_bytes = length ? length : 3;
    return length ? length : 1;
}

static mel_status append_escaped(
    const mel_normalizer *n, const char *text, size_t size_bytes, mel_buffer *out, mel_error *err) {
    mel_status status = MEL_OK;
    for (size_t i = 0; i < size_bytes && !status;) {
        const char *space = n->escape_whitespaces ? memchr(text + i, ' ', size_bytes - i) : NULL;
        size_t plain = space ? (size_t)(space - text) - i : size_bytes - i;
        status = mel_buffer_append(out, text + i, plain, err);
        i += plain;
        if (space && !status) {
            status = mel_buffer_append(out, MEL_SPACE_MARK, 3, err);
            i++;
        }
    }
    return status;
}

mel_status mel_normalizer_run(
    const mel_normalizer *n, const char *text, size_t size_bytes, mel_buffer *out, mel_error *err) {
    const char *piece;
    size_t piece_size, at = 0;
    if (n->remove_extra_whitespaces)
        while (at < size_bytes) {
            size_t used = mel_normalizer_prefix(n, text + at, size_bytes - at, &piece, &piece_size);
            if (piece_size != 1 || *piece != ' ') break;
            at += used;
        }
    if (at == size_bytes) return MEL_OK;

    size_t start = out->size;
    mel_status status = mel_buffer_reserve(out, size_bytes - at + 8, err);
    if (!status && n->add_dummy_prefix && !n->whitespace_as_suffix) status = append_escaped(n, " ", 1, out, err);
    bool after_space = n->remove_extra_whitespaces;
    while (at < size_bytes && !status) {
        at += mel_normalizer_prefix(n, text + at, size_bytes - at, &piece, &piece_size);
        while (after_space && piece_size && *piece == ' ') {
            piece++;
            piece_size--;
        }
        if (!piece_size) continue;
        status = append_escaped(n, piece, piece_size, out, err);
        after_space = n->remove_extra_whitespaces && piece[piece_size - 1] == ' ';
    }
    if (!status && n->remove_extra_whitespaces) {
        const char *space = n->escape_whitespaces ? MEL_SPACE_MARK : " ";
        size_t length = strlen(space);
        while (out->size - start >= length && !memcmp(out->data + out->size - length, space, length))
            out->size -= length;
    }
    if (!status && n->add_dummy_prefix && n->whitespace_as_suffix) status = append_escaped(n, " ", 1, out, err);
    return status;
}
