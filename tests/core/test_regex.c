#include "check.h"

#include <melies/regex.h>

static void every_allocation_fails(void) {
    static const char pattern[] = "(?<word>\\pL+)(\\d)?", text[] = "one2 three four5";
    int64_t live = mel_mem_live();
    int failures = 0;
    for (int64_t n = 1; n < 100; n++) {
        mel_error err = {0};
        mel_regex *regex = NULL;
        int64_t *spans = NULL, one[6];
        size_t count = 0;
        bool matched = false;
        mel_mem_fail_nth(n);
        mel_status status = mel_regex_compile(pattern, sizeof pattern - 1, 0, &regex, &err);
        if (!status) status = mel_regex_match_all(regex, text, sizeof text - 1, 0, 0, &spans, &count, &err);
        if (!status) status = mel_regex_match(regex, text, sizeof text - 1, 4, one, &matched, &err);
        mel_mem_fail_nth(0);
        if (!status) {
            int group = 0;
            CHECK(count == 3 && spans[0] == 0 && spans[1] == 4 && spans[6 + 4] == -1);
            CHECK(matched && one[0] == 5 && one[1] == 10 && one[4] == -1);
            CHECK(mel_regex_groups(regex) == 2 && mel_regex_names(regex) == 1);
            CHECK(!strcmp(mel_regex_name(regex, 0, &group), "word") && group == 1 && !mel_regex_name(regex, 1, &group));
        }
        mel_free(spans);
        mel_regex_free(regex);
        CHECK(mel_mem_live() == live);
        if (!status) break;
        failures++;
        CHECK(status == MEL_ENOMEM && err.message[0]);
    }
    CHECK(failures > 3);
}

static void refused(void) {
    mel_regex *regex = NULL;
    int64_t spans[2];
    bool matched;
    CHECK_FAILS(mel_regex_compile("a(b", 3, 0, &regex, err), MEL_EINVAL, "offset 3");
    CHECK_FAILS(mel_regex_compile("\xff", 1, 0, &regex, err), MEL_EINVAL, "UTF-8");
    CHECK_FAILS(mel_regex_compile("a", 1, 64, &regex, err), MEL_EINVAL, "flags 0x40");
    CHECK(regex == NULL);
    CHECK_OK(mel_regex_compile("(?:a+)+$", 8, 0, &regex, err));
    CHECK_FAILS(mel_regex_match(regex, "ab", 2, 3, spans, &matched, err), MEL_EINVAL, "offset 3");
    CHECK_FAILS(mel_regex_match(regex, "\xC3\xA9", 2, 1, spans, &matched, err), MEL_EINVAL, "inside a character");
    char text[64];
    memset(text, 'a', sizeof text);
    text[63] = 'b';
    CHECK_FAILS(mel_regex_match(regex, text, 64, 0, spans, &matched, err), MEL_EUNSUPPORTED, "too many steps");
    mel_regex_free(regex);
}

int main(void) {
    RUN(every_allocation_fails);
    RUN(refused);
    return CHECK_DONE();
}
