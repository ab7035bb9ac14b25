// Writes safetensors and GGUF: everything declared first, so the header is known; then each tensor to its place, whole
// or by rows, converted or quantised on the way.
#define _GNU_SOURCE // fallocate
#include "weights/writer.h"

#include "tensor/rows.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PIECE = 8 << 20 // bytes between two looks at the cancel flag
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

static mel_status create(const char *path, bool gguf, mel_weights_writer **out, mel_error *err) {
    if (!path || !*path) return FAIL(MEL_EINVAL, "weights writer: the path is empty");
    mel_weights_writer *w = mel_alloc_zero(sizeof *w, err);
    if (!w) return MEL_ENOMEM;
    w->fd = -1;
    w->gguf = gguf;
    w->path = mel_arena_text(&w->arena, path, strlen(path), err);
    mel_status s = w->path ? create_temporary(w, err) : MEL_ENOMEM;
    if (s != MEL_OK) {
        mel_weights_writer_free(w);
        return s;
    }
    *out = w;
    return MEL_OK;
}

mel_status mel_weights_writer_create(const char *path, mel_weights_writer **out, mel_error *err) {
    return create(path, false, out, err);
}

mel_status mel_weights_writer_create_gguf(const char *path, mel_weights_writer **out, mel_error *err) {
    return create(path, true, out, err);
}

void mel_weights_writer_set_quick(mel_weights_writer *w, bool quick) {
    w->quick = quick;
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
    pair p = {.key = mel_arena_text(&w->arena, key, strlen(key), err),
        .value = mel_arena_text(&w->arena, value, strlen(value), err)};
    if (!p.key || !p.value || !mel_grow((void **)&w->pairs, w->pair_count, &w->pair_capacity, sizeof p, err)) {
        return MEL_ENOMEM;
    }
    w->pairs[w->pair_count++] = p;
    return MEL_OK;
}

mel_status mel_weights_writer_number(
    mel_weights_writer *w, const char *key, mel_meta_type type, double value, mel_error *err) {
    mel_status s = check_usable(w, true, err);
    if (s != MEL_OK) return s;
    if (!w->gguf) return FAIL(MEL_EINVAL, "%s: safetensors has no numbers as metadata", w->path);
    if (!key || !*key || !is_utf8(key)) return FAIL(MEL_EINVAL, "%s: metadata: the key is empty", w->path);
    if (type != MEL_META_U32 && type != MEL_META_F32 && type != MEL_META_BOOL)
        return FAIL(MEL_EINVAL, "%s: metadata '%s': type %d is not written", w->path, key, (int)type);
    pair p = {.key = mel_arena_text(&w->arena, key, strlen(key), err), .type = type, .number = value};
    if (!p.key || !mel_grow((void **)&w->pairs, w->pair_count, &w->pair_capacity, sizeof p, err)) return MEL_ENOMEM;
    w->pairs[w->pair_count++] = p;
    return MEL_OK;
}

static mel_status declare(
    mel_weights_writer *w, const char *name, const stored_type *type, int ndim, const int64_t *shape, mel_error *err) {
    mel_status s = check_usable(w, true, err);
    if (s != MEL_OK) return s;
    slot one = {.type = type, .ndim = ndim};
    if (!name || !is_utf8(name) || strcmp(name, "__metadata__") == 0) {
        return FAIL(
            MEL_EINVAL, "%s: a tensor cannot be called '%s'", w->path, name && is_utf8(name) ? name : "(not UTF-8)");
    }
    if (ndim < 0 || ndim > MEL_MAX_DIMS) {
        return FAIL(MEL_EINVAL, "%s: tensor '%s': %d dimensions", w->path, name, ndim);
    }
    if (ndim) memcpy(one.shape, shape, (size_t)ndim * sizeof *shape);
    if (type->block > 1 && (ndim < 2 || one.shape[ndim - 1] % type->block))
        return FAIL(MEL_EINVAL, "%s: tensor '%s': rows of %lld values are no whole blocks of %d", w->path, name,
            (long long)(ndim ? one.shape[ndim - 1] : 1), type->block);
    int64_t count;
    if (!mel_dense_size(one.type, ndim, one.shape, &count, &one.bytes)) {
        return FAIL(MEL_EINVAL, "%s: tensor '%s': a negative dimension, or too many elements", w->path, name);
    }
    int64_t rows = ndim ? one.shape[0] : 1, columns = rows ? count / rows : 0;
    if (w->gguf && type->gguf < 0)
        return FAIL(MEL_EINVAL, "%s: tensor '%s': GGUF has no type %s", w->path, name, type->name);
    if (!w->gguf && type->block > 1)
        return FAIL(MEL_EINVAL, "%s: tensor '%s': safetensors has no type %s", w->path, name, type->name);
    one.rows_left = rows;
    one.row_bytes = columns / type->block * type->block_size;
    one.name = mel_arena_text(&w->arena, name, strlen(name), err);
    if (!one.name || !mel_grow((void **)&w->slots, w->count, &w->capacity, sizeof one, err)) return MEL_ENOMEM;
    w->slots[w->count++] = one;
    return MEL_OK;
}

mel_status mel_weights_writer_declare(
    mel_weights_writer *w, const char *name, mel_dtype dtype, int ndim, const int64_t *shape, mel_error *err) {
    const stored_type *type = mel_stored_of_dtype(dtype);
    if (!type) return FAIL(MEL_EINVAL, "%s: tensor '%s': no such dtype: %d", w->path, name ? name : "", (int)dtype);
    return declare(w, name, type, ndim, shape, err);
}

mel_status mel_weights_writer_declare_stored(
    mel_weights_writer *w, const char *name, const char *stored, int ndim, const int64_t *shape, mel_error *err) {
    const stored_type *type = mel_stored_by_any_name(stored ? stored : "");
    if (!type || (type->convert && !type->quantize))
        return FAIL(MEL_EUNSUPPORTED, "%s: tensor '%s': the type %s is not written", w->path, name ? name : "",
            stored ? stored : "(null)");
    return declare(w, name, type, ndim, shape, err);
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

// The order in which tensors are looked up. MEL_EINVAL: a name is declared twice.
static mel_status sort_by_name(mel_weights_writer *w, mel_error *err) {
    if (w->count) qsort(w->slots, (size_t)w->count, sizeof(slot), by_name);
    for (int64_t i = 1; i < w->count; i++) {
        if (strcmp(w->slots[i].name, w->slots[i - 1].name) == 0)
            return FAIL(MEL_EINVAL, "%s: tensor '%s' is declared twice", w->path, w->slots[i].name);
    }
    return MEL_OK;
}

// Room for the whole file now, so that a full disk is found before the work. Where the file system has no such call the
// writes will tell.
static mel_status reserve(const mel_weights_writer *w, int64_t bytes, mel_error *err) {
    if (bytes <= 0 || fallocate(w->fd, FALLOC_FL_KEEP_SIZE, 0, bytes) == 0) return MEL_OK;
    if (errno != ENOSPC && errno != EDQUOT && errno != EFBIG) return MEL_OK;
    return FAIL(MEL_EIO, "%s: cannot be written: %s (it takes %lld bytes)", w->path, strerror(errno), (long long)bytes);
}

static mel_status start_gguf(mel_weights_writer *w, mel_error *err) {
    uint8_t *header;
    mel_status s = sort_by_name(w, err);
    if (s == MEL_OK) s = mel_gguf_header(w, &header, &w->base, err);
    if (s != MEL_OK) return s;
    s = reserve(w, w->end, err);
    if (s == MEL_OK) s = put(w, header, w->base, 0, err);
    mel_free(header);
    return s;
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
    if (w->gguf) return start_gguf(w, err);
    if (w->count) qsort(w->slots, (size_t)w->count, sizeof(slot), by_width);
    for (int64_t i = 0; i < w->count; i++) {
        w->slots[i].offset = at;
        if (__builtin_add_overflow(at, w->slots[i].bytes, &at)) {
            return FAIL(MEL_EINVAL, "%s: the tensors take more than 2^63 bytes", w->path);
        }
    }
    char *text = header_text(w);
    if (!text) return FAIL(MEL_ENOMEM, "%s: no memory for the header", w->path);
    mel_status s = sort_by_name(w, err);
    size_t length = strlen(text);
    char blanks[64];
    memset(blanks, ' ', sizeof blanks);
    // Tensors of whole vectors stay aligned where the file is mapped.
    uint64_t padded = ((length + 8 + 63) & ~(uint64_t)63) - 8;
    w->base = 8 + (int64_t)padded;
    if (s == MEL_OK) s = reserve(w, at <= INT64_MAX - w->base ? w->base + at : INT64_MAX, err);
    if (s == MEL_OK) s = put(w, &padded, 8, 0, err);
    if (s == MEL_OK) s = put(w, text, (int64_t)length, 8, err);
    if (s == MEL_OK) s = put(w, blanks, (int64_t)(padded - length), 8 + (int64_t)length, err);
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
    if (one->rows_left != (one->ndim ? one->shape[0] : 1))
        return FAIL(MEL_EINVAL, "%s: tensor '%s' is written twice", w->path, one->name);
    mel_tensor *dense;
    mel_status s = mel_tensor_contiguous(tensor, &dense, err);
    if (s != MEL_OK) return s;
    s = put(w, mel_tensor_data(dense), one->bytes, w->base + one->offset, err);
    mel_tensor_unref(dense);
    one->rows_left = -1;
    return s;
}

// count rows of floats as the stored type. false: a value that a block cannot hold.
static bool convert_rows(const slot *one, const mel_tensor *dense, int64_t count, bool quick, uint8_t *dst) {
    const row_kernels *k = mel_rows();
    int64_t columns = count ? mel_tensor_numel(dense) / count : 0;
    int64_t wide = mel_dtype_size(mel_tensor_dtype(dense));
    const char *src = mel_tensor_data(dense);
    // Long rows in steps of whole blocks; a vector is one row here.
    int64_t total = mel_tensor_numel(dense), step = columns > 1 && columns <= 1 << 16 ? columns : 8192;
    int64_t parts = (total + step - 1) / step;
    bool fine = true;
#pragma omp parallel for num_threads(mel_threads()) schedule(static) reduction(&& : fine) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        float line[1 << 16];
        int64_t first = i * step, n = total - first < step ? total - first : step;
        uint8_t *to = dst + first / one->type->block * one->type->block_size;
        k->load((int)mel_tensor_dtype(dense), src + first * wide, line, n);
        if (one->type->quantize) {
            float sum = 0;
            for (int64_t j = 0; j < n; j++)
                sum += line[j] * 0;
            if (sum == 0) one->type->quantize(line, to, n, quick);
            fine = fine && sum == 0;
        } else {
            k->store((int)one->type->dtype, line, (char *)to, n);
        }
    }
    return fine;
}

static mel_status write_rows(mel_weights_writer *w, slot *one, int64_t first, const mel_tensor *rows, mel_error *err) {
    char text[128];
    const int64_t *shape = mel_tensor_shape(rows);
    int ndim = mel_tensor_ndim(rows);
    int64_t count = ndim ? shape[0] : 1, all = one->ndim ? one->shape[0] : 1;
    if (ndim != one->ndim || !mel_is_float(mel_tensor_dtype(rows)) || first < 0 || count > all - first ||
        (ndim > 1 && memcmp(shape + 1, one->shape + 1, (size_t)(ndim - 1) * sizeof *shape) != 0)) {
        return FAIL(MEL_EINVAL, "%s: tensor '%s': %s %s from row %lld on is no part of it", w->path, one->name,
            mel_dtype_name(mel_tensor_dtype(rows)), mel_tensor_shape_text(rows, text, sizeof text),
            (long long)first + 1);
    }
    if (one->rows_left < count) return FAIL(MEL_EINVAL, "%s: tensor '%s' is written twice", w->path, one->name);
    mel_tensor *dense;
    mel_status s = mel_tensor_contiguous(rows, &dense, err);
    if (s != MEL_OK) return s;
    int64_t bytes = count * one->row_bytes;
    uint8_t *buffer = NULL;
    const void *from = mel_tensor_data(dense);
    if (one->type->quantize || one->type->dtype != mel_tensor_dtype(dense)) {
        from = buffer = mel_alloc((size_t)bytes, err);
        if (!buffer) {
            s = MEL_ENOMEM;
        } else if (!convert_rows(one, dense, count, w->quick, buffer)) {
            s = FAIL(MEL_EINVAL, "%s: tensor '%s' holds values that are not finite, which %s cannot", w->path,
                one->name, one->type->name);
        }
    }
    if (s == MEL_OK) s = put(w, from, bytes, w->base + one->offset + first * one->row_bytes, err);
    if (s == MEL_OK) one->rows_left = one->rows_left == count ? -1 : one->rows_left - count;
    mel_free(buffer);
    mel_tensor_unref(dense);
    return s;
}

// rows from `first` on; first < 0: the whole tensor as it is declared.
static mel_status write_part(
    mel_weights_writer *w, const char *name, int64_t first, const mel_tensor *tensor, mel_error *err) {
    mel_status s = check_usable(w, false, err);
    if (s == MEL_OK && !w->started) s = start(w, err);
    if (s != MEL_OK) {
        w->failed = true;
        return s;
    }
    slot key = {.name = name ? name : ""};
    slot *one = w->count ? bsearch(&key, w->slots, (size_t)w->count, sizeof key, by_name) : NULL;
    if (!one) {
        s = FAIL(MEL_EINVAL, "%s: tensor '%s' was not declared", w->path, key.name);
    } else {
        s = first < 0 ? write_slot(w, one, tensor, err) : write_rows(w, one, first, tensor, err);
    }
    w->failed = s != MEL_OK;
    return s;
}

mel_status mel_weights_writer_write(mel_weights_writer *w, const char *name, const mel_tensor *tensor, mel_error *err) {
    return write_part(w, name, -1, tensor, err);
}

mel_status mel_weights_writer_rows(
    mel_weights_writer *w, const char *name, int64_t first, const mel_tensor *rows, mel_error *err) {
    if (first < 0) return FAIL(MEL_EINVAL, "%s: tensor '%s': row %lld", w->path, name, (long long)first);
    return write_part(w, name, first, rows, err);
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
        if (w->slots[i].rows_left >= 0 && w->slots[i].bytes > 0) {
            s = FAIL(MEL_EINVAL, "%s: tensor '%s' was declared but not written", w->path, w->slots[i].name);
        }
    }
    if (s != MEL_OK) return s;
    int bad = w->end ? ftruncate(w->fd, w->end) : 0;
    if (!bad) bad = fsync(w->fd);
    int why = errno;
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
