// Unigram segmentation: Viterbi over byte positions, each piece scored alone.
// Source: google/sentencepiece, src/unigram_model.cc, EncodeOptimized. Its sums are float, its comparisons mix
// float and double; both are kept, since ties between cuts depend on them.
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <string.h>

typedef struct node { // the best path that ends at a position
    union {
        double score;
        int64_t next; // after the search: where the piece that starts here ends
    };
    int64_t start; // of its last piece; -1: none yet
    int32_t id;    // -1: unknown
} node;

static void offer(const mel_tokenizer *t, node *target, double score, int64_t start, int32_t id) {
    if (target->start >= 0 && !(score > target->score)) return;
    *target = (node){.score = t->single ? (float)score : score, .start = start, .id = id};
}

static double score_of(const mel_tokenizer *t, int32_t id, size_t length) {
    const mel_piece *piece = &t->pieces[id];
    if (piece->type != MEL_PIECE_USER_DEFINED || !t->single) return piece->score;
    return (double)((float)length * (float)t->max_score) - 0.1;
}

static mel_status search(const mel_tokenizer *t, const char *text, size_t size, node *ends, mel_error *err) {
    size_t steps = 0;
    for (size_t start = 0; start < size;) {
        if (++steps % 4096 == 0 && mel_canceled()) return mel_check_cancel(err);
        size_t step = mel_utf8_step(text + start, size - start);
        double here = ends[start].score;
        bool single_character = false;
        uint32_t at = 0;
        for (size_t i = start; i < size && (at = mel_trie_step(&t->matched, at, (unsigned char)text[i])); i++) {
            int32_t id = t->matched.nodes[at].value;
            if (id < 0 || t->pieces[id].type == MEL_PIECE_UNUSED) continue;
            size_t length = i + 1 - start;
            offer(t, &ends[i + 1], score_of(t, id, length) + here, (int64_t)start, id);
            if (length == step) single_character = true;
        }
        if (!single_character) {
            double score = t->unknown_score + here;
            offer(t, &ends[start + step], t->single ? (float)score : score, (int64_t)start, -1);
        }
        start += step;
    }
    return MEL_OK;
}

mel_status mel_unigram_encode(const mel_tokenizer *t, const char *text, size_t size, mel_buffer *ids, mel_error *err) {
    if (!size) return MEL_OK;
    if (size > SIZE_MAX / sizeof(node) - 1) return mel_fail(err, MEL_EINVAL, "text of %zu bytes is too long", size);
    node *ends = mel_alloc((size + 1) * sizeof *ends, err);
    if (!ends) return MEL_ENOMEM;
    for (size_t i = 0; i <= size; i++)
        ends[i] = (node){.score = 0, .start = -1, .id = -1};
    mel_status status = search(t, text, size, ends, err);

    for (int64_t end = (int64_t)size; end > 0 && !status; end = ends[end].start)
        ends[ends[end].start].next = end;
    bool run = false;
    for (size_t at = 0; at < size && !status;) {
        size_t end = (size_t)ends[at].next;
        int32_t id = ends[end].id;
        if (id < 0) {
            status = mel_ids_push_unknown(t, text + at, end - at, &run, ids, err);
        } else {
            status = mel_ids_push(ids, id, err);
            run = false;
        }
        at = end;
    }
    mel_free(ends);
    return status;
}
