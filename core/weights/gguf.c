// Reads GGUF versions 2 and 3. Format: github.com/ggml-org/ggml, docs/gguf.md. Sizes in the file are believed only
// after a comparison with the bytes that are there, so memory follows the size of the file.
#include "weights/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_DIMS = 4,          // ggml's own limit
    MIN_PAIR_BYTES = 14,   // length and one byte of a key, type, one byte of value
    MIN_TENSOR_BYTES = 24, // length of a name, dimension count, type, offset
    DEFAULT_ALIGNMENT = 32,
    META_ARRAY = 9
};

// ---- taking values off the front ---------------------------------------------------------------------
typedef struct cursor {
    const mapping *m;
    size_t at;
} cursor;

static size_t left(const cursor *c) {
    return c->m->size - c->at;
}

static mel_status take(cursor *c, void *out, size_t size, const char *what, mel_error *err) {
    if (left(c) < size) {
        return REFUSE(
            "%s: the file ends inside %s (byte %zu, %zu needed, %zu there)", c->m->path, what, c->at, size, left(c));
    }
    memcpy(out, c->m->data + c->at, size);
    c->at += size;
    return MEL_OK;
}

// A length and that many bytes, in place.
static mel_status take_text(cursor *c, const char **text, size_t *length, const char *what, mel_error *err) {
    uint64_t n;
    mel_status s = take(c, &n, sizeof n, what, err);
    if (s != MEL_OK) return s;
    if (n > left(c)) {
        return REFUSE("%s: %s: length %llu is more than the %zu bytes that follow", c->m->path, what,
            (unsigned long long)n, left(c));
    }
    *text = (const char *)c->m->data + c->at;
    *length = (size_t)n;
    c->at += (size_t)n;
    return MEL_OK;
}

// The same, copied and ended by a zero.
static mel_status take_name(mel_weights *w, cursor *c, const char **name, const char *what, mel_error *err) {
    const char *text;
    size_t length;
    mel_status s = take_text(c, &text, &length, what, err);
    if (s != MEL_OK) return s;
    if (length == 0) return REFUSE("%s: %s is empty", c->m->path, what);
    if (memchr(text, 0, length)) return REFUSE("%s: %s holds a zero byte", c->m->path, what);
    *name = mel_arena_text(&w->arena, text, length, err);
    return *name ? MEL_OK : MEL_ENOMEM;
}

// ---- key and value pairs -------------------------------------------------------------------------------
static size_t value_size(uint32_t type) {
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof sizes ? sizes[type] : 0;
}

static mel_status take_strings(mel_weights *w, cursor *c, meta *one, const char *what, mel_error *err) {
    size_t start = c->at;
    int64_t *positions = mel_arena_alloc(&w->arena, (size_t)one->length * sizeof *positions, err);
    if (!positions) return MEL_ENOMEM;
    one->bytes = c->m->data + start;
    one->positions = positions;
    for (int64_t i = 0; i < one->length; i++) {
        const char *text;
        size_t length;
        positions[i] = (int64_t)(c->at - start);
        mel_status s = take_text(c, &text, &length, what, err);
        if (s != MEL_OK) return s;
    }
    return MEL_OK;
}

static mel_status check_bools(const cursor *c, const uint8_t *bytes, int64_t count, const char *what, mel_error *err) {
    for (int64_t i = 0; i < count; i++) {
        if (bytes[i] > 1) return REFUSE("%s: %s: a bool is %d", c->m->path, what, bytes[i]);
    }
    return MEL_OK;
}

static mel_status take_value(mel_weights *w, cursor *c, meta *one, const char *what, mel_error *err) {
    uint32_t type;
    mel_status s = take(c, &type, sizeof type, what, err);
    if (s != MEL_OK) return s;
    one->length = -1;
    if (type == META_ARRAY) {
        uint64_t n;
        s = take(c, &type, sizeof type, what, err);
        if (s == MEL_OK) s = take(c, &n, sizeof n, what, err);
        if (s != MEL_OK) return s;
        if (type == META_ARRAY) return REFUSE("%s: %s is an array of arrays", c->m->path, what);
        size_t least = type == MEL_META_STRING ? 8 : value_size(type);
        if (least && n > left(c) / least) {
            return REFUSE("%s: %s: array length %llu is more than the %zu bytes that follow can hold", c->m->path, what,
                (unsigned long long)n, left(c));
        }
        one->length = (int64_t)n;
    }
    one->type = (int32_t)type;
    if (type == MEL_META_STRING) {
        if (one->length >= 0) return take_strings(w, c, one, what, err);
        size_t length;
        s = take_text(c, &one->text, &length, what, err);
        if (s == MEL_OK) one->text_length = (int64_t)length;
        return s;
    }
    if (!value_size(type)) return REFUSE("%s: %s: unknown value type %u", c->m->path, what, type);
    size_t count = one->length < 0 ? 1 : (size_t)one->length, size = count * value_size(type);
    if (size > left(c)) return REFUSE("%s: the file ends inside %s", c->m->path, what);
    one->bytes = c->m->data + c->at;
    c->at += size;
    return type == MEL_META_BOOL ? check_bools(c, one->bytes, (int64_t)count, what, err) : MEL_OK;
}

static mel_status take_pairs(mel_weights *w, cursor *c, uint64_t count, mel_error *err) {
    for (uint64_t i = 0; i < count; i++) {
        char what[SHOWN + 32], buffer[SHOWN];
        meta one = {0};
        snprintf(what, sizeof what, "metadata key %llu", (unsigned long long)i);
        mel_status s = take_name(w, c, &one.key, what, err);
        if (s != MEL_OK) return s;
        snprintf(what, sizeof what, "metadata '%s'", mel_shown(buffer, one.key, strlen(one.key)));
        s = take_value(w, c, &one, what, err);
        if (s == MEL_OK) s = mel_weights_add_meta(w, &one, err);
        if (s != MEL_OK) return s;
    }
    return mel_weights_sort_meta(w, err);
}

static mel_status read_alignment(mel_weights *w, uint64_t *out, mel_error *err) {
    *out = DEFAULT_ALIGNMENT;
    int64_t i = mel_weights_meta_find(w, "general.alignment");
    if (i < 0) return MEL_OK;
    const meta *m = &w->metas[i];
    if (m->type != MEL_META_U32 || m->length >= 0) {
        return REFUSE("%s: general.alignment is of value type %d, not a 32-bit whole number", w->path, m->type);
    }
    mel_meta_value v;
    mel_status s = mel_weights_meta_get(w, i, 0, &v, err);
    if (s != MEL_OK) return s;
    if (v.integer < 1 || (v.integer & (v.integer - 1)) != 0) {
        return REFUSE("%s: general.alignment is %lld, not a power of two", w->path, (long long)v.integer);
    }
    *out = (uint64_t)v.integer;
    return MEL_OK;
}

// ---- tensors ---------------------------------------------------------------------------------------------
// ggml holds at most 4 dimensions; ComfyUI-GGUF keeps the shape of a reshaped tensor under this key, row-major.
static void restore_shape(mel_weights *w, entry *e, int64_t count) {
    char key[512];
    int n = snprintf(key, sizeof key, "comfy.gguf.orig_shape.%s", e->name);
    int64_t i = n > 0 && n < (int)sizeof key ? mel_weights_meta_find(w, key) : -1;
    if (i < 0 || w->metas[i].type != MEL_META_I32) return;
    int64_t ndim = w->metas[i].length, product = 1, shape[MEL_MAX_DIMS];
    if (ndim < 1 || ndim > MEL_MAX_DIMS) return;
    for (int64_t k = 0; k < ndim; k++) {
        mel_meta_value v;
        if (mel_weights_meta_get(w, i, k, &v, NULL) != MEL_OK || v.integer < 0) return;
        if (__builtin_mul_overflow(product, v.integer, &product)) return;
        shape[k] = v.integer;
    }
    if (product != count) return;
    e->ndim = (int)ndim;
    memcpy(e->shape, shape, (size_t)ndim * sizeof *shape);
}

// e->offset is left relative to the data section, whose place is not known yet.
static mel_status take_tensor(mel_weights *w, cursor *c, uint64_t number, uint64_t alignment, mel_error *err) {
    char what[SHOWN + 32], buffer[SHOWN];
    const char *path = c->m->path, *why = "";
    entry e = {.map = c->m};
    snprintf(what, sizeof what, "the description of tensor %llu", (unsigned long long)number);
    mel_status s = take_name(w, c, &e.name, what, err);
    if (s != MEL_OK) return s;
    snprintf(what, sizeof what, "tensor '%s'", mel_shown(buffer, e.name, strlen(e.name)));

    uint32_t ndim, type;
    s = take(c, &ndim, sizeof ndim, what, err);
    if (s != MEL_OK) return s;
    if (ndim > MAX_DIMS) return REFUSE("%s: %s: %u dimensions, at most %d are allowed", path, what, ndim, MAX_DIMS);
    e.ndim = (int)ndim;
    for (int i = e.ndim - 1; i >= 0; i--) {
        s = take(c, &e.shape[i], 8, what, err); // fastest first in the file
        if (s != MEL_OK) return s;
        if (e.shape[i] < 0) {
            return REFUSE("%s: %s: dimension %d is %lld, below 0", path, what, e.ndim - 1 - i, (long long)e.shape[i]);
        }
    }
    s = take(c, &type, sizeof type, what, err);
    uint64_t offset;
    if (s == MEL_OK) s = take(c, &offset, sizeof offset, what, err);
    if (s != MEL_OK) return s;
    e.type = mel_stored_by_gguf(type, &why);
    if (!e.type) return FAIL(MEL_EUNSUPPORTED, "%s: %s: type %d %s", path, what, (int32_t)type, why);
    int64_t row = e.ndim ? e.shape[e.ndim - 1] : 1, count;
    if (row % e.type->block) {
        return REFUSE("%s: %s: row length %lld is not a multiple of the %d of %s", path, what, (long long)row,
            e.type->block, e.type->name);
    }
    if (!mel_dense_size(e.type, e.ndim, e.shape, &count, &e.bytes)) {
        return REFUSE("%s: %s: the shape's size overflows 64 bits", path, what);
    }
    if (offset % alignment) {
        return REFUSE("%s: %s: offset %llu is not a multiple of the alignment %llu", path, what,
            (unsigned long long)offset, (unsigned long long)alignment);
    }
    if (offset > INT64_MAX) {
        return REFUSE("%s: %s: offset %llu lies after the end", path, what, (unsigned long long)offset);
    }
    e.offset = (int64_t)offset;
    restore_shape(w, &e, count);
    return mel_weights_add(w, &e, err);
}

static int by_offset(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

// Gives the entries their place in the file: inside it, none over another.
static mel_status place_tensors(mel_weights *w, const mapping *m, uint64_t base, mel_error *err) {
    char buffer[SHOWN];
    if (w->count) qsort(w->entries, (size_t)w->count, sizeof(entry), by_offset);
    if (w->count && base > m->size) return REFUSE("%s: the file ends before the data section", m->path);
    int64_t end = 0, room = base <= m->size ? (int64_t)(m->size - base) : 0;
    for (int64_t i = 0; i < w->count; i++) {
        entry *e = &w->entries[i];
        const char *name = mel_shown(buffer, e->name, strlen(e->name));
        if (e->offset > room || e->bytes > room - e->offset) {
            return REFUSE("%s: tensor '%s': %lld bytes at offset %lld, but the data section has %lld", m->path, name,
                (long long)e->bytes, (long long)e->offset, (long long)room);
        }
        if (e->offset < end) {
            return REFUSE("%s: tensor '%s': offset %lld lies inside the tensor before, which ends at %lld", m->path,
                name, (long long)e->offset, (long long)end);
        }
        end = e->offset + e->bytes;
        e->offset += (int64_t)base;
    }
    return MEL_OK;
}

mel_status mel_read_gguf(mel_weights *w, const mapping *m, mel_error *err) {
    cursor c = {m, 0};
    char magic[4], buffer[SHOWN];
    uint32_t version;
    uint64_t tensors, pairs, alignment;
    w->format = "gguf";
    mel_status s = take(&c, magic, 4, "the magic", err);
    if (s != MEL_OK) return s;
    if (memcmp(magic, "GGUF", 4) != 0) {
        return REFUSE("%s: magic is '%s', not 'GGUF'", m->path, mel_shown(buffer, magic, 4));
    }
    s = take(&c, &version, sizeof version, "the version", err);
    if (s != MEL_OK) return s;
    if (version != 2 && version != 3) {
        bool swapped = version != 0 && (version & 0xffff) == 0;
        return FAIL(MEL_EUNSUPPORTED, "%s: GGUF version %u%s, 2 and 3 are supported", m->path,
            swapped ? __builtin_bswap32(version) : version, swapped ? " big-endian" : "");
    }
    s = take(&c, &tensors, sizeof tensors, "the tensor count", err);
    if (s == MEL_OK) s = take(&c, &pairs, sizeof pairs, "the metadata count", err);
    if (s != MEL_OK) return s;
    if (pairs > left(&c) / MIN_PAIR_BYTES || tensors > left(&c) / MIN_TENSOR_BYTES) {
        return REFUSE("%s: %llu metadata values and %llu tensors do not fit in the %zu bytes that follow", m->path,
            (unsigned long long)pairs, (unsigned long long)tensors, left(&c));
    }
    s = take_pairs(w, &c, pairs, err);
    if (s == MEL_OK) s = read_alignment(w, &alignment, err);
    for (uint64_t i = 0; i < tensors && s == MEL_OK; i++)
        s = take_tensor(w, &c, i, alignment, err);
    if (s != MEL_OK) return s;
    return place_tensors(w, m, (c.at + alignment - 1) & ~(alignment - 1), err);
}
