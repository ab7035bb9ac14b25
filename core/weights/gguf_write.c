// The header of a GGUF file, version 3 (ggml-org/ggml, docs/gguf.md): metadata, then tensors with dimensions innermost
// first, then data aligned to 32. GGUF has four dimensions at most: outer ones are merged, and the shape is kept under
// "comfy.gguf.orig_shape.NAME", where city96's loader looks for it.
#include "weights/writer.h"

#include <stdio.h>
#include <string.h>

enum {
    ALIGNMENT = 32,
    DIMS = 4
};

typedef struct bytes {
    uint8_t *data; // NULL while only counting
    int64_t size;
} bytes;

static void add(bytes *b, const void *from, int64_t size) {
    if (b->data) memcpy(b->data + b->size, from, (size_t)size);
    b->size += size;
}
static void add_u32(bytes *b, uint32_t v) {
    add(b, &v, 4);
}
static void add_u64(bytes *b, uint64_t v) {
    add(b, &v, 8);
}
static void add_text(bytes *b, const char *text) {
    size_t n = strlen(text);
    add_u64(b, n);
    add(b, text, (int64_t)n);
}

static int64_t aligned(int64_t n) {
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void add_pair(bytes *b, const pair *p) {
    add_text(b, p->key);
    add_u32(b, p->value ? MEL_META_STRING : (uint32_t)p->type);
    if (p->value) {
        add_text(b, p->value);
    } else if (p->type == MEL_META_F32) {
        float v = (float)p->number;
        add(b, &v, 4);
    } else if (p->type == MEL_META_BOOL) {
        uint8_t v = p->number != 0;
        add(b, &v, 1);
    } else {
        add_u32(b, (uint32_t)p->number);
    }
}

static void add_shape(bytes *b, const slot *s) {
    static const char begin[] = "comfy.gguf.orig_shape.";
    size_t n = strlen(s->name);
    add_u64(b, sizeof begin - 1 + n);
    add(b, begin, sizeof begin - 1);
    add(b, s->name, (int64_t)n);
    add_u32(b, 9); // an array
    add_u32(b, MEL_META_I32);
    add_u64(b, (uint64_t)s->ndim);
    for (int i = 0; i < s->ndim; i++)
        add_u32(b, (uint32_t)s->shape[i]);
}

static void add_tensor(bytes *b, const slot *s) {
    add_text(b, s->name);
    int merged = s->ndim > DIMS ? s->ndim - DIMS : 0, ndim = s->ndim > DIMS ? DIMS : s->ndim ? s->ndim : 1;
    add_u32(b, (uint32_t)ndim);
    for (int i = ndim - 1; i >= 0; i--) {
        int64_t d = s->ndim ? s->shape[merged + i] : 1;
        for (int k = 0; i == 0 && k < merged; k++)
            d *= s->shape[k];
        add_u64(b, (uint64_t)d);
    }
    add_u32(b, (uint32_t)s->type->gguf);
    add_u64(b, (uint64_t)s->offset);
}

static void fill(bytes *b, const mel_weights_writer *w) {
    int64_t shapes = 0;
    for (int64_t i = 0; i < w->count; i++)
        shapes += w->slots[i].ndim > DIMS;
    add(b, "GGUF", 4);
    add_u32(b, 3);
    add_u64(b, (uint64_t)w->count);
    add_u64(b, (uint64_t)(w->pair_count + shapes));
    for (int64_t i = 0; i < w->pair_count; i++)
        add_pair(b, &w->pairs[i]);
    for (int64_t i = 0; i < w->count; i++) {
        if (w->slots[i].ndim > DIMS) add_shape(b, &w->slots[i]);
    }
    for (int64_t i = 0; i < w->count; i++)
        add_tensor(b, &w->slots[i]);
    b->size = aligned(b->size);
}

mel_status mel_gguf_header(mel_weights_writer *w, uint8_t **out, int64_t *size, mel_error *err) {
    int64_t at = 0;
    for (int64_t i = 0; i < w->count; i++) {
        w->slots[i].offset = at;
        if (__builtin_add_overflow(at, w->slots[i].bytes, &at) || at > INT64_MAX - ALIGNMENT)
            return FAIL(MEL_EINVAL, "%s: the tensors take more than 2^63 bytes", w->path);
        at = aligned(at);
    }
    bytes b = {0};
    fill(&b, w);
    b.data = mel_alloc_zero((size_t)b.size, err);
    if (!b.data) return MEL_ENOMEM;
    *size = b.size;
    w->end = b.size + at;
    b.size = 0;
    fill(&b, w);
    *out = b.data;
    return MEL_OK;
}
