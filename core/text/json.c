// JSON by jansson: a mel_json is its root value, a mel_json_value any json_t, a mel_json_member its iterator.
#include <jansson.h>
#include <melies/json.h>

static json_t *peek(const mel_json_value *value) {
    return (json_t *)(uintptr_t)value;
}

mel_status mel_json_parse(const char *text, size_t size_bytes, const char *name, mel_json **out, mel_error *err) {
    json_error_t problem;
    json_t *root = json_loadb(
        size_bytes ? text : "", size_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &problem);
    if (!root) {
        if (json_error_code(&problem) == json_error_out_of_memory)
            return mel_fail(
                err, MEL_ENOMEM, "%s: out of memory for %zu bytes of JSON", name ? name : "json", size_bytes);
        return mel_fail(err, MEL_EFORMAT, "%s: line %d, column %d: %s", name ? name : "json", problem.line,
            problem.column, problem.text);
    }
    *out = (mel_json *)root;
    return MEL_OK;
}

void mel_json_free(mel_json *json) {
    if (json) json_decref((json_t *)json);
}

const mel_json_value *mel_json_root(const mel_json *json) {
    return (const mel_json_value *)json;
}

mel_json_type mel_json_typeof(const mel_json_value *value) {
    if (!value) return MEL_JSON_NULL;
    switch (json_typeof(peek(value))) {
    case JSON_OBJECT: return MEL_JSON_OBJECT;
    case JSON_ARRAY: return MEL_JSON_ARRAY;
    case JSON_STRING: return MEL_JSON_STRING;
    case JSON_INTEGER: return MEL_JSON_INTEGER;
    case JSON_REAL: return MEL_JSON_REAL;
    case JSON_TRUE:
    case JSON_FALSE: return MEL_JSON_BOOL;
    default: return MEL_JSON_NULL;
    }
}

const char *mel_json_type_name(mel_json_type type) {
    static const char *const names[] = {"null", "boolean", "integer", "real", "string", "array", "object"};
    return (unsigned)type <= MEL_JSON_OBJECT ? names[type] : "?";
}

int64_t mel_json_size(const mel_json_value *value) {
    switch (mel_json_typeof(value)) {
    case MEL_JSON_ARRAY: return (int64_t)json_array_size(peek(value));
    case MEL_JSON_OBJECT: return (int64_t)json_object_size(peek(value));
    default: return 0;
    }
}

const mel_json_value *mel_json_at(const mel_json_value *array, int64_t index) {
    if (mel_json_typeof(array) != MEL_JSON_ARRAY || index < 0) return NULL;
    return (const mel_json_value *)json_array_get(peek(array), (size_t)index);
}

const mel_json_value *mel_json_get(const mel_json_value *object, const char *key) {
    if (mel_json_typeof(object) != MEL_JSON_OBJECT || !key) return NULL;
    return (const mel_json_value *)json_object_get(peek(object), key);
}

const mel_json_member *mel_json_first(const mel_json_value *object) {
    return mel_json_typeof(object) == MEL_JSON_OBJECT ? json_object_iter(peek(object)) : NULL;
}

const mel_json_member *mel_json_next(const mel_json_value *object, const mel_json_member *member) {
    if (mel_json_typeof(object) != MEL_JSON_OBJECT || !member) return NULL;
    return json_object_iter_next(peek(object), (void *)(uintptr_t)member);
}

const char *mel_json_key(const mel_json_member *member, size_t *size_bytes) {
    void *iter = (void *)(uintptr_t)member;
    if (size_bytes) *size_bytes = iter ? json_object_iter_key_len(iter) : 0;
    return iter ? json_object_iter_key(iter) : NULL;
}

const mel_json_value *mel_json_member_value(const mel_json_member *member) {
    return member ? (const mel_json_value *)json_object_iter_value((void *)(uintptr_t)member) : NULL;
}

const char *mel_json_string(const mel_json_value *value, size_t *size_bytes) {
    bool is_string = mel_json_typeof(value) == MEL_JSON_STRING;
    if (size_bytes) *size_bytes = is_string ? json_string_length(peek(value)) : 0;
    return is_string ? json_string_value(peek(value)) : NULL;
}

int64_t mel_json_integer(const mel_json_value *value) {
    return mel_json_typeof(value) == MEL_JSON_INTEGER ? (int64_t)json_integer_value(peek(value)) : 0;
}

double mel_json_number(const mel_json_value *value) {
    return value ? json_number_value(peek(value)) : 0.0;
}

bool mel_json_bool(const mel_json_value *value) {
    return value && json_is_true(peek(value));
}
