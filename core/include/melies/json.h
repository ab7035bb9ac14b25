// JSON (RFC 8259), strict: no duplicate keys, no text after the value, integers exact to 64 bits.
// A mel_json owns its text's values; a mel_json_value is a borrowed look into it, valid until mel_json_free.
// A document may be read from several threads at once.
#ifndef MELIES_JSON_H
#define MELIES_JSON_H

#include <melies/base.h>

typedef struct mel_json mel_json;
typedef struct mel_json_value mel_json_value;
typedef struct mel_json_member mel_json_member;

typedef enum mel_json_type {
    MEL_JSON_NULL = 0,
    MEL_JSON_BOOL = 1,
    MEL_JSON_INTEGER = 2, // written without fraction or exponent
    MEL_JSON_REAL = 3,
    MEL_JSON_STRING = 4,
    MEL_JSON_ARRAY = 5,
    MEL_JSON_OBJECT = 6
} mel_json_type;

// text need not end in NUL and is not kept. name stands in the message ("name: line 3, column 7: ...") and may be
// NULL. Any value may be at the top. On success *out is owned by the caller; on failure *out is untouched.
// MEL_EFORMAT: not JSON, a key twice, an integer beyond 64 bits, a real beyond double, deeper than 2048.
MEL_API mel_status mel_json_parse(
    const char *text, size_t size_bytes, const char *name, mel_json **out, mel_error *err);
MEL_API void mel_json_free(mel_json *json); // NULL is fine
MEL_API const mel_json_value *mel_json_root(const mel_json *json);

// NULL reads as MEL_JSON_NULL everywhere below, so that mel_json_get may be chained.
MEL_API mel_json_type mel_json_typeof(const mel_json_value *value);
MEL_API const char *mel_json_type_name(mel_json_type type); // "object", ...
// Entries of an array or members of an object; 0 for everything else.
MEL_API int64_t mel_json_size(const mel_json_value *value);
// Entry of an array, from 0. NULL: not an array, or outside it.
MEL_API const mel_json_value *mel_json_at(const mel_json_value *array, int64_t index);
// Member of an object. NULL: not an object, or no such key.
MEL_API const mel_json_value *mel_json_get(const mel_json_value *object, const char *key);
// Members in the order of the text; NULL at the end or for a value that is not an object.
MEL_API const mel_json_member *mel_json_first(const mel_json_value *object);
MEL_API const mel_json_member *mel_json_next(const mel_json_value *object, const mel_json_member *member);
MEL_API const char *mel_json_key(const mel_json_member *member, size_t *size_bytes); // size_bytes may be NULL
MEL_API const mel_json_value *mel_json_member_value(const mel_json_member *member);

// The value, or (for another type) NULL, 0, 0.0, false. A string is UTF-8, ends in NUL and may hold NUL bytes.
MEL_API const char *mel_json_string(const mel_json_value *value, size_t *size_bytes); // size_bytes may be NULL
MEL_API int64_t mel_json_integer(const mel_json_value *value);
MEL_API double mel_json_number(const mel_json_value *value); // an integer or a real
MEL_API bool mel_json_bool(const mel_json_value *value);

#endif
