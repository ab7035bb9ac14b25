// Reads a safetensors file: 8 bytes little-endian header length, a JSON object, the data.
// Format: github.com/huggingface/safetensors, README "Format". As strict as its reference reader: byte ranges cover the
// data without holes or overlaps, sizes agree with shapes, the header is at most 100 MB.
#include "weights/file.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_HEADER = 100000000
};

static mel_status read_shape(const char *path, const char *name, json_t *list, entry *e, mel_error *err) {
    if (!json_is_array(list)) return REFUSE("%s: tensor '%s': shape is not an array of whole numbers", path, name);
    size_t ndim = json_array_size(list);
    if (ndim > MEL_MAX_DIMS) {
        return FAIL(MEL_EUNSUPPORTED, "%s: tensor '%s': %zu dimensions, at most %d are supported", path, name, ndim,
            MEL_MAX_DIMS);
    }
    for (size_t i = 0; i < ndim; i++) {
        json_t *v = json_array_get(list, i);
        if (!json_is_integer(v)) return REFUSE("%s: tensor '%s': shape[%zu] is not a whole number", path, name, i);
        if (json_integer_value(v) < 0) {
            return REFUSE(
                "%s: tensor '%s': shape[%zu] is %lld, below 0", path, name, i, (long long)json_integer_value(v));
        }
        e->shape[i] = json_integer_value(v);
    }
    e->ndim = (int)ndim;
    return MEL_OK;
}

// One "name": {"dtype", "shape", "data_offsets"}; base: where the data begins in the file.
static mel_status read_entry(
    mel_weights *w, const mapping *m, const char *key, json_t *value, int64_t base, mel_error *err) {
    char buffer[SHOWN];
    const char *path = m->path, *name = mel_shown(buffer, key, strlen(key));
    entry e = {.map = m};
    if (!json_is_object(value)) return REFUSE("%s: tensor '%s': its description is not an object", path, name);
    json_t *dtype = json_object_get(value, "dtype"), *shape = json_object_get(value, "shape");
    json_t *offsets = json_object_get(value, "data_offsets");
    if (!dtype) return REFUSE("%s: tensor '%s': dtype is missing", path, name);
    if (!shape) return REFUSE("%s: tensor '%s': shape is missing", path, name);
    if (!offsets) return REFUSE("%s: tensor '%s': data_offsets is missing", path, name);
    if (!json_is_string(dtype)) return REFUSE("%s: tensor '%s': dtype is not a string", path, name);
    e.type = mel_stored_by_name(json_string_value(dtype));
    if (!e.type) {
        char other[SHOWN];
        return REFUSE("%s: tensor '%s': unknown dtype '%s'", path, name,
            mel_shown(other, json_string_value(dtype), json_string_length(dtype)));
    }
    mel_status s = read_shape(path, name, shape, &e, err);
    if (s != MEL_OK) return s;

    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(json_array_get(offsets, 0)) ||
        !json_is_integer(json_array_get(offsets, 1))) {
        return REFUSE("%s: tensor '%s': data_offsets is not [begin, end]", path, name);
    }
    int64_t begin = json_integer_value(json_array_get(offsets, 0));
    int64_t end = json_integer_value(json_array_get(offsets, 1));
    int64_t data_bytes = (int64_t)m->size - base, count;
    if (begin < 0 || end < begin || end > data_bytes) {
        return REFUSE("%s: tensor '%s': data_offsets [%lld, %lld] are not a range within the %lld bytes of data", path,
            name, (long long)begin, (long long)end, (long long)data_bytes);
    }
    if (!mel_dense_size(e.type, e.ndim, e.shape, &count, &e.bytes)) {
        return REFUSE("%s: tensor '%s': the shape's size overflows 64 bits", path, name);
    }
    if (e.bytes != end - begin) {
        return REFUSE("%s: tensor '%s': shape and dtype %s take %lld bytes, data_offsets [%lld, %lld] hold %lld", path,
            name, e.type->name, (long long)e.bytes, (long long)begin, (long long)end, (long long)(end - begin));
    }
    e.offset = base + begin;
    e.name = mel_arena_text(&w->arena, key, strlen(key), err);
    return e.name ? mel_weights_add(w, &e, err) : MEL_ENOMEM;
}

static mel_status read_metadata(mel_weights *w, const mapping *m, json_t *map, mel_error *err) {
    if (!json_is_object(map)) return REFUSE("%s: __metadata__ is not an object of strings", m->path);
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        char buffer[SHOWN];
        if (!json_is_string(value)) {
            return REFUSE("%s: __metadata__: '%s' is not a string", m->path, mel_shown(buffer, key, strlen(key)));
        }
        meta one = {.type = MEL_META_STRING, .length = -1, .text_length = (int64_t)json_string_length(value)};
        one.key = mel_arena_text(&w->arena, key, strlen(key), err);
        one.text = mel_arena_text(&w->arena, json_string_value(value), json_string_length(value), err);
        if (!one.key || !one.text) return MEL_ENOMEM;
        mel_status s = mel_weights_add_meta(w, &one, err);
        if (s != MEL_OK) return s;
    }
    return MEL_OK;
}

static int by_offset(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

// Entries from first on, sorted by offset, follow one another from base to the end of the file.
static mel_status check_cover(mel_weights *w, const mapping *m, int64_t first, int64_t base, mel_error *err) {
    char buffer[SHOWN];
    int64_t at = base;
    if (w->count > first) qsort(w->entries + first, (size_t)(w->count - first), sizeof(entry), by_offset);
    for (int64_t i = first; i < w->count; i++) {
        const entry *e = &w->entries[i];
        if (e->offset != at) {
            return REFUSE("%s: tensor '%s': data_offsets begin at %lld, the tensor before ends at %lld (%s)", m->path,
                mel_shown(buffer, e->name, strlen(e->name)), (long long)(e->offset - base), (long long)(at - base),
                e->offset < at ? "overlap" : "hole");
        }
        at += e->bytes;
    }
    if (at != (int64_t)m->size) {
        return REFUSE(
            "%s: %lld bytes after the last tensor belong to none", m->path, (long long)m->size - (long long)at);
    }
    return MEL_OK;
}

static mel_status read_header(mel_weights *w, const mapping *m, json_t *root, int64_t base, mel_error *err) {
    const char *key;
    json_t *value;
    int64_t first = w->count;
    if (!json_is_object(root)) return REFUSE("%s: header is not a JSON object", m->path);
    json_object_foreach(root, key, value) {
        mel_status s = strcmp(key, "__metadata__") == 0 ? read_metadata(w, m, value, err)
                                                        : read_entry(w, m, key, value, base, err);
        if (s != MEL_OK) return s;
    }
    return check_cover(w, m, first, base, err);
}

mel_status mel_read_safetensors(mel_weights *w, const mapping *m, mel_error *err) {
    if (m->size < 8) {
        return REFUSE("%s: %zu bytes are too few for the 8 of a safetensors header length", m->path, m->size);
    }
    uint64_t length;
    memcpy(&length, m->data, 8);
    if (length > m->size - 8) {
        return REFUSE("%s: header length %llu is more than the %zu bytes after it", m->path, (unsigned long long)length,
            m->size - 8);
    }
    if (length > MAX_HEADER) {
        return REFUSE("%s: header length %llu is above %d", m->path, (unsigned long long)length, MAX_HEADER);
    }
    if (length == 0 || m->data[8] != '{') return REFUSE("%s: header does not begin with '{'", m->path);

    json_error_t why;
    json_t *root = json_loadb((const char *)m->data + 8, (size_t)length, JSON_REJECT_DUPLICATES, &why);
    if (!root) {
        char buffer[SHOWN];
        return REFUSE("%s: header: byte %d: %s", m->path, why.position, mel_shown(buffer, why.text, strlen(why.text)));
    }
    w->format = "safetensors";
    mel_status s = read_header(w, m, root, 8 + (int64_t)length, err);
    json_decref(root);
    return s;
}
