// CLIP's byte-level BPE: vocab.json (symbol to id) and merges.txt. Symbols spell bytes as printable characters, the
// last of a word with "</w>" behind it.
// Source: openai/CLIP, clip/simple_tokenizer.py (ftfy.fix_text left out).
#include "text/lower.h"
#include "text/merge.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

#define WORD_END "</w>"
#define BOS "<|startoftext|>"
#define EOS "<|endoftext|>"
// White space is one space by now. One number character is one word.
#define WORDS "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^ \\p{L}\\p{N}]+"

typedef struct merge_rule {
    uint64_t pair; // left id << 32 | right id
    int32_t rank, id;
} merge_rule;

struct mel_clip {
    mel_regex *words, *case_runs;
    merge_rule *rules; // sorted by pair
    size_t rule_count;
    int32_t inner[256], last[256]; // ids of a byte inside a word and at its end
};

// ---- reading ----------------------------------------------------------------------------------------------

// The printable character that spells a byte; bytes that are none get U+0100 and on, in their order.
static uint32_t spelling(unsigned byte) {
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173)) return byte;
    uint32_t before = byte <= 32 ? byte : byte <= 160 ? 33 + (byte - 127) : 67;
    return 0x100 + before;
}

static int byte_of(uint32_t c) {
    for (unsigned byte = 0; byte < 256; byte++)
        if (spelling(byte) == c) return (int)byte;
    return -1;
}

static mel_status read_vocabulary(
    mel_tokenizer *t, const mel_json_value *vocabulary, size_t size_bytes, mel_error *err) {
    int64_t count = mel_json_size(vocabulary);
    if (count > INT32_MAX) return mel_fail(err, MEL_EFORMAT, "too many symbols");
    size_t used = 0;
    t->bytes = mel_alloc(size_bytes, err);
    t->pieces = t->bytes ? mel_alloc_zero((size_t)count * sizeof *t->pieces, err) : NULL;
    if (!t->pieces) return MEL_ENOMEM;
    t->size = (int32_t)count;
    const mel_json_member *m = mel_json_first(vocabulary);
    for (; m; m = mel_json_next(vocabulary, m)) {
        const mel_json_value *value = mel_json_member_value(m);
        int64_t id = mel_json_integer(value);
        size_t size;
        const char *text = mel_json_key(m, &size);
        if (mel_json_typeof(value) != MEL_JSON_INTEGER || id < 0 || id >= count)
            return mel_fail(err, MEL_EFORMAT, "vocabulary: '%s' has no id of 0..%lld", text, (long long)count - 1);
        if (t->pieces[id].size) return mel_fail(err, MEL_EFORMAT, "vocabulary: id %lld twice", (long long)id);
        if (!size) return mel_fail(err, MEL_EFORMAT, "vocabulary: id %lld has an empty symbol", (long long)id);
        if (size > MEL_TRIE_KEY_MAX)
            return mel_fail(
                err, MEL_EFORMAT, "vocabulary: the symbol of id %lld is %zu bytes long", (long long)id, size);
        memcpy(t->bytes + used, text, size);
        t->pieces[id] = (mel_piece){t->bytes + used, (uint32_t)size, MEL_PIECE_NORMAL, 0, 0};
        used += size;
    }
    return mel_tokenizer_index(t, err);
}

static mel_status find_symbol(const mel_tokenizer *t, const mel_buffer *symbol, int32_t *id, mel_error *err) {
    *id = mel_trie_find(&t->matched, symbol->data, symbol->size);
    if (*id >= 0) return MEL_OK;
    return mel_fail(err, MEL_EFORMAT, "vocabulary: no symbol '%.*s'", (int)symbol->size, symbol->data);
}

static mel_status read_bytes(mel_tokenizer *t, mel_error *err) {
    mel_buffer symbol = {0};
    mel_status status = MEL_OK;
    for (unsigned byte = 0; byte < 256 && !status; byte++) {
        symbol.size = 0;
        status = mel_utf8_append(&symbol, spelling(byte), err);
        if (!status) status = find_symbol(t, &symbol, &t->clip->inner[byte], err);
        if (!status) status = mel_buffer_append(&symbol, WORD_END, 4, err);
        if (!status) status = find_symbol(t, &symbol, &t->clip->last[byte], err);
    }
    mel_buffer_finish(&symbol);
    return status;
}

static mel_status read_rule(const mel_tokenizer *t, const char *line, size_t size, int number, merge_rule *rule,
    mel_buffer *symbol, mel_error *err) {
    const char *space = memchr(line, ' ', size);
    size_t left = space ? (size_t)(space - line) : 0, right = space ? size - left - 1 : 0;
    if (!left || !right || memchr(space + 1, ' ', right))
        return mel_fail(
            err, MEL_EFORMAT, "merges: line %d is not two symbols: '%.*s'", number, size > 80 ? 80 : (int)size, line);
    int32_t a = mel_trie_find(&t->matched, line, left), b = mel_trie_find(&t->matched, space + 1, right);
    symbol->size = 0;
    mel_status status = mel_buffer_append(symbol, line, left, err);
    if (!status) status = mel_buffer_append(symbol, space + 1, right, err);
    if (status) return status;
    rule->id = mel_trie_find(&t->matched, symbol->data, symbol->size);
    if (a < 0 || b < 0 || rule->id < 0)
        return mel_fail(err, MEL_EFORMAT, "merges: line %d has symbols that are not in the vocabulary: '%.*s'", number,
            size > 80 ? 80 : (int)size, line);
    rule->pair = (uint64_t)a << 32 | (uint32_t)b;
    return MEL_OK;
}

static int compare_rules(const void *left, const void *right) {
    const merge_rule *a = left, *b = right;
    return a->pair != b->pair ? (a->pair > b->pair) - (a->pair < b->pair) : (a->rank > b->rank) - (a->rank < b->rank);
}

static mel_status read_merges(mel_tokenizer *t, const char *text, size_t size, mel_error *err) {
    mel_clip *clip = t->clip;
    size_t lines = 1;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    if (lines > INT32_MAX) return mel_fail(err, MEL_EFORMAT, "merges: too many lines");
    if (!(clip->rules = mel_alloc(lines * sizeof *clip->rules, err))) return MEL_ENOMEM;
    mel_buffer symbol = {0};
    mel_status status = MEL_OK;
    int number = 0;
    for (size_t at = 0, next; at < size && !status; at = next) {
        const char *newline = memchr(text + at, '\n', size - at);
        size_t length = newline ? (size_t)(newline - text) - at : size - at;
        next = at + length + 1;
        number++;
        if (length && text[at + length - 1] == '\r') length--;
        if (!length || (number == 1 && length >= 8 && !memcmp(text + at, "#version", 8))) continue;
        merge_rule *rule = &clip->rules[clip->rule_count];
        rule->rank = (int32_t)clip->rule_count;
        status = read_rule(t, text + at, length, number, rule, &symbol, err);
        clip->rule_count++;
    }
    mel_buffer_finish(&symbol);
    if (status) return status;
    qsort(clip->rules, clip->rule_count, sizeof *clip->rules, compare_rules);
    for (size_t i = 1; i < clip->rule_count; i++)
        if (clip->rules[i].pair == clip->rules[i - 1].pair)
            return mel_fail(err, MEL_EFORMAT, "merges: rules %d and %d are the same", clip->rules[i - 1].rank + 1,
                clip->rules[i].rank + 1);
    return MEL_OK;
}

mel_status mel_clip_load(mel_tokenizer *t, const mel_json_value *vocabulary, size_t size_bytes, const char *merges,
    size_t merges_size, mel_error *err) {
    t->kind = MEL_TOKENIZER_CLIP;
    if (!(t->clip = mel_alloc_zero(sizeof *t->clip, err))) return MEL_ENOMEM;
    mel_status status = mel_regex_compile(WORDS, sizeof WORDS - 1, MEL_REGEX_CASELESS, &t->clip->words, err);
    if (!status) status = mel_case_runs_compile(&t->clip->case_runs, err);
    if (!status) status = read_vocabulary(t, vocabulary, size_bytes, err);
    if (!status) status = read_bytes(t, err);
    if (!status) status = read_merges(t, merges, merges_size, err);
    if (status) return status;
    t->special[MEL_TOKEN_BOS] = mel_trie_find(&t->matched, BOS, sizeof BOS - 1);
    t->special[MEL_TOKEN_EOS] = mel_trie_find(&t->matched, EOS, sizeof EOS - 1);
    for (int role = MEL_TOKEN_BOS; role <= MEL_TOKEN_EOS; role++) {
        if (t->special[role] < 0)
            return mel_fail(err, MEL_EFORMAT, "vocabulary: no symbol '%s'", role == MEL_TOKEN_BOS ? BOS : EOS);
        t->pieces[t->special[role]].type = MEL_PIECE_CONTROL;
    }
    return MEL_OK;
}

void mel_clip_free(mel_clip *clip) {
    if (!clip) return;
    mel_regex_free(clip->words);
    mel_regex_free(clip->case_runs);
    mel_free(clip->rules);
    mel_free(clip);
}

// ---- text -----------------------------------------------------------------------------------------------

static void swap(mel_buffer *a, mel_buffer *b) {
    mel_buffer kept = *a;
    *a = *b;
    *b = kept;
    b->size = 0;
}

mel_status mel_clip_normalize(const mel_tokenizer *t, const char *text, size_t size, mel_buffer *out, mel_error *err) {
    mel_buffer now = {0}, next = {0};
    mel_status status = mel_utf8_append_valid(&now, text, size, err);
    for (int pass = 0; pass < 2 && !status; pass++) {
        status = mel_html_unescape(now.data, now.size, &next, err);
        swap(&now, &next);
    }
    if (!status) status = mel_collapse_spaces(now.data, now.size, &next, err);
    if (!status) status = mel_lower(t->clip->case_runs, next.data, next.size, out, err);
    mel_buffer_finish(&now);
    mel_buffer_finish(&next);
    return status;
}

static bool look_up(void *context, const mel_symbol *left, const mel_symbol *right, double *score, int32_t *id) {
    const mel_clip *clip = context;
    merge_rule key = {.pair = (uint64_t)left->id << 32 | (uint32_t)right->id};
    size_t low = 0, high = clip->rule_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (clip->rules[middle].pair < key.pair)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == clip->rule_count || clip->rules[low].pair != key.pair) return false;
    *score = -(double)clip->rules[low].rank;
    *id = clip->rules[low].id;
    return true;
}

static mel_status encode_word(
    const mel_clip *clip, const char *word, size_t size, mel_buffer *scratch, mel_buffer *ids, mel_error *err) {
    if (size > INT32_MAX) return mel_fail(err, MEL_EINVAL, "a word of %zu bytes is too long", size);
    scratch->size = 0;
    mel_status status = mel_buffer_reserve(scratch, size * sizeof(mel_symbol), err);
    if (status) return status;
    mel_symbol *symbols = (mel_symbol *)(void *)scratch->data;
    for (size_t i = 0; i < size; i++) {
        const int32_t *table = i + 1 < size ? clip->inner : clip->last;
        symbols[i] = (mel_symbol){.text = word + i, .size = 1, .id = table[(unsigned char)word[i]]};
    }
    status = mel_merge(symbols, size, look_up, (void *)(uintptr_t)clip, err);
    for (int32_t i = 0; i >= 0 && !status; i = symbols[i].next)
        status = mel_ids_push(ids, symbols[i].id, err);
    return status;
}

mel_status mel_clip_encode(const mel_tokenizer *t, const char *text, size_t size, mel_buffer *ids, mel_error *err) {
    int64_t *spans = NULL;
    size_t count = 0;
    mel_buffer scratch = {0};
    mel_status status = mel_regex_match_all(t->clip->words, text, size, 0, 0, &spans, &count, err);
    for (size_t i = 0; i < count && !status; i++) {
        const char *word = text + spans[2 * i];
        size_t length = (size_t)(spans[2 * i + 1] - spans[2 * i]);
        int32_t mark = -1;
        if (length == sizeof BOS - 1 && !memcmp(word, BOS, length)) mark = t->special[MEL_TOKEN_BOS];
        if (length == sizeof EOS - 1 && !memcmp(word, EOS, length)) mark = t->special[MEL_TOKEN_EOS];
        status = mark >= 0 ? mel_ids_push(ids, mark, err) : encode_word(t->clip, word, length, &scratch, ids, err);
    }
    mel_buffer_finish(&scratch);
    mel_free(spans);
    return status;
}

// "</w>" becomes a space, but for the last one.
mel_status mel_clip_decode(const mel_tokenizer *t, const int32_t *ids, size_t count, mel_buffer *out, mel_error *err) {
    mel_buffer bytes = {0};
    mel_status status = MEL_OK;
    for (size_t i = 0; i < count && !status; i++) {
        const mel_piece *piece = &t->pieces[ids[i]];
        if (piece->type == MEL_PIECE_CONTROL) continue;
        size_t size = piece->size;
        bool word_end = size > 4 && !memcmp(piece->text + size - 4, WORD_END, 4);
        if (word_end) size -= 4;
        for (size_t at = 0; at < size && !status;) {
            uint32_t c = 0;
            size_t length = mel_utf8_decode(piece->text + at, size - at, &c);
            int byte = length ? byte_of(c) : -1;
            char spelled = (char)byte;
            if (byte >= 0) status = mel_buffer_append(&bytes, &spelled, 1, err);
            at += length ? length : 1;
        }
        if (word_end && !status) status = mel_buffer_append(&bytes, " ", 1, err);
    }
    if (bytes.size && bytes.data[bytes.size - 1] == ' ') bytes.size--;
    if (!status) status = mel_utf8_append_valid(out, bytes.data, bytes.size, err);
    mel_buffer_finish(&bytes);
    return status;
}
