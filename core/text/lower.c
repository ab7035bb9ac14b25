#include "text/lower.h"
#include "text/lower_table.h"
#include "text/utf8.h"

#include <string.h>

#define SIGMA "\xCE\xA3"
#define SMALL_SIGMA "\xCF\x83"
#define FINAL_SIGMA "\xCF\x82"

// Each match is a run of case-ignorable characters (group 1) and the cased character behind it (group 2), if one
// is. Source: Unicode 14.0, D135 Cased and D136 Case_Ignorable (DerivedCoreProperties.txt), spelled by their parts.
#define IGNORABLE                                                                                                      \
    "\\p{Mn}\\p{Me}\\p{Cf}\\p{Lm}\\p{Sk}'.:\\x{B7}\\x{387}\\x{55F}\\x{5F4}\\x{2018}\\x{2019}\\x{2024}\\x{2027}"        \
    "\\x{FE13}\\x{FE52}\\x{FE55}\\x{FF07}\\x{FF0E}\\x{FF1A}"
#define CASED                                                                                                          \
    "\\p{Lu}\\p{Ll}\\p{Lt}\\x{AA}\\x{BA}\\x{2160}-\\x{217F}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"                   \
    "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"

mel_status mel_case_runs_compile(mel_regex **out, mel_error *err) {
    static const char pattern[] = "([" IGNORABLE "]*+)(?:([" CASED "])|[^" IGNORABLE CASED "])?+";
    return mel_regex_compile(pattern, sizeof pattern - 1, MEL_REGEX_DOTALL, out, err);
}

static uint32_t lower_of(uint32_t c) {
    if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
    size_t low = 0, high = sizeof lower_ranges / sizeof *lower_ranges;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const lower_range *r = &lower_ranges[middle];
        if ((int32_t)c < r->first)
            high = middle;
        else if ((int32_t)c > r->last)
            low = middle + 1;
        else
            return ((int32_t)c - r->first) % r->step ? c : (uint32_t)((int32_t)c + r->distance);
    }
    return c;
}

static mel_status lower_plain(const char *text, size_t size, mel_buffer *out, mel_error *err) {
    mel_status status = MEL_OK;
    for (size_t at = 0; at < size && !status;) {
        uint32_t c = 0xFFFD;
        size_t length = mel_utf8_decode(text + at, size - at, &c);
        at += length ? length : 1;
        if (c == 0x130)
            status = mel_buffer_append(out, "i\xCC\x87", 3, err);
        else
            status = mel_utf8_append(out, lower_of(c), err);
    }
    return status;
}

// Sigma is final behind a cased character and not before one, case-ignorable ones between them left out.
static mel_status lower_with_sigma(
    const mel_regex *case_runs, const char *text, size_t size, mel_buffer *out, mel_error *err) {
    int64_t *spans = NULL;
    size_t count = 0;
    mel_status status = mel_regex_match_all(case_runs, text, size, 0, 0, &spans, &count, err);
    bool after_cased = false;
    for (size_t i = 0; i < count && !status; i++) {
        const int64_t *m = spans + 6 * i; // whole, group 1, group 2
        bool cased = m[4] >= 0;
        if (cased && m[5] - m[4] == 2 && !memcmp(text + m[4], SIGMA, 2)) {
            bool before_cased = i + 1 < count && m[6 + 4] >= 0;
            status = lower_plain(text + m[0], (size_t)(m[4] - m[0]), out, err);
            if (!status)
                status = mel_buffer_append(out, after_cased && !before_cased ? FINAL_SIGMA : SMALL_SIGMA, 2, err);
        } else {
            status = lower_plain(text + m[0], (size_t)(m[1] - m[0]), out, err);
        }
        after_cased = cased;
    }
    mel_free(spans);
    return status;
}

static bool holds_sigma(const char *text, size_t size) {
    for (size_t i = 0; i + 1 < size; i++)
        if (!memcmp(text + i, SIGMA, 2)) return true;
    return false;
}

mel_status mel_lower(const mel_regex *case_runs, const char *text, size_t size, mel_buffer *out, mel_error *err) {
    return holds_sigma(text, size) ? lower_with_sigma(case_runs, text, size, out, err)
                                   : lower_plain(text, size, out, err);
}

mel_status mel_collapse_spaces(const char *text, size_t size, mel_buffer *out, mel_error *err) {
    mel_status status = MEL_OK;
    bool space = false, any = false;
    for (size_t at = 0; at < size && !status;) {
        uint32_t c = 0xFFFD;
        size_t length = mel_utf8_decode(text + at, size - at, &c);
        if (!length) length = 1;
        if (mel_utf8_is_space(c)) {
            space = any;
        } else {
            if (space) status = mel_buffer_append(out, " ", 1, err);
            if (!status) status = mel_buffer_append(out, text + at, length, err);
            space = false;
            any = true;
        }
        at += length;
    }
    return status;
}
