// A byte trie over many strings: prefixes of a text, and exact look-up. Nodes lie breadth first, children of a
// node together and sorted, so that a step is a binary search among at most 256.
#ifndef MELIES_TEXT_TRIE_H
#define MELIES_TEXT_TRIE_H

#include <melies/base.h>

enum {
    MEL_TRIE_KEY_MAX = 1024 // bytes; bounds the work of one step of segmentation
};

typedef struct mel_trie_key {
    const char *text;
    uint32_t size; // bytes
    int32_t value; // >= 0
} mel_trie_key;

typedef struct mel_trie_node {
    uint32_t first; // index of the first child
    int32_t value;  // -1: no key ends here
    uint16_t children;
    uint8_t byte; // leads here from the parent
} mel_trie_node;

typedef struct mel_trie {
    mel_trie_node *nodes; // NULL: no keys
    uint32_t count;
} mel_trie;

// Sorts keys in place; their texts are not kept. MEL_EFORMAT: an empty key, one twice, one longer than
// MEL_TRIE_KEY_MAX. On failure *trie is untouched.
mel_status mel_trie_build(mel_trie *trie, mel_trie_key *keys, size_t count, mel_error *err);
void mel_trie_finish(mel_trie *trie);
// The child of node (0 is the root) along byte; 0 where there is none. trie must have nodes.
uint32_t mel_trie_step(const mel_trie *trie, uint32_t node, unsigned char byte);
// Value of the whole text, or -1.
int32_t mel_trie_find(const mel_trie *trie, const char *text, size_t size_bytes);
// Length of the longest key that text starts with, 0 for none; *value may be NULL.
size_t mel_trie_longest(const mel_trie *trie, const char *text, size_t size_bytes, int32_t *value);

#endif
