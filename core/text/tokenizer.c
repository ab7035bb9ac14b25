// Loading by content, and what every kind of tokenizer shares.
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FILE_MAX_MIB = 256
};

// ---- vocabulary ---------------------------------------------------------------------------------

typedef bool (*piece_filter)(const mel_piece *piece);

static bool is_matched(const mel_piece *p) {
    return p->type == MEL_PIECE_NORMAL || p->type == MEL_PIECE_USER_DEFINED || p->type == MEL_PIECE_UNUSED;
}
static bool is_reserved(const mel_piece *p) {
    return !is_matched(p);
}
static bool is_user_defined(const mel_piece *p) {
    return p->type == MEL_PIECE_USER_DEFINED;
}

static mel_status build(
    const mel_tokenizer *t, piece_filter wanted, mel_trie_key *keys, mel_trie *out, mel_error *err) {
    size_t count = 0;
    for (int32_t i = 0; i < t->size; i++)
        if (wanted(&t->pieces[i])) keys[count++] = (mel_trie_key){t->pieces[i].text, t->pieces[i].size, i};
    return mel_trie_build(out, keys, count, err);
}

mel_status mel_tokenizer_index(mel_tokenizer *t, mel_error *err) {
    mel_trie_key *keys = mel_alloc((size_t)t->size * sizeof *keys, err);
    if (!keys) return MEL_ENOMEM;
    mel_status status = build(t, is_matched, keys, &t->matched, err);
    if (!status) status = build(t, is_reserved, keys, &t->reserved, err);
    if (!status) status = build(t, is_user_defined, keys, &t->user_defined, err);
    mel_free(keys);
    if (status) return status;
    if (!t->matched.nodes) return mel_fail(err, MEL_EFORMAT, "no piece can match text");
    for (int32_t i = 0; i < t->size; i++) {
        if (t->pieces[i].type == MEL_PIECE_BYTE) t->byte_ids[t->pieces[i].byte] = i;
        if (t->pieces[i].type == MEL_PIECE_UNUSED) t->has_unused = true;
    }
    return MEL_OK;
}

int32_t mel_tokenizer_find(const mel_tokenizer *t, const char *piece, size_t size_bytes) {
    int32_t id = mel_trie_find(&t->reserved, piece, size_bytes);
    return id >= 0 ? id : mel_trie_find(&t->matched, piece, size_bytes);
}

mel_status mel_ids_push(mel_buffer *ids, int32_t id, mel_error *err) {
    return mel_buffer_append(ids, &id, sizeof id, err);
}

mel_status mel_ids_push_unknown(
    const mel_tokenizer *t, const char *text, size_t size_bytes, bool *run, mel_buffer *ids, mel_error *err) {
    mel_status status = MEL_OK;
    if (t->byte_fallback) {
        for (size_t i = 0; i < size_bytes && !status; i++)
            status = mel_ids_push(ids, t->byte_ids[(unsigned char)text[i]], err);
    } else if (!*run) {
        status = mel_ids_push(ids, t->special[MEL_TOKEN_UNK], err);
    }
    *run = true;
    return status;
}

// ---- loading --------------------------------------------------------------------------------------

static mel_status load_json(
    mel_tokenizer *t, const char *text, size_t size, const char *merges, size_t merges_size, mel_error *err) {
    mel_json *json;
    mel_status status = mel_json_parse(text, size, "json", &json, err);
    if (status) return status;
    const mel_json_value *root = mel_json_root(json), *model = mel_json_get(root, "model");
    mel_json_type first = mel_json_typeof(mel_json_member_value(mel_json_first(root)));
    if (mel_json_typeof(model) == MEL_JSON_OBJECT)
        status = merges ? mel_fail(err, MEL_EINVAL, "a tokenizer.json takes no merges file")
                        : mel_hf_load(t, root, size, err);
    else if (first == MEL_JSON_INTEGER && merges)
        status = mel_clip_load(t, root, size, merges, merges_size, err);
    else if (first == MEL_JSON_INTEGER)
        status = mel_fail(err, MEL_EINVAL, "a vocabulary of byte-level BPE needs its merges.txt as the second file");
    else
        status = mel_fail(err, MEL_EFORMAT, "JSON without 'model' that is not a vocabulary of ids either");
    mel_json_free(json);
    return status;
}

static mel_status load_spm(mel_tokenizer *t, const char *data, size_t size, mel_error *err) {
    if (!(t->bytes = mel_alloc(size, err))) return MEL_ENOMEM;
    memcpy(t->bytes, data, size);
    return mel_spm_load(t, t->bytes, size, err);
}

// An object with a member, or an empty one. White space alone would not tell: a sentencepiece model begins with
// 0x0A, and the next bytes are lengths.
static bool looks_like_json(const char *data, size_t size) {
    char first = 0;
    for (size_t i = 0; i < size; i++) {
        char c = data[i];
        if (c == ' ' || c == '\t' || c == '\r' || c == '\n') continue;
        if (first) return c == '"' || c == '}';
        if (c != '{') return false;
        first = c;
    }
    return first != 0;
}

mel_status mel_tokenizer_load_memory(const char *name, const void *data, size_t size_bytes, const void *merges,
    size_t merges_size_bytes, mel_tokenizer **out, mel_error *err) {
    mel_tokenizer *t = mel_alloc_zero(sizeof *t, err);
    if (!t) return MEL_ENOMEM;
    for (int role = 0; role < 4; role++)
        t->special[role] = -1;
    t->unk_surface = " \xE2\x81\x87 ";
    t->unk_surface_size = 5;
    mel_error inner = {0};
    mel_status status;
    if (!size_bytes)
        status = mel_fail(&inner, MEL_EFORMAT, "the file is empty");
    else if (looks_like_json(data, size_bytes))
        status = load_json(t, data, size_bytes, merges, merges_size_bytes, &inner);
    else if (merges)
        status = mel_fail(&inner, MEL_EINVAL, "only a vocab.json takes a merges file");
    else
        status = load_spm(t, data, size_bytes, &inner);
    if (status) {
        mel_tokenizer_free(t);
        return mel_fail(err, status, "%s: %s", name ? name : "tokenizer", inner.message);
    }
    *out = t;
    return MEL_OK;
}

static mel_status read_file(const char *path, mel_buffer *out, mel_error *err) {
    FILE *file = fopen(path, "rb");
    if (!file) return mel_fail(err, MEL_EIO, "%s: %s", path, strerror(errno));
    mel_status status = MEL_OK;
    size_t got = 1;
    while (!status && got) {
        if (out->size > (size_t)FILE_MAX_MIB << 20)
            status = mel_fail(err, MEL_EFORMAT, "%s: more than %d MiB, not a tokenizer", path, FILE_MAX_MIB);
        else if (!(status = mel_buffer_reserve(out, 1 << 16, err))) {
            got = fread(out->data + out->size, 1, 1 << 16, file);
            out->size += got;
        }
    }
    if (!status && ferror(file)) status = mel_fail(err, MEL_EIO, "%s: %s", path, strerror(errno));
    fclose(file);
    return status;
}

mel_status mel_tokenizer_load(const char *path, const char *merges_path, mel_tokenizer **out, mel_error *err) {
    mel_buffer data = {0}, merges = {0};
    mel_status status = read_file(path, &data, err);
    if (!status && merges_path) status = read_file(merges_path, &merges, err);
    if (!status) {
        const char *name = path;
        char both[512];
        if (merges_path && snprintf(both, sizeof both, "%s and %s", path, merges_path) < (int)sizeof both) name = both;
        status = mel_tokenizer_load_memory(name, data.data, data.size, merges.data, merges.size, out, err);
    }
    mel_buffer_finish(&data);
    mel_buffer_finish(&merges);
    return status;
}

void mel_tokenizer_free(mel_tokenizer *t) {
    if (!t) return;
    mel_clip_free(t->clip);
    mel_hf_free(t->hf);
    mel_trie_finish(&t->matched);
    mel_trie_finish(&t->reserved);
    mel_trie_finish(&t->user_defined);
    mel_free(t->pieces);
    mel_free(t->bytes);
    mel_free(t);
}

// ---- looking ----------------------------------------------------------------------------------------

mel_tokenizer_kind mel_tokenizer_kind_of(const mel_tokenizer *t) {
    return t->kind;
}

const char *mel_tokenizer_kind_name(mel_tokenizer_kind kind) {
    static const char *const names[] = {"spm_unigram", "spm_bpe", "hf_unigram", "clip"};
    return (unsigned)kind <= MEL_TOKENIZER_CLIP ? names[kind] : "?";
}

int32_t mel_tokenizer_size(const mel_tokenizer *t) {
    return t->size;
}

int32_t mel_tokenizer_special(const mel_tokenizer *t, mel_token_role role) {
    return (unsigned)role <= MEL_TOKEN_PAD ? t->special[role] : -1;
}

const char *mel_tokenizer_piece(const mel_tokenizer *t, int32_t id, size_t *size_bytes) {
    if (id < 0 || id >= t->size) return NULL;
    *size_bytes = t->pieces[id].size;
    return t->pieces[id].text;
}

int32_t mel_tokenizer_id(const mel_tokenizer *t, const char *piece, size_t size_bytes) {
    return mel_tokenizer_find(t, piece, size_bytes);
}

// ---- text and ids -------------------------------------------------------------------------------------

static mel_status normalize(const mel_tokenizer *t, const char *text, size_t size, mel_buffer *out, mel_error *err) {
    if (t->clip) return mel_clip_normalize(t, text, size, out, err);
    if (t->hf) return mel_hf_normalize(t, text, size, out, err);
    return mel_normalizer_run(&t->normalizer, text, size, out, err);
}

mel_status mel_tokenizer_normalize(const mel_tokenizer *t, const char *text, size_t size_bytes, char **normalized,
    size_t *normalized_size_bytes, mel_error *err) {
    mel_buffer out = {0};
    mel_status status = normalize(t, text, size_bytes, &out, err);
    if (!status) status = mel_buffer_take(&out, normalized, normalized_size_bytes, err);
    mel_buffer_finish(&out);
    return status;
}

mel_status mel_tokenizer_encode(
    const mel_tokenizer *t, const char *text, size_t size_bytes, int32_t **ids, size_t *count, mel_error *err) {
    mel_buffer normalized = {0}, out = {0};
    mel_status status;
    if (t->hf) {
        status = mel_hf_encode(t, text, size_bytes, &out, err);
    } else if (!(status = normalize(t, text, size_bytes, &normalized, err))) {
        if (t->clip)
            status = mel_clip_encode(t, normalized.data, normalized.size, &out, err);
        else if (t->kind == MEL_TOKENIZER_SPM_BPE)
            status = mel_bpe_encode(t, normalized.data, normalized.size, &out, err);
        else
            status = mel_unigram_encode(t, normalized.data, normalized.size, &out, err);
    }
    char *block;
    size_t block_size;
    if (!status && !(status = mel_buffer_take(&out, &block, &block_size, err))) {
        *ids = (int32_t *)(void *)block;
        *count = block_size / sizeof **ids;
    }
    mel_buffer_finish(&normalized);
    mel_buffer_finish(&out);
    return status;
}

mel_status mel_tokenizer_decode(
    const mel_tokenizer *t, const int32_t *ids, size_t count, char **text, size_t *text_size_bytes, mel_error *err) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= t->size)
            return mel_fail(err, MEL_EINVAL, "id %d at %zu is outside the vocabulary of %d", ids[i], i, t->size);
    mel_buffer out = {0};
    mel_status status = t->clip ? mel_clip_decode(t, ids, count, &out, err) : mel_spm_decode(t, ids, count, &out, err);
    if (!status) status = mel_buffer_take(&out, text, text_size_bytes, err);
    mel_buffer_finish(&out);
    return status;
}
