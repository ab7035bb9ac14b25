// Writes safetensors: everything declared first, so the header is known; then each tensor to its place.
#include "weights/file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PIECE = 8 << 20 // bytes between two looks at the cancel flag
};

typedef struct slot {
    const char *name;
    const stored_type *type;
    int ndim;
    int64_t shape[MEL_MAX_DIMS];
    int64_t offset, bytes; // from the begin of the data
    bool written;
} slot;

typedef struct pair {
    const char *key, *value;
} pair;

struct mel_weights_writer {
    const char *path, *temporary;
    int fd; // -1 once closed
    bool started, failed;
    int64_t base; // bytes before the data
    arena arena;
    slot *slots;
    int64_t count, capacity;
    pair *pairs;
    int64_t pair_count, pair_capacity;
};

// ---- opening and going ------------------------------------------------------------------------------
// A free name beside path, created. The process number and a counter make it ours.
static mel_status create_temporary(mel_weights_writer *w, mel_error *err) {
    static atomic_uint counter;
    size_t room = strlen(w->path) + 48;
    char *name = mel_arena_alloc(&w->arena, room, err);
    if (!name) return MEL_ENOMEM;
    for (int tries = 0; tries < 100; tries++) {
        snprintf(name, room, "%s.part-%ld-%u", w->path, (long)getpid(), atomic_fetch_add(&counter, 1));
        w->fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0) {
            w->temporary = name;
            return MEL_OK;
        }
        if (errno != EEXIST) break;
    }
    return FAIL(MEL_EIO, "%s: cannot be written: %s", w->path, strerror(errno));
}

mel_status mel_weights_writer_create(const char *path, mel_weights_writer **out, mel_error *err) {
    if (!path || !*path) return FAIL(MEL_EINVAL, "weights writer: the path is empty");
    mel_weights_writer *w = mel_alloc_zero(sizeof *w, err);
    if (!w) return MEL_ENOMEM;
    w->fd = -1;
    w->path = mel_arena_text(&w->arena, path, strlen(path), err);
    mel_status s = w->path ? create_temporary(w, err) : MEL_ENOMEM;
    if (s != MEL_OK) {
        mel_weights_writer_free(w);
        return s;
    }
    *out = w;
    return MEL_OK;
}

void mel_weights_writer_free(mel_weights_writer *w) {
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (w->temporary) unlink(w->temporary);
    mel_free(w->slots);
    mel_free(w->pairs);
    mel_arena_free(&w->arena);
    mel_free(w);
}

// ---- declaring ---------------------------------------------------------------------------------------
static mel_status check_usable(const mel_weights_writer *w, bool before_writing, mel_error *err) {
    if (w->failed || w->fd < 0) {
        return FAIL(MEL_EINVAL, "%s: the writer has %s", w->path, w->failed ? "failed" : "finished");
    }
    if (before_writing && w->started) {
        return FAIL(MEL_EINVAL, "%s: declarations come before the first write", w->path);
    }
    return MEL_OK;
}

// UTF-8 by jansson's judgement, which is what will write it.
static bool is_utf8(const char *text) {
    json_t *j = json_string(text);
    json_decref(j);
    return j != NULL;
}

mel_status mel_weights_writer_metadata(mel_weights_writer *w, const char *key, const char *value, mel_error *err) {
    mel_status s = check_usable(w, true, err);
    if (s != MEL_OK) return s;
    if (!key || !*key || !value) return FAIL(MEL_EINVAL, "%s: metadata: the key is empty", w->path);
    if (!is_utf8(key) || !is_utf8(value)) {
        return FAIL(MEL_EINVAL, "%s: metadata '%s': not UTF-8", w->path, is_utf8(key) ? key : "?");
    }
    pair p = {mel_arena_text(&w->arena, key, strlen(key), err), mel_arena_text(&w->arena, value, strlen(value), err)};
    if (!p.key || !p.value || !mel_grow((void **)&w->pairs, w->pair_count, &w->pair_capacity, sizeof p, err)) {
        return MEL_ENOMEM;
    }
    w->pairs[w->pair_count++] = p;
    return MEL_OK;
}

mel_status mel_weights_writer_declare(
    mel_weights_writer *w, const char *name, mel_dtype dtype, int ndim, const int64_t *shape, mel_error *err) {
    mel_status s = check_usable(w, true, err);
    if (s != MEL_OK) return s;
    slot one = {.type = mel_stored_of_dtype(dtype), .ndim = ndim};
    if (!name || !is_utf8(name) || strcmp(name, "__metadata__") == 0) {
        return FAIL(
            MEL_EINVAL, "%s: a tensor cannot be called '%s'", w->path, name && is_utf8(name) ? name : "(not UTF-8)");
    }
    if (!one.type) return FAIL(MEL_EINVAL, "%s: tensor '%s': no such dtype: %d", w->path, name, (int)dtype);
    if (ndim < 0 || ndim > MEL_MAX_DIMS) {
        return FAIL(MEL_EINVAL, "%s: tensor '%s': %d dimensions", w->path, name, ndim);
    }
    if (ndim) memcpy(one.shape, shape, (size_t)ndim * sizeof *shape);
    int64_t count;
    if (!mel_dense_size(one.type, ndim, one.shape, &count, &one.bytes)) {
        return FAIL(MEL_EINVAL, "%s: tensor '%s': a negative dimension, or too many elements", w->path, name);
    }
    one.name = mel_arena_text(&w->arena, name, strlen(name), err);
    if (!one.name || !mel_grow((void **)&w->slots, w->count, &w->capacity, sizeof one, err)) return MEL_ENOMEM;
    w->slots[w->count++] = one;
    return MEL_OK;
}

// ---- the header ----------------------------------------------------------------------------------------
static int by_name(const void *a, const void *b) {
    return strcmp(((const slot *)a)->name, ((const slot *)b)->name);
}

static int by_width(const void *a, const void *b) {
    const slot *x = a, *y = b;
    int wide = y->type->block_size - x->type->block_size;
    return wide ? wide : by_name(a, b);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const pair *)a)->key, ((const pair *)b)->key);
}

static json_t *describe(const slot *s) {
    json_t *shape = json_array(), *entry;
    for (int i = 0; i < s->ndim; i++)
        json_array_append_new(shape, json_integer(s->shape[i]));
    entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", s->type->name, "shape", shape, "data_offsets",
        (json_int_t)s->offset, (json_int_t)(s->offset + s->bytes));
    return entry;
}

// The header's text without padding (free()), NULL where memory is short.
static char *header_text(const mel_weights_writer *w) {
    json_t *root = json_object();
    int bad = 0;
    if (w->pair_count) {
        json_t *map = json_object();
        for (int64_t i = 0; i < w->pair_count; i++)
            bad |= json_object_set_new(map, w->pairs[i].key, json_string(w->pairs[i].value));
        bad |= json_object_set_new(root, "__metadata__", map);
    }
    for (int64_t i = 0; i < w->count; i++)
        bad |= json_object_set_new(root, w->slots[i].name, describe(&w->slots[i]));
    char *text = bad ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

static mel_status put(mel_weights_writer *w, const void *data, int64_t size, int64_t at, mel_error *err) {
    const uint8_t *from = data;
    while (size > 0) {
        mel_status s = mel_check_cancel(err);
        if (s != MEL_OK) return s;
        ssize_t n = pwrite(w->fd, from, (size_t)(size < PIECE ? size : PIECE), at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return FAIL(MEL_EIO, "%s: cannot be written: %s", w->path, strerror(errno));
        from += n;
        at += n;
        size -= n;
    }
    return MEL_OK;
}

// Lays the tensors out, checks for repeated names, writes the header. slots are sorted by name afterwards.
static mel_status start(mel_weights_writer *w, mel_error *err) {
    w->started = true;
    if (w->pair_count) qsort(w->pairs, (size_t)w->pair_count, sizeof(pair), by_key);
    for (int64_t i = 1; i < w->pair_count; i++) {
        if (strcmp(w->pairs[i].key, w->pairs[i - 1].key) == 0) {
            return FAIL(MEL_EINVAL, "%s: metadata '%s' is given twice", w->path, w->pairs[i].key);
        }
    }
    int64_t at = 0;
    if (w->count) qsort(w->slots, (size_t)w->count, sizeof(slot), by_width);
    for (int64_t i = 0; i < w->count; i++) {
        w->slots[i].offset = at;
        if (__builtin_add_overflow(at, w->slots[i].bytes, &at)) {
            return FAIL(MEL_EINVAL, "%s: the tensors take more than 2^63 bytes", w->path);
        }
    }
    char *text = header_text(w);
    if (!text) return FAIL(MEL_ENOMEM, "%s: no memory for the header", w->path);
    if (w->count) qsort(w->slots, (size_t)w->count, sizeof(slot), by_name);
    mel_status s = MEL_OK;
    for (int64_t i = 1; i < w->count && s == MEL_OK; i++) {
        if (strcmp(w->slots[i].name, w->slots[i - 1].name) == 0) {
            s = FAIL(MEL_EINVAL, "%s: tensor '%s' is declared twice", w->path, w->slots[i].name);
        }
    }
    size_t length = strlen(text);
    uint64_t padded = (length + 7) & ~(uint64_t)7;
    w->base = 8 + (int64_t)padded;
    if (s == MEL_OK) s = put(w, &padded, 8, 0, err);
    if (s == MEL_OK) s = put(w, text, (int64_t)length, 8, err);
    if (s == MEL_OK) s = put(w, "        ", (int64_t)(padded - length), 8 + (int64_t)length, err);
    free(text);
    return s;
}

// ---- the data --------------------------------------------------------------------------------------------
static mel_status write_slot(mel_weights_writer *w, slot *one, const mel_tensor *tensor, mel_error *err) {
    char text[128];
    const int64_t *shape = mel_tensor_shape(tensor);
    if (mel_tensor_dtype(tensor) != one->type->dtype || mel_tensor_ndim(tensor) != one->ndim ||
        (one->ndim && memcmp(shape, one->shape, (size_t)one->ndim * sizeof *shape) != 0)) {
        return FAIL(MEL_EINVAL, "%s: tensor '%s': %s %s is not what was declared", w->path, one->name,
            mel_dtype_name(mel_tensor_dtype(tensor)), mel_tensor_shape_text(tensor, text, sizeof text));
    }
    if (one->written) return FAIL(MEL_EINVAL, "%s: tensor '%s' is written twice", w->path, one->name);
    mel_tensor *dense;
    mel_status s = mel_tensor_contiguous(tensor, &dense, err);
    if (s != MEL_OK) return s;
    s = put(w, mel_tensor_data(dense), one->bytes, w->base + one->offset, err);
    mel_tensor_unref(dense);
    one->written = s == MEL_OK;
    return s;
}

mel_status mel_weights_writer_write(mel_weights_writer *w, const char *name, const mel_tensor *tensor, mel_error *err) {
    mel_status s = check_usable(w, false, err);
    if (s == MEL_OK && !w->started) s = start(w, err);
    if (s != MEL_OK) {
        w->failed = true;
        return s;
    }
    slot key = {.name = name ? name : ""};
    slot *one = w->count ? bsearch(&key, w->slots, (size_t)w->count, sizeof key, by_name) : NULL;
    s = one ? write_slot(w, one, tensor, err) : FAIL(MEL_EINVAL, "%s: tensor '%s' was not declared", w->path, key.name);
    w->failed = s != MEL_OK;
    return s;
}

// The rename must survive a power cut too; not every file system can promise that, so its answer is not an error.
static void sync_folder(const char *path) {
    char folder[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n >= sizeof folder) return;
    memcpy(folder, path, n);
    folder[n] = 0;
    int fd = open(slash ? (n ? folder : "/") : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static mel_status finish(mel_weights_writer *w, mel_error *err) {
    mel_status s = check_usable(w, false, err);
    if (s == MEL_OK && !w->started) s = start(w, err);
    for (int64_t i = 0; i < w->count && s == MEL_OK; i++) {
        if (!w->slots[i].written) {
            s = FAIL(MEL_EINVAL, "%s: tensor '%s' was declared but not written", w->path, w->slots[i].name);
        }
    }
    if (s != MEL_OK) return s;
    int bad = fsync(w->fd), why = errno;
    int closed = close(w->fd);
    if (!bad && closed) why = errno;
    w->fd = -1;
    if (bad || closed) return FAIL(MEL_EIO, "%s: cannot be written: %s", w->path, strerror(why));
    if (rename(w->temporary, w->path) != 0) {
        return FAIL(MEL_EIO, "%s: cannot be put in place: %s", w->path, strerror(errno));
    }
    w->temporary = NULL;
    sync_folder(w->path);
    return MEL_OK;
}

mel_status mel_weights_writer_finish(mel_weights_writer *w, mel_error *err) {
    mel_status s = finish(w, err);
    if (s != MEL_OK) w->failed = true;
    return s;
}
