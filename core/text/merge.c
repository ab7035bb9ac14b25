// Source: google/sentencepiece, src/bpe_model.cc.
#include "text/merge.h"
#include "text/buffer.h"

typedef struct pair {
    double score;
    int32_t left, right, id;
    uint32_t size; // of both when the pair was seen: tells pairs that are no more
} pair;

typedef struct agenda {
    mel_buffer heap; // of pair, the best first
    mel_symbol *symbols;
    mel_merge_lookup lookup;
    void *context;
} agenda;

static bool goes_before(const pair *a, const pair *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static mel_status push(agenda *a, int32_t left, int32_t right, mel_error *err) {
    if (left < 0 || right < 0 || a->symbols[left].frozen || a->symbols[right].frozen) return MEL_OK;
    pair p = {.left = left, .right = right, .size = a->symbols[left].size + a->symbols[right].size};
    if (!a->lookup(a->context, &a->symbols[left], &a->symbols[right], &p.score, &p.id)) return MEL_OK;
    mel_status status = mel_buffer_append(&a->heap, &p, sizeof p, err);
    if (status) return status;
    pair *heap = (pair *)(void *)a->heap.data;
    size_t at = a->heap.size / sizeof p - 1;
    for (size_t parent; at && goes_before(&p, &heap[parent = (at - 1) / 2]); at = parent)
        heap[at] = heap[parent];
    heap[at] = p;
    return MEL_OK;
}

static pair pop(agenda *a) {
    pair *heap = (pair *)(void *)a->heap.data, top = heap[0];
    a->heap.size -= sizeof top;
    size_t count = a->heap.size / sizeof top, at = 0;
    pair last = heap[count];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && goes_before(&heap[child + 1], &heap[child])) child++;
        if (!goes_before(&heap[child], &last)) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

mel_status mel_merge(mel_symbol *symbols, size_t count, mel_merge_lookup lookup, void *context, mel_error *err) {
    agenda a = {.symbols = symbols, .lookup = lookup, .context = context};
    mel_status status = MEL_OK;
    for (size_t i = 0; i < count; i++) {
        symbols[i].prev = (int32_t)i - 1;
        symbols[i].next = i + 1 < count ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 1; i < count && !status; i++)
        status = push(&a, (int32_t)i - 1, (int32_t)i, err);
    for (size_t steps = 1; a.heap.size && !status; steps++) {
        if (steps % 4096 == 0 && (status = mel_check_cancel(err))) break;
        pair p = pop(&a);
        mel_symbol *left = &symbols[p.left], *right = &symbols[p.right];
        if (!left->size || !right->size || left->size + right->size != p.size) continue;
        left->size = p.size;
        left->id = p.id;
        left->next = right->next;
        if (right->next >= 0) symbols[right->next].prev = p.left;
        right->size = 0;
        status = push(&a, left->prev, p.left, err);
        if (!status) status = push(&a, p.left, left->next, err);
    }
    mel_buffer_finish(&a.heap);
    return status;
}
