#include "text/trie.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *left, const void *right) {
    const mel_trie_key *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->size < b->size ? a->size : b->size);
    return order ? order : (a->size > b->size) - (a->size < b->size);
}

static uint32_t shared_prefix(const mel_trie_key *a, const mel_trie_key *b) {
    uint32_t n = 0, most = a->size < b->size ? a->size : b->size;
    while (n < most && a->text[n] == b->text[n])
        n++;
    return n;
}

// Keys of one node, sorted, all with the same first `depth` bytes.
typedef struct span {
    uint32_t first, end, depth;
} span;

static void fill(mel_trie_node *nodes, span *spans, const mel_trie_key *keys, uint32_t key_count) {
    uint32_t made = 1;
    spans[0] = (span){0, key_count, 0};
    nodes[0] = (mel_trie_node){0, -1, 0, 0};
    for (uint32_t i = 0; i < made; i++) {
        uint32_t k = spans[i].first, end = spans[i].end, depth = spans[i].depth;
        if (keys[k].size == depth) nodes[i].value = keys[k++].value;
        nodes[i].first = made;
        while (k < end) {
            char byte = keys[k].text[depth];
            uint32_t first = k;
            while (k < end && keys[k].text[depth] == byte)
                k++;
            spans[made] = (span){first, k, depth + 1};
            nodes[made++] = (mel_trie_node){0, -1, 0, (uint8_t)byte};
            nodes[i].children++;
        }
    }
}

mel_status mel_trie_build(mel_trie *trie, mel_trie_key *keys, size_t count, mel_error *err) {
    if (!count) {
        *trie = (mel_trie){0};
        return MEL_OK;
    }
    if (count > INT32_MAX) return mel_fail(err, MEL_EFORMAT, "%zu pieces are too many", count);
    qsort(keys, count, sizeof *keys, compare);
    uint64_t total = 1;
    for (size_t i = 0; i < count; i++) {
        if (!keys[i].size) return mel_fail(err, MEL_EFORMAT, "piece %d is empty", keys[i].value);
        if (keys[i].size > MEL_TRIE_KEY_MAX)
            return mel_fail(err, MEL_EFORMAT, "piece %d is %u bytes long, more than %d", keys[i].value, keys[i].size,
                MEL_TRIE_KEY_MAX);
        if (i && compare(&keys[i - 1], &keys[i]) == 0)
            return mel_fail(err, MEL_EFORMAT, "pieces %d and %d are both '%.*s'", keys[i - 1].value, keys[i].value,
                (int)keys[i].size, keys[i].text);
        total += keys[i].size - (i ? shared_prefix(&keys[i - 1], &keys[i]) : 0);
    }
    if (total > UINT32_MAX) return mel_fail(err, MEL_EFORMAT, "pieces hold too much text");
    mel_trie_node *nodes = mel_alloc(total * sizeof *nodes, err);
    if (!nodes) return MEL_ENOMEM;
    span *spans = mel_alloc(total * sizeof *spans, err);
    if (!spans) {
        mel_free(nodes);
        return MEL_ENOMEM;
    }
    fill(nodes, spans, keys, (uint32_t)count);
    mel_free(spans);
    *trie = (mel_trie){nodes, (uint32_t)total};
    return MEL_OK;
}

void mel_trie_finish(mel_trie *trie) {
    mel_free(trie->nodes);
    *trie = (mel_trie){0};
}

uint32_t mel_trie_step(const mel_trie *trie, uint32_t node, unsigned char byte) {
    const mel_trie_node *nodes = trie->nodes;
    uint32_t low = nodes[node].first, end = low + nodes[node].children, high = end;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (nodes[middle].byte < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && nodes[low].byte == byte ? low : 0;
}

int32_t mel_trie_find(const mel_trie *trie, const char *text, size_t size_bytes) {
    if (!trie->nodes || !size_bytes) return -1;
    uint32_t node = 0;
    for (size_t i = 0; i < size_bytes; i++)
        if (!(node = mel_trie_step(trie, node, (unsigned char)text[i]))) return -1;
    return trie->nodes[node].value;
}

size_t mel_trie_longest(const mel_trie *trie, const char *text, size_t size_bytes, int32_t *value) {
    size_t longest = 0;
    uint32_t node = 0;
    if (!trie->nodes) return 0;
    for (size_t i = 0; i < size_bytes && (node = mel_trie_step(trie, node, (unsigned char)text[i])); i++)
        if (trie->nodes[node].value >= 0) {
            longest = i + 1;
            if (value) *value = trie->nodes[node].value;
        }
    return longest;
}
