// Byte-pair segmentation of sentencepiece: symbols are characters, a pair merges where its text is a piece.
// Source: google/sentencepiece, src/bpe_model.cc.
#include "text/merge.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <string.h>

typedef struct bpe {
    const mel_tokenizer *t;
    uint32_t *cut; // by id, for unused pieces: bytes of the left part they were merged from; NULL: none unused
} bpe;

static bool look_up(void *context, const mel_symbol *left, const mel_symbol *right, double *score, int32_t *id) {
    bpe *b = context;
    uint32_t size = left->size + right->size;
    *id = size <= MEL_TRIE_KEY_MAX ? mel_trie_find(&b->t->matched, left->text, size) : -1;
    if (*id < 0) return false;
    *score = b->t->pieces[*id].score;
    if (b->cut && b->t->pieces[*id].type == MEL_PIECE_UNUSED) b->cut[*id] = left->size;
    return true;
}

// Unused pieces fall apart into what they were merged from. Depth is bounded by MEL_TRIE_KEY_MAX.
static mel_status emit(const bpe *b, const char *text, uint32_t size, bool *run, mel_buffer *ids, mel_error *err) {
    int32_t id = mel_tokenizer_find(b->t, text, size);
    if (id < 0 || b->t->pieces[id].type == MEL_PIECE_UNKNOWN)
        return mel_ids_push_unknown(b->t, text, size, run, ids, err);
    uint32_t cut = b->cut && b->t->pieces[id].type == MEL_PIECE_UNUSED ? b->cut[id] : 0;
    if (!cut || cut >= size) {
        *run = false;
        return mel_ids_push(ids, id, err);
    }
    mel_status status = emit(b, text, cut, run, ids, err);
    return status ? status : emit(b, text + cut, size - cut, run, ids, err);
}

static mel_status split(
    const mel_tokenizer *t, const char *text, size_t size, mel_symbol *symbols, size_t *count, mel_error *err) {
    *count = 0;
    for (size_t at = 0; at < size; ++*count) {
        size_t step = mel_trie_longest(&t->user_defined, text + at, size - at, NULL);
        bool frozen = step > 0;
        if (!frozen) step = mel_utf8_step(text + at, size - at);
        if (symbols) symbols[*count] = (mel_symbol){.text = text + at, .size = (uint32_t)step, .frozen = frozen};
        at += step;
    }
    if (*count > INT32_MAX) return mel_fail(err, MEL_EINVAL, "text of %zu bytes is too long", size);
    return MEL_OK;
}

mel_status mel_bpe_encode(const mel_tokenizer *t, const char *text, size_t size, mel_buffer *ids, mel_error *err) {
    if (!size) return MEL_OK;
    size_t count;
    mel_status status = split(t, text, size, NULL, &count, err);
    if (status) return status;
    mel_symbol *symbols = mel_alloc(count * sizeof *symbols, err);
    bpe b = {t, NULL};
    if (!symbols) return MEL_ENOMEM;
    if (t->has_unused && !(b.cut = mel_alloc_zero((size_t)t->size * sizeof *b.cut, err))) {
        mel_free(symbols);
        return MEL_ENOMEM;
    }
    split(t, text, size, symbols, &count, NULL);
    status = mel_merge(symbols, count, look_up, &b, err);
    bool run = false;
    for (int32_t i = 0; i >= 0 && !status; i = symbols[i].next)
        status = emit(&b, symbols[i].text, symbols[i].size, &run, ids, err);
    mel_free(b.cut);
    mel_free(symbols);
    return status;
}
