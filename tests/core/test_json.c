#include "check.h"

#include <melies/json.h>

static mel_json *parse(const char *text) {
    mel_json *json = NULL;
    CHECK_OK(mel_json_parse(text, strlen(text), "t", &json, err));
    return json;
}

static void walking(void) {
    mel_json *json = parse("{\"z\": [1, 2.5, \"a\\u0000b\", true, null, {}], \"a\": -9223372036854775808, \"m\": {}}");
    const mel_json_value *root = mel_json_root(json), *list = mel_json_get(root, "z");
    CHECK(mel_json_typeof(root) == MEL_JSON_OBJECT && mel_json_size(root) == 3);
    const char *order[] = {"z", "a", "m"};
    int i = 0;
    for (const mel_json_member *m = mel_json_first(root); m; m = mel_json_next(root, m), i++) {
        size_t length;
        CHECK(i < 3 && !strcmp(mel_json_key(m, &length), order[i]) && length == 1);
        CHECK(mel_json_member_value(m) == mel_json_get(root, order[i]));
    }
    CHECK(i == 3);
    CHECK(mel_json_typeof(list) == MEL_JSON_ARRAY && mel_json_size(list) == 6);
    CHECK(mel_json_integer(mel_json_at(list, 0)) == 1 && mel_json_number(mel_json_at(list, 0)) == 1.0);
    CHECK(mel_json_typeof(mel_json_at(list, 1)) == MEL_JSON_REAL && mel_json_number(mel_json_at(list, 1)) == 2.5);
    size_t length;
    const char *text = mel_json_string(mel_json_at(list, 2), &length);
    CHECK(length == 3 && !memcmp(text, "a\0b", 4));
    CHECK(mel_json_bool(mel_json_at(list, 3)) && !mel_json_bool(mel_json_at(list, 0)));
    CHECK(mel_json_typeof(mel_json_at(list, 4)) == MEL_JSON_NULL && !mel_json_at(list, 6) && !mel_json_at(list, -1));
    CHECK(mel_json_integer(mel_json_get(root, "a")) == INT64_MIN);
    // Looking where nothing is gives nothing.
    CHECK(mel_json_get(mel_json_get(root, "none"), "deeper") == NULL && mel_json_size(NULL) == 0);
    CHECK(mel_json_string(list, &length) == NULL && length == 0 && !mel_json_first(list));
    CHECK(!strcmp(mel_json_type_name(MEL_JSON_OBJECT), "object"));
    mel_json_free(json);
    mel_json_free(NULL);
}

static void refused(void) {
    mel_json *json = NULL;
    static const char *const bad[][2] = {{"", "line 1"}, {"{\"a\":1,\n\"a\":2}", "line 2"}, {"[1,]", "column"},
        {"1 2", "end of file"}, {"18446744073709551616", "too big integer"}, {"1e999", "real number overflow"},
        {"\"\xff\"", "unable to decode byte 0xff"}, {"[01]", "line 1"}, {"{\"a\"}", "':'"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_FAILS(mel_json_parse(bad[i][0], strlen(bad[i][0]), "name", &json, err), MEL_EFORMAT, bad[i][1]);
    CHECK_FAILS(mel_json_parse("[", 1, "name", &json, err), MEL_EFORMAT, "name: ");
    char deep[10000];
    memset(deep, '[', sizeof deep);
    CHECK_FAILS(mel_json_parse(deep, sizeof deep, NULL, &json, err), MEL_EFORMAT, "depth");
    CHECK(json == NULL);
}

int main(void) {
    RUN(walking);
    RUN(refused);
    return CHECK_DONE();
}
