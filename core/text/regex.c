// PCRE2 behind mel_regex: the one place that includes its header.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/buffer.h"

#include <melies/regex.h>

#include <string.h>

// Bounds on one match: backtracking steps, and KiB of heap for backtracking.
enum {
    MATCH_LIMIT = 2000000,
    HEAP_LIMIT_KIB = 65536
};

struct mel_regex {
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *code;
    int groups;
    uint32_t names, name_entry_size;
    const unsigned char *name_table;
};

static void *allocate(size_t size, void *unused) {
    (void)unused;
    return mel_alloc(size, NULL);
}

static void release(void *block, void *unused) {
    (void)unused;
    mel_free(block);
}

static uint32_t pcre_options(uint32_t flags) {
    uint32_t options = flags & MEL_REGEX_BYTES ? 0 : PCRE2_UTF | PCRE2_UCP;
    if (flags & MEL_REGEX_CASELESS) options |= PCRE2_CASELESS;
    if (flags & MEL_REGEX_MULTILINE) options |= PCRE2_MULTILINE;
    if (flags & MEL_REGEX_DOTALL) options |= PCRE2_DOTALL;
    if (flags & MEL_REGEX_EXTENDED) options |= PCRE2_EXTENDED;
    return options | PCRE2_NEVER_BACKSLASH_C;
}

static mel_status compile(mel_regex *regex, const char *pattern, size_t size, uint32_t flags, mel_error *err) {
    regex->memory = pcre2_general_context_create(allocate, release, NULL);
    if (regex->memory) regex->limits = pcre2_match_context_create(regex->memory);
    pcre2_compile_context *context = regex->limits ? pcre2_compile_context_create(regex->memory) : NULL;
    if (!context) return mel_fail(err, MEL_ENOMEM, "regex: out of memory");
    pcre2_set_match_limit(regex->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(regex->limits, HEAP_LIMIT_KIB);
    int problem = 0;
    PCRE2_SIZE at = 0;
    regex->code = pcre2_compile((PCRE2_SPTR)(size ? pattern : ""), size, pcre_options(flags), &problem, &at, context);
    pcre2_compile_context_free(context);
    if (!regex->code) {
        PCRE2_UCHAR text[200];
        if (problem == PCRE2_ERROR_HEAP_FAILED) return mel_fail(err, MEL_ENOMEM, "regex: out of memory");
        pcre2_get_error_message(problem, text, sizeof text);
        return mel_fail(err, MEL_EINVAL, "regex: %s at offset %zu of '%.*s'", (const char *)text, (size_t)at,
            size > 200 ? 200 : (int)size, pattern);
    }
    // Where there is no JIT the interpreter does the same, more slowly.
    pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
    uint32_t groups = 0;
    pcre2_pattern_info(regex->code, PCRE2_INFO_CAPTURECOUNT, &groups);
    pcre2_pattern_info(regex->code, PCRE2_INFO_NAMECOUNT, &regex->names);
    pcre2_pattern_info(regex->code, PCRE2_INFO_NAMEENTRYSIZE, &regex->name_entry_size);
    pcre2_pattern_info(regex->code, PCRE2_INFO_NAMETABLE, &regex->name_table);
    regex->groups = (int)groups;
    return MEL_OK;
}

mel_status mel_regex_compile(const char *pattern, size_t size_bytes, uint32_t flags, mel_regex **out, mel_error *err) {
    uint32_t known = MEL_REGEX_CASELESS | MEL_REGEX_MULTILINE | MEL_REGEX_DOTALL | MEL_REGEX_EXTENDED | MEL_REGEX_BYTES;
    if (flags & ~known) return mel_fail(err, MEL_EINVAL, "regex: unknown flags 0x%x", flags & ~known);
    mel_regex *regex = mel_alloc_zero(sizeof *regex, err);
    if (!regex) return MEL_ENOMEM;
    mel_status status = compile(regex, pattern, size_bytes, flags, err);
    if (status)
        mel_regex_free(regex);
    else
        *out = regex;
    return status;
}

void mel_regex_free(mel_regex *regex) {
    if (!regex) return;
    pcre2_code_free(regex->code);
    pcre2_match_context_free(regex->limits);
    pcre2_general_context_free(regex->memory);
    mel_free(regex);
}

int mel_regex_groups(const mel_regex *regex) {
    return regex->groups;
}

int mel_regex_names(const mel_regex *regex) {
    return (int)regex->names;
}

const char *mel_regex_name(const mel_regex *regex, int index, int *group) {
    if (index < 0 || (uint32_t)index >= regex->names) return NULL;
    const unsigned char *entry = regex->name_table + (size_t)index * regex->name_entry_size;
    *group = entry[0] << 8 | entry[1];
    return (const char *)entry + 2;
}

// Fills spans where something matches. options: PCRE2_NO_UTF_CHECK and the like.
static mel_status match(const mel_regex *regex, pcre2_match_data *data, const char *text, size_t size, size_t offset,
    uint32_t options, int64_t *spans, bool *matched, mel_error *err) {
    PCRE2_SPTR subject = (PCRE2_SPTR)(size ? text : "");
    int found = pcre2_match(regex->code, subject, size, offset, options, data, regex->limits);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(regex->code, subject, size, offset, options | PCRE2_NO_JIT, data, regex->limits);
    *matched = found > 0;
    if (found == PCRE2_ERROR_NOMATCH) return MEL_OK;
    if (found == PCRE2_ERROR_NOMEMORY) return mel_fail(err, MEL_ENOMEM, "regex: out of memory");
    if (found == PCRE2_ERROR_MATCHLIMIT || found == PCRE2_ERROR_DEPTHLIMIT || found == PCRE2_ERROR_HEAPLIMIT)
        return mel_fail(err, MEL_EUNSUPPORTED, "regex: the pattern needs too many steps on a text of %zu bytes", size);
    if (found <= PCRE2_ERROR_UTF8_ERR1 && found >= PCRE2_ERROR_UTF8_ERR21)
        return mel_fail(err, MEL_EINVAL, "regex: the text is not UTF-8 at byte %zu", (size_t)pcre2_get_startchar(data));
    if (found == PCRE2_ERROR_BADUTFOFFSET)
        return mel_fail(err, MEL_EINVAL, "regex: offset %zu is inside a character", offset);
    if (found <= 0) {
        PCRE2_UCHAR message[200];
        pcre2_get_error_message(found, message, sizeof message);
        return mel_fail(err, MEL_EINTERNAL, "regex: %s", (const char *)message);
    }
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(data);
    for (int i = 0; i < 2 * (regex->groups + 1); i++)
        spans[i] = i >= 2 * found || ends[i] == PCRE2_UNSET ? -1 : (int64_t)ends[i];
    // \K in a lookahead can put the start behind the end.
    if (spans[0] > spans[1]) return mel_fail(err, MEL_EUNSUPPORTED, "regex: a match that starts behind its end");
    return MEL_OK;
}

static mel_status begin(const mel_regex *regex, size_t size, size_t offset, pcre2_match_data **data, mel_error *err) {
    if (offset > size)
        return mel_fail(err, MEL_EINVAL, "regex: offset %zu is outside a text of %zu bytes", offset, size);
    *data = pcre2_match_data_create_from_pattern(regex->code, regex->memory);
    return *data ? MEL_OK : mel_fail(err, MEL_ENOMEM, "regex: out of memory");
}

mel_status mel_regex_match(const mel_regex *regex, const char *text, size_t size_bytes, size_t offset, int64_t *spans,
    bool *matched, mel_error *err) {
    pcre2_match_data *data;
    bool found = false;
    mel_status status = begin(regex, size_bytes, offset, &data, err);
    if (status) return status;
    status = match(regex, data, text, size_bytes, offset, 0, spans, &found, err);
    if (!status) *matched = found;
    pcre2_match_data_free(data);
    return status;
}

static size_t next_character(const mel_regex *regex, const char *text, size_t size, size_t at) {
    uint32_t options = 0;
    pcre2_pattern_info(regex->code, PCRE2_INFO_ALLOPTIONS, &options);
    at++;
    while (options & PCRE2_UTF && at < size && ((unsigned char)text[at] & 0xC0) == 0x80)
        at++;
    return at;
}

mel_status mel_regex_match_all(const mel_regex *regex, const char *text, size_t size_bytes, size_t offset, size_t limit,
    int64_t **spans, size_t *count, mel_error *err) {
    pcre2_match_data *data;
    mel_status status = begin(regex, size_bytes, offset, &data, err);
    if (status) return status;
    mel_buffer out = {0};
    size_t row = 2 * ((size_t)regex->groups + 1) * sizeof(int64_t), found_count = 0, at = offset;
    uint32_t options = 0;
    for (bool found = true; !status && at <= size_bytes && (!limit || found_count < limit);) {
        if ((status = mel_check_cancel(err)) || (status = mel_buffer_reserve(&out, row, err))) break;
        int64_t *here = (int64_t *)(void *)(out.data + out.size);
        status = match(regex, data, text, size_bytes, at, options, here, &found, err);
        if (status) break;
        options = PCRE2_NO_UTF_CHECK;
        if (!found) break;
        size_t end = (size_t)here[1];
        bool stuck = end == at && here[0] == here[1] && out.size &&
                     ((int64_t *)(void *)(out.data + out.size - row))[1] == (int64_t)at;
        // An empty match right behind the last one does not count: look one character on.
        if (stuck) {
            at = next_character(regex, text, size_bytes, at);
            continue;
        }
        out.size += row;
        found_count++;
        at = here[1] > here[0] && end > at ? end : next_character(regex, text, size_bytes, end);
    }
    pcre2_match_data_free(data);
    char *block;
    size_t block_size;
    if (!status && !(status = mel_buffer_take(&out, &block, &block_size, err))) {
        *spans = (int64_t *)(void *)block;
        *count = found_count;
    }
    mel_buffer_finish(&out);
    return status;
}
