// The handle: opening by content, looking things up, tensors, metadata values.
#include "weights/file.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// ---- opening -----------------------------------------------------------------------------------------
static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && memcmp(text + n - k, end, k) == 0;
}

static bool is_torch_name(const char *path) {
    return ends_with(path, ".pth") || ends_with(path, ".pt") || ends_with(path, ".ckpt") || ends_with(path, ".bin");
}

// Content decides. A safetensors length field has zeros at its top, which neither JSON nor a pickle has there. Where
// content says nothing the name chooses whose complaint is given.
static mel_status read_any(mel_weights *w, const mapping *m, mel_error *err) {
    const uint8_t *d = m->data;
    size_t n = m->size;
    if (n >= 4 && memcmp(d, "GGUF", 4) == 0) return mel_read_gguf(w, m, err);
    if (n >= 4 && memcmp(d, "PK\3\4", 4) == 0) return mel_read_pth(w, m, err);
    if (n >= 9 && d[7] == 0 && d[8] == '{') return mel_read_safetensors(w, m, err);
    if (n >= 4 && d[0] == 0x80 && d[1] >= 2 && d[1] <= 5 && d[2] != 0) {
        return FAIL(MEL_EUNSUPPORTED,
            "%s: is a bare pickle (PyTorch before 1.6, or none of its files); pickles run code, so it is not read",
            m->path);
    }
    size_t i = 0;
    while (i < n && i < 64 && (d[i] == ' ' || d[i] == '\n' || d[i] == '\r' || d[i] == '\t'))
        i++;
    if (i < n && d[i] == '{' && (n < 8 || d[7] != 0)) return mel_read_index(w, m, err);
    if (ends_with(m->path, ".gguf")) return mel_read_gguf(w, m, err);
    if (is_torch_name(m->path)) return mel_read_pth(w, m, err);
    if (ends_with(m->path, ".safetensors")) return mel_read_safetensors(w, m, err);
    return REFUSE("%s: is neither safetensors, GGUF nor a PyTorch zip file", m->path);
}

static mel_status open_mapping(mapping *m, mel_weights **out, mel_error *err) {
    mel_weights *w = mel_alloc_zero(sizeof *w, err);
    if (!w) {
        mel_mapping_unref(m);
        return MEL_ENOMEM;
    }
    mel_status s = mel_weights_map(w, m, err);
    if (s == MEL_OK) {
        w->path = m->path;
        s = read_any(w, m, err);
    }
    if (s == MEL_OK) s = mel_weights_sort(w, err);
    if (s == MEL_OK) s = mel_weights_sort_meta(w, err);
    if (s != MEL_OK) {
        mel_weights_close(w);
        return s;
    }
    *out = w;
    return MEL_OK;
}

mel_status mel_weights_open(const char *path, mel_weights **out, mel_error *err) {
    if (!path || !*path) return FAIL(MEL_EINVAL, "weights: the path is empty");
    mapping *m;
    mel_status s = mel_mapping_open(path, &m, err);
    return s == MEL_OK ? open_mapping(m, out, err) : s;
}

mel_status mel_weights_open_memory(
    const void *data, int64_t size_bytes, const char *name, mel_weights **out, mel_error *err) {
    if (size_bytes < 0 || !name) return FAIL(MEL_EINVAL, "weights: %lld bytes", (long long)size_bytes);
    mapping *m;
    mel_status s = mel_mapping_borrow(data, (size_t)size_bytes, name, &m, err);
    return s == MEL_OK ? open_mapping(m, out, err) : s;
}

void mel_weights_close(mel_weights *w) {
    if (!w) return;
    for (int64_t i = 0; i < w->map_count; i++)
        mel_mapping_unref(w->maps[i]);
    mel_free(w->maps);
    mel_free(w->entries);
    mel_free(w->metas);
    mel_arena_free(&w->arena);
    mel_free(w);
}

// ---- filling -------------------------------------------------------------------------------------------
mel_status mel_weights_map(mel_weights *w, mapping *m, mel_error *err) {
    if (!mel_grow((void **)&w->maps, w->map_count, &w->map_capacity, sizeof *w->maps, err)) {
        mel_mapping_unref(m);
        return MEL_ENOMEM;
    }
    w->maps[w->map_count++] = m;
    return MEL_OK;
}

mel_status mel_weights_add(mel_weights *w, const entry *e, mel_error *err) {
    if (!mel_grow((void **)&w->entries, w->count, &w->capacity, sizeof *e, err)) return MEL_ENOMEM;
    w->entries[w->count++] = *e;
    return MEL_OK;
}

mel_status mel_weights_add_meta(mel_weights *w, const meta *m, mel_error *err) {
    if (!mel_grow((void **)&w->metas, w->meta_count, &w->meta_capacity, sizeof *m, err)) return MEL_ENOMEM;
    w->metas[w->meta_count++] = *m;
    return MEL_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

mel_status mel_weights_sort(mel_weights *w, mel_error *err) {
    if (w->count > 1) qsort(w->entries, (size_t)w->count, sizeof(entry), by_name);
    for (int64_t i = 1; i < w->count; i++) {
        const char *name = w->entries[i].name;
        if (strcmp(name, w->entries[i - 1].name) != 0) continue;
        char buffer[SHOWN];
        return REFUSE("%s: two tensors are called '%s'", w->path, mel_shown(buffer, name, strlen(name)));
    }
    return MEL_OK;
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const meta *)a)->key, ((const meta *)b)->key);
}

mel_status mel_weights_sort_meta(mel_weights *w, mel_error *err) {
    if (w->meta_count > 1) qsort(w->metas, (size_t)w->meta_count, sizeof(meta), by_key);
    for (int64_t i = 1; i < w->meta_count; i++) {
        const char *key = w->metas[i].key;
        if (strcmp(key, w->metas[i - 1].key) != 0) continue;
        char buffer[SHOWN];
        return REFUSE("%s: two metadata values for the key '%s'", w->path, mel_shown(buffer, key, strlen(key)));
    }
    return MEL_OK;
}

// ---- looking -------------------------------------------------------------------------------------------
static const entry *entry_at(const mel_weights *w, int64_t index) {
    return index >= 0 && index < w->count ? &w->entries[index] : NULL;
}

const char *mel_weights_path(const mel_weights *w) {
    return w->path;
}

const char *mel_weights_format(const mel_weights *w) {
    return w->format;
}

int64_t mel_weights_count(const mel_weights *w) {
    return w->count;
}

const char *mel_weights_name(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->name : NULL;
}

int64_t mel_weights_find(const mel_weights *w, const char *name) {
    if (!name || !w->count) return -1;
    entry key = {.name = name};
    const entry *e = bsearch(&key, w->entries, (size_t)w->count, sizeof key, by_name);
    return e ? e - w->entries : -1;
}

const char *mel_weights_stored(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->type->name : NULL;
}

mel_dtype mel_weights_dtype(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->type->dtype : MEL_SAME;
}

int mel_weights_ndim(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->ndim : -1;
}

const int64_t *mel_weights_shape(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->shape : NULL;
}

int64_t mel_weights_bytes(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->bytes : -1;
}

int64_t mel_weights_offset(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->offset : -1;
}

const char *mel_weights_file(const mel_weights *w, int64_t index) {
    const entry *e = entry_at(w, index);
    return e ? e->map->path : NULL;
}

// ---- tensors -------------------------------------------------------------------------------------------
static mel_status find_entry(const mel_weights *w, const char *name, const entry **out, mel_error *err) {
    const entry *e = entry_at(w, mel_weights_find(w, name));
    if (!e) return FAIL(MEL_EINVAL, "%s: has no tensor '%s'", w->path, name ? name : "(null)");
    *out = e;
    return MEL_OK;
}

// Elements of a strided entry, dense in dst.
static void gather(const entry *e, const uint8_t *src, uint8_t *dst) {
    size_t size = (size_t)e->type->block_size;
    int64_t at[MEL_MAX_DIMS] = {0}, from = 0;
    for (int64_t done = 0; done < e->bytes; done += (int64_t)size) {
        memcpy(dst + done, src + from * (int64_t)size, size);
        for (int i = e->ndim - 1; i >= 0; i--) {
            from += e->strides[i];
            if (++at[i] < e->shape[i]) break;
            from -= at[i] * e->strides[i];
            at[i] = 0;
        }
    }
}

static mel_status wrap_view(
    const entry *e, mel_dtype dtype, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    mapping *m = (mapping *)e->map;
    atomic_fetch_add(&m->refs, 1);
    mel_status s =
        mel_tensor_wrap(dtype, ndim, shape, (void *)(m->data + e->offset), false, mel_mapping_unref, m, out, err);
    if (s != MEL_OK) mel_mapping_unref(m);
    return s;
}

// Blocks are independent, so any number of threads gives the same bytes.
static void convert(const stored_type *type, const uint8_t *src, void *dst, int64_t count) {
    int64_t step = 65536, parts = (count + step - 1) / step, wide = mel_dtype_size(type->dtype);
#pragma omp parallel for num_threads(mel_threads()) schedule(static) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        int64_t first = i * step, n = count - first < step ? count - first : step;
        type->convert(src + first / type->block * type->block_size, (uint8_t *)dst + first * wide, n);
    }
}

// The entry as its type's dtype.
static mel_status natural(const entry *e, mel_tensor **out, mel_error *err) {
    const uint8_t *src = e->map->data + e->offset;
    bool plain = !e->type->convert;
    if (plain && !e->strides && (uintptr_t)src % (uintptr_t)mel_dtype_size(e->type->dtype) == 0) {
        return wrap_view(e, e->type->dtype, e->ndim, e->shape, out, err);
    }
    mel_tensor *t;
    mel_status s = mel_tensor_create(e->type->dtype, e->ndim, e->shape, &t, err);
    if (s != MEL_OK) return s;
    uint8_t *dst = mel_tensor_data(t), *dense = NULL;
    if (e->strides && !plain) {
        dense = mel_alloc((size_t)e->bytes, err);
        if (!dense) {
            mel_tensor_unref(t);
            return MEL_ENOMEM;
        }
    }
    if (e->strides) {
        gather(e, src, plain ? dst : dense);
    } else if (plain && e->bytes) {
        memcpy(dst, src, (size_t)e->bytes);
    }
    if (!plain) convert(e->type, dense ? dense : src, dst, mel_tensor_numel(t));
    mel_free(dense);
    *out = t;
    return MEL_OK;
}

mel_status mel_weights_tensor(
    const mel_weights *w, const char *name, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    const entry *e;
    mel_status s = find_entry(w, name, &e, err);
    if (s == MEL_OK && dtype != MEL_SAME && mel_dtype_size(dtype) == 0) {
        s = FAIL(MEL_EINVAL, "%s: tensor '%s': no dtype has the number %d", w->path, name, (int)dtype);
    }
    if (s == MEL_OK) s = mel_check_cancel(err);
    mel_tensor *t;
    if (s == MEL_OK) s = natural(e, &t, err);
    if (s != MEL_OK) return s;
    if (dtype == MEL_SAME || dtype == e->type->dtype) {
        *out = t;
        return MEL_OK;
    }
    s = mel_tensor_cast(t, dtype, out, err);
    mel_tensor_unref(t);
    return s;
}

mel_status mel_weights_raw(const mel_weights *w, const char *name, mel_tensor **out, mel_error *err) {
    const entry *e;
    mel_status s = find_entry(w, name, &e, err);
    if (s != MEL_OK) return s;
    if (!e->strides) return wrap_view(e, MEL_U8, 1, &e->bytes, out, err);
    mel_tensor *t;
    s = mel_tensor_create(MEL_U8, 1, &e->bytes, &t, err);
    if (s != MEL_OK) return s;
    gather(e, e->map->data + e->offset, mel_tensor_data(t));
    *out = t;
    return MEL_OK;
}

// ---- hints ---------------------------------------------------------------------------------------------
static void advise(const mapping *m, int64_t offset, int64_t bytes, int advice) {
    if (!m->mapped || bytes <= 0) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)m->data + (uintptr_t)offset;
    uintptr_t start = first & ~(page - 1);
    madvise((void *)start, first + (uintptr_t)bytes - start, advice); // a hint: a refusal changes nothing
}

static mel_status hint(const mel_weights *w, const char *name, int advice, mel_error *err) {
    if (!name) {
        for (int64_t i = 0; i < w->map_count; i++)
            advise(w->maps[i], 0, (int64_t)w->maps[i]->size, advice);
        return MEL_OK;
    }
    const entry *e;
    mel_status s = find_entry(w, name, &e, err);
    if (s == MEL_OK) advise(e->map, e->offset, e->bytes, advice);
    return s;
}

mel_status mel_weights_prefetch(const mel_weights *w, const char *name, mel_error *err) {
    return hint(w, name, MADV_WILLNEED, err);
}

mel_status mel_weights_drop(const mel_weights *w, const char *name, mel_error *err) {
    return hint(w, name, MADV_DONTNEED, err);
}

// ---- metadata --------------------------------------------------------------------------------------------
int64_t mel_weights_meta_count(const mel_weights *w) {
    return w->meta_count;
}

const char *mel_weights_meta_key(const mel_weights *w, int64_t index) {
    return index >= 0 && index < w->meta_count ? w->metas[index].key : NULL;
}

int64_t mel_weights_meta_find(const mel_weights *w, const char *key) {
    if (!key || !w->meta_count) return -1;
    meta wanted = {.key = key};
    const meta *m = bsearch(&wanted, w->metas, (size_t)w->meta_count, sizeof wanted, by_key);
    return m ? m - w->metas : -1;
}

int64_t mel_weights_meta_length(const mel_weights *w, int64_t index) {
    return index >= 0 && index < w->meta_count ? w->metas[index].length : -1;
}

#define WHOLE(code, ctype)                                                                                             \
    case code: {                                                                                                       \
        ctype v;                                                                                                       \
        memcpy(&v, m->bytes + element * (int64_t)sizeof v, sizeof v);                                                  \
        out->integer = (int64_t)v;                                                                                     \
        out->number = (double)v;                                                                                       \
        break;                                                                                                         \
    }
#define REAL(code, ctype)                                                                                              \
    case code: {                                                                                                       \
        ctype v;                                                                                                       \
        memcpy(&v, m->bytes + element * (int64_t)sizeof v, sizeof v);                                                  \
        out->number = v;                                                                                               \
        break;                                                                                                         \
    }

mel_status mel_weights_meta_get(
    const mel_weights *w, int64_t index, int64_t element, mel_meta_value *out, mel_error *err) {
    if (index < 0 || index >= w->meta_count) {
        return FAIL(MEL_EINVAL, "%s: metadata %lld of %lld", w->path, (long long)index, (long long)w->meta_count);
    }
    const meta *m = &w->metas[index];
    int64_t length = m->length < 0 ? 1 : m->length;
    if (element < 0 || element >= length) {
        return FAIL(MEL_EINVAL, "%s: metadata '%s': element %lld of %lld", w->path, m->key, (long long)element,
            (long long)length);
    }
    *out = (mel_meta_value){.type = m->type};
    switch (m->type) {
        WHOLE(MEL_META_U8, uint8_t)
        WHOLE(MEL_META_I8, int8_t)
        WHOLE(MEL_META_U16, uint16_t)
        WHOLE(MEL_META_I16, int16_t)
        WHOLE(MEL_META_U32, uint32_t)
        WHOLE(MEL_META_I32, int32_t)
        WHOLE(MEL_META_U64, uint64_t)
        WHOLE(MEL_META_I64, int64_t)
        WHOLE(MEL_META_BOOL, uint8_t)
        REAL(MEL_META_F32, float)
        REAL(MEL_META_F64, double)
    default: // a string: where it stands, or for an array where its length field does
        out->text = m->text;
        out->length = m->text_length;
        if (m->positions) {
            const uint8_t *at = m->bytes + m->positions[element];
            memcpy(&out->length, at, 8);
            out->text = (const char *)at + 8;
        }
    }
    return MEL_OK;
}
