// Regular expressions (PCRE2), UTF-8 with Unicode classes. A mel_regex is read-only: threads may share one.
#ifndef MELIES_REGEX_H
#define MELIES_REGEX_H

#include <melies/base.h>

typedef struct mel_regex mel_regex;

enum {
    MEL_REGEX_CASELESS = 1,
    MEL_REGEX_MULTILINE = 2, // ^ and $ at line ends
    MEL_REGEX_DOTALL = 4,    // . matches a newline
    MEL_REGEX_EXTENDED = 8,  // white space and # comments in the pattern
    MEL_REGEX_BYTES = 16     // pattern and text are bytes, not UTF-8
};

// On success *out is owned by the caller; on failure *out is untouched.
// MEL_EINVAL: not a pattern (the message has the byte offset), an unknown flag.
MEL_API mel_status mel_regex_compile(
    const char *pattern, size_t size_bytes, uint32_t flags, mel_regex **out, mel_error *err);
MEL_API void mel_regex_free(mel_regex *regex);        // NULL is fine
MEL_API int mel_regex_groups(const mel_regex *regex); // capture groups, without the whole match
MEL_API int mel_regex_names(const mel_regex *regex);  // named groups
MEL_API const char *mel_regex_name(const mel_regex *regex, int index, int *group); // index from 0; NULL: none

// First match at or after offset. spans: 2 * (groups + 1) entries, [first, end) byte offsets of the whole match and
// of each group, -1 for a group that took no part. Untouched where *matched is false.
// MEL_EINVAL: offset outside the text; the text is not UTF-8. MEL_EUNSUPPORTED: the match limit was hit, which
// patterns like (a+)+$ do on long texts.
MEL_API mel_status mel_regex_match(const mel_regex *regex, const char *text, size_t size_bytes, size_t offset,
    int64_t *spans, bool *matched, mel_error *err);
// Every match from offset on, left to right, without overlap; limit 0 means no limit. On success *spans
// (*count * 2 * (groups + 1) entries, mel_free) is the caller's; on failure the outputs are untouched.
MEL_API mel_status mel_regex_match_all(const mel_regex *regex, const char *text, size_t size_bytes, size_t offset,
    size_t limit, int64_t **spans, size_t *count, mel_error *err);

#endif
