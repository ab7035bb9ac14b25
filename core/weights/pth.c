// Reads what torch.save writes since PyTorch 1.6: a zip container with NAME/data.pkl, which describes the tensors, and
// NAME/data/KEY, the bytes of each storage. Nested dictionaries and lists become names joined by dots.
#include "weights/pth.h"

#include <stdio.h>
#include <string.h>

enum {
    MAX_NESTING = 16,
    MAX_NAME = 1024
};

typedef struct reader {
    mel_weights *w;
    const mapping *m;
    const zip_record *records;
    int64_t record_count;
    int prefix; // bytes of records[pickle].name before "data.pkl"
    const zip_record *pickle;
    int64_t visits; // of values; shared parts of the graph count each time
    char name[MAX_NAME];
} reader;

// Shape, strides and place of a tensor, all within its storage.
static mel_status fill_layout(reader *r, const value *tensor, entry *e, const char *name, mel_error *err) {
    const char *path = r->m->path;
    const value *storage = tensor->items[0], *shape = tensor->items[1], *strides = tensor->items[2];
    if (shape->count > MEL_MAX_DIMS || strides->count != shape->count) {
        return REFUSE("%s: tensor '%s': %lld dimensions, %lld strides", path, name, (long long)shape->count,
            (long long)strides->count);
    }
    e->ndim = (int)shape->count;
    for (int i = 0; i < e->ndim; i++) {
        if (shape->items[i]->kind != VALUE_INT || strides->items[i]->kind != VALUE_INT ||
            strides->items[i]->integer < 0) {
            return REFUSE("%s: tensor '%s': shape or stride %d is not a whole number from 0", path, name, i);
        }
        e->shape[i] = shape->items[i]->integer;
    }
    int64_t count, first = tensor->integer, last = first, dense = 1;
    if (!mel_dense_size(e->type, e->ndim, e->shape, &count, &e->bytes)) {
        return REFUSE("%s: tensor '%s': a negative dimension, or a size that overflows 64 bits", path, name);
    }
    bool is_dense = true;
    for (int i = e->ndim - 1; i >= 0 && count > 0; i--) {
        int64_t stride = strides->items[i]->integer, reach;
        if (__builtin_mul_overflow(e->shape[i] - 1, stride, &reach) || __builtin_add_overflow(last, reach, &last)) {
            return REFUSE("%s: tensor '%s': stride %lld is out of its storage", path, name, (long long)stride);
        }
        is_dense = is_dense && (e->shape[i] == 1 || stride == dense);
        dense *= e->shape[i];
    }
    if (first < 0 || first > storage->integer || (count > 0 && last >= storage->integer)) {
        return REFUSE("%s: tensor '%s': elements %lld to %lld are not all within the %lld of its storage", path, name,
            (long long)first, (long long)last, (long long)storage->integer);
    }
    if (count > storage->integer) {
        return FAIL(MEL_EUNSUPPORTED, "%s: tensor '%s': %lld elements expanded from a storage of %lld", path, name,
            (long long)count, (long long)storage->integer);
    }
    e->offset += first * e->type->block_size;
    if (is_dense) return MEL_OK;
    int64_t *kept = mel_arena_alloc(&r->w->arena, MEL_MAX_DIMS * sizeof *kept, err);
    if (!kept) return MEL_ENOMEM;
    for (int i = 0; i < e->ndim; i++)
        kept[i] = strides->items[i]->integer;
    e->strides = kept;
    return MEL_OK;
}

static mel_status add_tensor(reader *r, const value *tensor, mel_error *err) {
    char path[MAX_NAME], name[SHOWN], key[SHOWN];
    const value *storage = tensor->items[0];
    mel_shown(name, r->name, strlen(r->name));
    mel_shown(key, storage->text, (size_t)storage->length);
    int n = storage->length < 64 ? snprintf(path, sizeof path, "%.*sdata/%.*s", r->prefix, r->pickle->name,
                                       (int)storage->length, storage->text)
                                 : MAX_NAME;
    const zip_record *record = n < MAX_NAME ? mel_zip_find(r->records, r->record_count, path) : NULL;
    if (!record) return REFUSE("%s: tensor '%s': there is no record for its storage '%s'", r->m->path, name, key);
    int64_t size = storage->type->block_size;
    if (record->bytes % size != 0 || record->bytes / size != storage->integer) {
        return REFUSE("%s: tensor '%s': storage '%s' has %lld bytes, %lld elements of %s are described", r->m->path,
            name, key, (long long)record->bytes, (long long)storage->integer, storage->type->name);
    }
    entry e = {.type = storage->type, .map = r->m, .offset = record->offset};
    mel_status s = fill_layout(r, tensor, &e, name, err);
    if (s != MEL_OK) return s;
    e.name = mel_arena_text(&r->w->arena, r->name, strlen(r->name), err);
    return e.name ? mel_weights_add(r->w, &e, err) : MEL_ENOMEM;
}

// Appends ".key" to the name; false: too long, or not a key that a name can hold.
static bool append_key(reader *r, const value *key, int64_t number) {
    size_t at = strlen(r->name), room = sizeof r->name - at;
    const char *dot = at ? "." : "";
    int n;
    if (!key || key->kind == VALUE_INT) {
        n = snprintf(r->name + at, room, "%s%lld", dot, (long long)(key ? key->integer : number));
    } else if (key->kind == VALUE_TEXT && key->length < MAX_NAME && !memchr(key->text, 0, (size_t)key->length)) {
        n = snprintf(r->name + at, room, "%s%.*s", dot, (int)key->length, key->text);
    } else {
        return false;
    }
    return n >= 0 && (size_t)n < room;
}

static mel_status flatten(reader *r, const value *v, int nesting, mel_error *err) {
    if (nesting > MAX_NESTING || r->visits++ > r->pickle->bytes) {
        return FAIL(
            MEL_EUNSUPPORTED, "%s: data.pkl: nested more than %d deep, or in a circle", r->m->path, MAX_NESTING);
    }
    if (v->kind == VALUE_TENSOR) return add_tensor(r, v, err);
    bool dict = v->kind == VALUE_DICT;
    if (!dict && v->kind != VALUE_LIST && v->kind != VALUE_TUPLE) return MEL_OK;
    size_t length = strlen(r->name);
    for (int64_t i = 0; i < v->count; i += dict ? 2 : 1) {
        char buffer[SHOWN];
        if (!append_key(r, dict ? v->items[i] : NULL, i)) {
            return FAIL(MEL_EUNSUPPORTED, "%s: data.pkl: under '%s': a key that cannot stand in a name", r->m->path,
                mel_shown(buffer, r->name, length));
        }
        mel_status s = flatten(r, v->items[dict ? i + 1 : i], nesting + 1, err);
        r->name[length] = 0;
        if (s != MEL_OK) return s;
    }
    return MEL_OK;
}

static mel_status find_pickle(reader *r, mel_error *err) {
    static const char tail[] = "data.pkl";
    for (int64_t i = 0; i < r->record_count; i++) {
        const char *name = r->records[i].name;
        size_t n = strlen(name), k = sizeof tail - 1;
        if (n < k || n > 512 || strcmp(name + n - k, tail) != 0 || (n > k && name[n - k - 1] != '/')) continue;
        if (r->pickle) return REFUSE("%s: holds two data.pkl", r->m->path);
        r->pickle = &r->records[i];
        r->prefix = (int)(n - k);
    }
    if (!r->pickle) return REFUSE("%s: is a zip file without data.pkl: not what torch.save writes", r->m->path);
    return MEL_OK;
}

static mel_status check_byte_order(const reader *r, mel_error *err) {
    char path[MAX_NAME], order[SHOWN];
    snprintf(path, sizeof path, "%.*sbyteorder", r->prefix, r->pickle->name);
    const zip_record *record = mel_zip_find(r->records, r->record_count, path);
    if (!record) return MEL_OK;
    const char *text = (const char *)r->m->data + record->offset;
    if (record->bytes == 6 && memcmp(text, "little", 6) == 0) return MEL_OK;
    return FAIL(MEL_EUNSUPPORTED, "%s: byteorder is '%s', not 'little'", r->m->path,
        mel_shown(order, text, (size_t)(record->bytes < 16 ? record->bytes : 16)));
}

mel_status mel_read_pth(mel_weights *w, const mapping *m, mel_error *err) {
    reader r = {.w = w, .m = m};
    zip_record *records;
    const value *root;
    w->format = "pth";
    mel_status s = mel_zip_list(w, m, &records, &r.record_count, err);
    if (s != MEL_OK) return s;
    r.records = records;
    s = find_pickle(&r, err);
    if (s == MEL_OK) s = check_byte_order(&r, err);
    if (s == MEL_OK) s = mel_unpickle(w, m, r.pickle->offset, r.pickle->bytes, &root, err);
    if (s != MEL_OK) return s;
    if (root->kind == VALUE_TENSOR) memcpy(r.name, "tensor", 7);
    return flatten(&r, root, 0, err);
}
