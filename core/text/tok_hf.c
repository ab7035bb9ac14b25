// Hugging Face tokenizer.json with a Unigram model: reading it, and its pipeline of added tokens, normalisers and
// pre-tokenisers. What is not known here is refused by its name.
// Source: huggingface/tokenizers, src/models/unigram/model.rs, src/pre_tokenizers/metaspace.rs.
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <melies/regex.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

// Bounds on what a normaliser may do: steps, bytes that it puts in one place, growth of the text over all steps
// (NFKC makes at most 11 bytes of one).
enum {
    STEPS_MAX = 16,
    CONTENT_MAX = 64,
    GROWTH_MAX = 16,
    GROWTH_FREE = 65536
};

typedef enum step_kind {
    STEP_RULES,
    STEP_REPLACE,
    STEP_STRIP,
    STEP_PREPEND
} step_kind;

typedef struct step {
    step_kind kind;
    mel_normalizer rules; // STEP_RULES
    mel_regex *pattern;   // STEP_REPLACE
    const char *text;     // STEP_REPLACE, STEP_PREPEND: in t->bytes
    size_t size;
    bool left, right; // STEP_STRIP
} step;

typedef enum prepend {
    PREPEND_NEVER,
    PREPEND_FIRST,
    PREPEND_ALWAYS
} prepend;

struct mel_hf {
    step steps[STEPS_MAX];
    int step_count;
    bool split_spaces, metaspace, split_words;
    prepend scheme;
    mel_trie added; // texts that are ids by themselves
    size_t used;    // bytes of t->bytes
};

// ---- reading ------------------------------------------------------------------------------------------

// Decoded strings are never longer than the JSON they came from: t->bytes holds them all.
static const char *keep(mel_tokenizer *t, const char *text, size_t size) {
    char *place = t->bytes + t->hf->used;
    memcpy(place, text, size);
    t->hf->used += size;
    return place;
}

static bool is_type(const mel_json_value *object, const char *name) {
    const char *type = mel_json_string(mel_json_get(object, "type"), NULL);
    return type && !strcmp(type, name);
}

static mel_status unknown_type(const char *what, const mel_json_value *object, mel_error *err) {
    const char *type = mel_json_string(mel_json_get(object, "type"), NULL);
    if (!type) return mel_fail(err, MEL_EFORMAT, "%s has no 'type'", what);
    return mel_fail(err, MEL_EUNSUPPORTED, "%s '%s' is not supported", what, type);
}

static int base64_value(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static mel_status read_rules(mel_tokenizer *t, const mel_json_value *object, step *s, mel_error *err) {
    size_t size, made = 0;
    const char *text = mel_json_string(mel_json_get(object, "precompiled_charsmap"), &size);
    if (!text) return mel_fail(err, MEL_EFORMAT, "normalizer Precompiled: no 'precompiled_charsmap'");
    while (size && text[size - 1] == '=')
        size--;
    char *place = t->bytes + t->hf->used;
    uint32_t bits = 0;
    for (size_t i = 0; i < size; i++) {
        int value = base64_value(text[i]);
        if (value < 0) return mel_fail(err, MEL_EFORMAT, "normalizer Precompiled: byte %zu is not base64", i);
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 != 0) place[made++] = (char)(bits >> (6 - 2 * (i % 4)) & 0xFF);
    }
    t->hf->used += made;
    return mel_normalizer_set_rules(&s->rules, place, made, err);
}

static mel_status read_replace(mel_tokenizer *t, const mel_json_value *object, step *s, mel_error *err) {
    const mel_json_value *pattern = mel_json_get(object, "pattern");
    size_t size, literal_size;
    const char *regex = mel_json_string(mel_json_get(pattern, "Regex"), &size);
    const char *literal = mel_json_string(mel_json_get(pattern, "String"), &literal_size);
    const char *content = mel_json_string(mel_json_get(object, "content"), &s->size);
    if ((!regex && !literal) || !content)
        return mel_fail(err, MEL_EFORMAT, "normalizer Replace: no 'pattern' or no 'content'");
    if (s->size > CONTENT_MAX)
        return mel_fail(err, MEL_EUNSUPPORTED, "normalizer Replace: 'content' of %zu bytes is longer than %d", s->size,
            CONTENT_MAX);
    s->text = keep(t, content, s->size);
    if (regex) return mel_regex_compile(regex, size, 0, &s->pattern, err);
    mel_buffer quoted = {0};
    mel_status status = MEL_OK;
    for (size_t i = 0; i < literal_size && !status; i++) {
        if ((unsigned char)literal[i] < 0x80 && strchr("\\^$.[]|()?*+{}-#", literal[i]))
            status = mel_buffer_append(&quoted, "\\", 1, err);
        if (!status) status = mel_buffer_append(&quoted, literal + i, 1, err);
    }
    if (!status) status = mel_regex_compile(quoted.data, quoted.size, 0, &s->pattern, err);
    mel_buffer_finish(&quoted);
    return status;
}

static mel_status read_normalizer(mel_tokenizer *t, const mel_json_value *object, int depth, mel_error *err) {
    mel_hf *hf = t->hf;
    if (mel_json_typeof(object) == MEL_JSON_NULL) return MEL_OK;
    if (is_type(object, "Sequence")) {
        const mel_json_value *list = mel_json_get(object, "normalizers");
        if (depth > 8) return mel_fail(err, MEL_EFORMAT, "normalizer: a sequence in a sequence in ...");
        mel_status status = MEL_OK;
        for (int64_t i = 0; i < mel_json_size(list) && !status; i++)
            status = read_normalizer(t, mel_json_at(list, i), depth + 1, err);
        return status;
    }
    if (hf->step_count == STEPS_MAX)
        return mel_fail(err, MEL_EUNSUPPORTED, "normalizer: more than %d steps", STEPS_MAX);
    step *s = &hf->steps[hf->step_count++];
    if (is_type(object, "Precompiled")) {
        s->kind = STEP_RULES;
        return read_rules(t, object, s, err);
    }
    if (is_type(object, "Replace")) {
        s->kind = STEP_REPLACE;
        return read_replace(t, object, s, err);
    }
    if (is_type(object, "Strip")) {
        s->kind = STEP_STRIP;
        s->left = mel_json_bool(mel_json_get(object, "strip_left"));
        s->right = mel_json_bool(mel_json_get(object, "strip_right"));
        return MEL_OK;
    }
    if (is_type(object, "Prepend")) {
        const char *text = mel_json_string(mel_json_get(object, "prepend"), &s->size);
        if (!text) return mel_fail(err, MEL_EFORMAT, "normalizer Prepend: no 'prepend'");
        if (s->size > CONTENT_MAX)
            return mel_fail(
                err, MEL_EUNSUPPORTED, "normalizer Prepend: %zu bytes are more than %d", s->size, CONTENT_MAX);
        s->kind = STEP_PREPEND;
        s->text = keep(t, text, s->size);
        return MEL_OK;
    }
    return unknown_type("normalizer", object, err);
}

static mel_status read_metaspace(mel_hf *hf, const mel_json_value *object, mel_error *err) {
    const char *mark = mel_json_string(mel_json_get(object, "replacement"), NULL);
    const char *scheme = mel_json_string(mel_json_get(object, "prepend_scheme"), NULL);
    const mel_json_value *split = mel_json_get(object, "split"), *prefix = mel_json_get(object, "add_prefix_space");
    if (!mark || strcmp(mark, MEL_SPACE_MARK) != 0)
        return mel_fail(err, MEL_EUNSUPPORTED, "Metaspace: replacement '%s' is not supported", mark ? mark : "");
    if (!scheme) scheme = prefix && !mel_json_bool(prefix) ? "never" : "always";
    if (!strcmp(scheme, "always"))
        hf->scheme = PREPEND_ALWAYS;
    else if (!strcmp(scheme, "first"))
        hf->scheme = PREPEND_FIRST;
    else if (!strcmp(scheme, "never"))
        hf->scheme = PREPEND_NEVER;
    else
        return mel_fail(err, MEL_EFORMAT, "Metaspace: prepend_scheme '%s'", scheme);
    hf->metaspace = true;
    hf->split_words = !split || mel_json_bool(split);
    return MEL_OK;
}

static mel_status read_pre_tokenizer(mel_hf *hf, const mel_json_value *object, int depth, mel_error *err) {
    if (mel_json_typeof(object) == MEL_JSON_NULL) return MEL_OK;
    if (hf->metaspace) return mel_fail(err, MEL_EUNSUPPORTED, "pre_tokenizer: a step behind Metaspace");
    if (is_type(object, "Sequence")) {
        const mel_json_value *list = mel_json_get(object, "pretokenizers");
        if (depth > 8) return mel_fail(err, MEL_EFORMAT, "pre_tokenizer: a sequence in a sequence in ...");
        mel_status status = MEL_OK;
        for (int64_t i = 0; i < mel_json_size(list) && !status; i++)
            status = read_pre_tokenizer(hf, mel_json_at(list, i), depth + 1, err);
        return status;
    }
    if (is_type(object, "Metaspace")) return read_metaspace(hf, object, err);
    if (!is_type(object, "WhitespaceSplit")) return unknown_type("pre_tokenizer", object, err);
    hf->split_spaces = true;
    return MEL_OK;
}

static bool is_byte_spelling(const char *text, size_t size, uint8_t *byte) {
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return false;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        const char *digits = "0123456789ABCDEF", *digit = strchr(digits, text[i]);
        if (!text[i] || !digit) return false;
        value = value * 16 + (int)(digit - digits);
    }
    *byte = (uint8_t)value;
    return true;
}

static mel_status read_vocabulary(mel_tokenizer *t, const mel_json_value *vocabulary, mel_error *err) {
    double lowest = DBL_MAX;
    bool byte_fallback = t->byte_fallback;
    for (int32_t id = 0; id < (int32_t)mel_json_size(vocabulary); id++) {
        const mel_json_value *entry = mel_json_at(vocabulary, id), *score = mel_json_at(entry, 1);
        mel_piece *piece = &t->pieces[id];
        size_t size;
        const char *text = mel_json_string(mel_json_at(entry, 0), &size);
        if (!text || !size || size > MEL_TRIE_KEY_MAX || mel_json_size(entry) != 2 ||
            (mel_json_typeof(score) != MEL_JSON_REAL && mel_json_typeof(score) != MEL_JSON_INTEGER))
            return mel_fail(err, MEL_EFORMAT, "model.vocab: entry %d is not [piece, score]", id);
        *piece = (mel_piece){keep(t, text, size), (uint32_t)size, MEL_PIECE_NORMAL, 0, mel_json_number(score)};
        if (byte_fallback && is_byte_spelling(text, size, &piece->byte)) piece->type = MEL_PIECE_BYTE;
        lowest = fmin(lowest, piece->score);
    }
    t->unknown_score = lowest - 10.0;
    return MEL_OK;
}

// Added tokens lie in the vocabulary or continue it.
static mel_status read_added(mel_tokenizer *t, const mel_json_value *added, int32_t vocabulary_size, mel_error *err) {
    int64_t count = mel_json_size(added);
    mel_trie_key *keys = mel_alloc((size_t)count * sizeof *keys, err);
    if (!keys) return MEL_ENOMEM;
    mel_status status = MEL_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        const mel_json_value *token = mel_json_at(added, i), *id_value = mel_json_get(token, "id");
        int64_t id = mel_json_integer(id_value);
        size_t size;
        const char *text = mel_json_string(mel_json_get(token, "content"), &size);
        if (!text || !size || size > MEL_TRIE_KEY_MAX || mel_json_typeof(id_value) != MEL_JSON_INTEGER)
            status = mel_fail(err, MEL_EFORMAT, "added_tokens: entry %lld has no 'id' or 'content'", (long long)i);
        else if (id < 0 || id >= t->size)
            status = mel_fail(
                err, MEL_EFORMAT, "added_tokens: id %lld of '%s' leaves a hole in the vocabulary", (long long)id, text);
        else if (id < vocabulary_size && (t->pieces[id].size != size || memcmp(t->pieces[id].text, text, size) != 0))
            status = mel_fail(err, MEL_EFORMAT, "added_tokens: id %lld is '%s' here and '%.*s' in the vocabulary",
                (long long)id, text, (int)t->pieces[id].size, t->pieces[id].text);
        else if (id >= vocabulary_size && t->pieces[id].size)
            status = mel_fail(err, MEL_EFORMAT, "added_tokens: id %lld twice", (long long)id);
        for (int k = 0; k < 3 && !status; k++) {
            static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
            if (mel_json_bool(mel_json_get(token, flags[k])))
                status = mel_fail(err, MEL_EUNSUPPORTED, "added_tokens: %s of '%s' is not supported", flags[k], text);
        }
        if (!status && mel_json_bool(mel_json_get(token, "normalized")) && t->hf->step_count)
            status = mel_fail(err, MEL_EUNSUPPORTED, "added_tokens: 'normalized' of '%s' is not supported", text);
        if (status) break;
        mel_piece *piece = &t->pieces[id];
        if (id >= vocabulary_size)
            *piece = (mel_piece){keep(t, text, size), (uint32_t)size, MEL_PIECE_USER_DEFINED, 0, 0};
        if (mel_json_bool(mel_json_get(token, "special"))) piece->type = MEL_PIECE_CONTROL;
        keys[i] = (mel_trie_key){piece->text, piece->size, (int32_t)id};
    }
    for (int32_t id = vocabulary_size; id < t->size && !status; id++)
        if (!t->pieces[id].size) status = mel_fail(err, MEL_EFORMAT, "added_tokens: no id %d", id);
    if (!status) status = mel_trie_build(&t->hf->added, keys, (size_t)count, err);
    mel_free(keys);
    return status;
}

static int32_t count_beyond(const mel_json_value *added, int64_t size) {
    int32_t count = 0;
    for (int64_t i = 0; i < mel_json_size(added); i++)
        count += mel_json_integer(mel_json_get(mel_json_at(added, i), "id")) >= size;
    return count;
}

mel_status mel_hf_load(mel_tokenizer *t, const mel_json_value *root, size_t size_bytes, mel_error *err) {
    const mel_json_value *model = mel_json_get(root, "model"), *added = mel_json_get(root, "added_tokens");
    const mel_json_value *vocabulary = mel_json_get(model, "vocab"), *unk = mel_json_get(model, "unk_id");
    if (!is_type(model, "Unigram")) return unknown_type("model", model, err);
    int64_t size = mel_json_size(vocabulary);
    if (mel_json_typeof(vocabulary) != MEL_JSON_ARRAY || !size || size > INT32_MAX / 2)
        return mel_fail(err, MEL_EFORMAT, "model.vocab is not a list of pieces");
    if (mel_json_typeof(unk) != MEL_JSON_INTEGER || mel_json_integer(unk) < 0 || mel_json_integer(unk) >= size)
        return mel_fail(err, MEL_EFORMAT, "model.unk_id is not an id of the vocabulary");
    if (mel_json_typeof(mel_json_get(root, "truncation")) != MEL_JSON_NULL)
        return mel_fail(err, MEL_EUNSUPPORTED, "truncation is not supported: cut the ids");
    t->kind = MEL_TOKENIZER_HF_UNIGRAM;
    t->byte_fallback = mel_json_bool(mel_json_get(model, "byte_fallback"));
    t->bytes = mel_alloc(size_bytes, err);
    t->hf = t->bytes ? mel_alloc_zero(sizeof *t->hf, err) : NULL;
    if (!t->hf) return MEL_ENOMEM;
    int32_t all = (int32_t)size + count_beyond(added, size);
    if (!(t->pieces = mel_alloc_zero((size_t)all * sizeof *t->pieces, err))) return MEL_ENOMEM;
    t->size = all;
    mel_status status = read_vocabulary(t, vocabulary, err);
    if (!status) status = read_normalizer(t, mel_json_get(root, "normalizer"), 0, err);
    if (!status) status = read_pre_tokenizer(t->hf, mel_json_get(root, "pre_tokenizer"), 0, err);
    if (!status) status = read_added(t, added, (int32_t)size, err);
    if (status) return status;
    t->special[MEL_TOKEN_UNK] = (int32_t)mel_json_integer(unk);
    t->pieces[t->special[MEL_TOKEN_UNK]].type = MEL_PIECE_UNKNOWN;
    for (int i = 0; i < 256; i++)
        t->byte_ids[i] = -1;
    if ((status = mel_tokenizer_index(t, err))) return status;
    for (int i = 0; i < 256; i++)
        if (t->byte_ids[i] < 0 && t->byte_fallback)
            return mel_fail(err, MEL_EFORMAT, "byte_fallback needs a piece '<0x%02X>'", i);
    t->normalizer.add_dummy_prefix = t->hf->metaspace && t->hf->scheme != PREPEND_NEVER;
    static const struct {
        mel_token_role role;
        const char *name;
    } names[] = {{MEL_TOKEN_BOS, "<s>"}, {MEL_TOKEN_EOS, "</s>"}, {MEL_TOKEN_PAD, "<pad>"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        t->special[names[i].role] = mel_trie_find(&t->hf->added, names[i].name, strlen(names[i].name));
    return MEL_OK;
}

void mel_hf_free(mel_hf *hf) {
    if (!hf) return;
    for (int i = 0; i < hf->step_count; i++)
        mel_regex_free(hf->steps[i].pattern);
    mel_trie_finish(&hf->added);
    mel_free(hf);
}

// ---- text -------------------------------------------------------------------------------------------------

static mel_status run_replace(const step *s, const mel_buffer *in, mel_buffer *out, mel_error *err) {
    int64_t *spans = NULL;
    size_t count = 0, at = 0;
    int width = 2 * (mel_regex_groups(s->pattern) + 1);
    const char *text = in->size ? in->data : "";
    mel_status status = mel_regex_match_all(s->pattern, text, in->size, 0, 0, &spans, &count, err);
    for (size_t i = 0; i < count && !status; i++) {
        const int64_t *span = spans + i * (size_t)width;
        status = mel_buffer_append(out, text + at, (size_t)span[0] - at, err);
        if (!status) status = mel_buffer_append(out, s->text, s->size, err);
        at = (size_t)span[1];
    }
    mel_free(spans);
    return status ? status : mel_buffer_append(out, text + at, in->size - at, err);
}

// Bytes of white space at the start of text.
static size_t leading_space(const char *text, size_t size) {
    size_t at = 0;
    for (uint32_t c; at < size;) {
        size_t length = mel_utf8_decode(text + at, size - at, &c);
        if (!length || !mel_utf8_is_space(c)) break;
        at += length;
    }
    return at;
}

static size_t word_length(const char *text, size_t size) {
    size_t at = 0;
    for (uint32_t c; at < size;) {
        size_t length = mel_utf8_decode(text + at, size - at, &c);
        if (length && mel_utf8_is_space(c)) break;
        at += length ? length : 1;
    }
    return at;
}

static mel_status run_strip(const step *s, const mel_buffer *in, mel_buffer *out, mel_error *err) {
    if (!in->size) return MEL_OK;
    size_t first = s->left ? leading_space(in->data, in->size) : 0, end = in->size;
    if (s->right) {
        end = first;
        for (size_t at = first; at < in->size;) {
            size_t word = word_length(in->data + at, in->size - at);
            if (word) end = at + word;
            at += word;
            at += leading_space(in->data + at, in->size - at);
        }
    }
    return mel_buffer_append(out, in->data + first, end - first, err);
}

static mel_status run_step(const step *s, const mel_buffer *in, mel_buffer *out, mel_error *err) {
    mel_status status = MEL_OK;
    switch (s->kind) {
    case STEP_RULES: return mel_normalizer_run(&s->rules, in->data, in->size, out, err);
    case STEP_REPLACE: return run_replace(s, in, out, err);
    case STEP_STRIP: return run_strip(s, in, out, err);
    case STEP_PREPEND:
        if (in->size) status = mel_buffer_append(out, s->text, s->size, err);
        return status ? status : mel_buffer_append(out, in->data, in->size, err);
    }
    return status;
}

// Gets what is cut into pieces on its own: a word, or (id >= 0) an added token.
typedef struct sink {
    const mel_tokenizer *t;
    mel_buffer *out;
    bool as_text; // append the text instead of ids
} sink;

static mel_status take(const sink *to, const char *text, size_t size, int32_t id, mel_error *err) {
    if (to->as_text) return mel_buffer_append(to->out, text, size, err);
    if (id >= 0) return mel_ids_push(to->out, id, err);
    return mel_unigram_encode(to->t, text, size, to->out, err);
}

static mel_status take_word(
    const sink *to, const char *text, size_t size, bool first, mel_buffer *scratch, mel_error *err) {
    const mel_hf *hf = to->t->hf;
    if (!hf->metaspace) return take(to, text, size, -1, err);
    bool marked = *text == ' ' || (size >= 3 && !memcmp(text, MEL_SPACE_MARK, 3));
    bool prepend = !marked && (hf->scheme == PREPEND_ALWAYS || (hf->scheme == PREPEND_FIRST && first));
    scratch->size = 0;
    mel_status status = prepend ? mel_buffer_append(scratch, MEL_SPACE_MARK, 3, err) : MEL_OK;
    for (size_t i = 0; i < size && !status; i++)
        status = text[i] == ' ' ? mel_buffer_append(scratch, MEL_SPACE_MARK, 3, err)
                                : mel_buffer_append(scratch, text + i, 1, err);
    for (size_t at = 0, end; at < scratch->size && !status; at = end) {
        for (end = at + 1; end < scratch->size; end++)
            if (hf->split_words && scratch->size - end >= 3 && !memcmp(scratch->data + end, MEL_SPACE_MARK, 3)) break;
        status = take(to, scratch->data + at, end - at, -1, err);
    }
    return status;
}

// Text between added tokens: normalised, then cut into words.
static mel_status take_text(const sink *to, const char *text, size_t size, bool first, mel_error *err) {
    const mel_hf *hf = to->t->hf;
    mel_buffer now = {0}, next = {0};
    mel_status status = mel_utf8_append_valid(&now, text, size, err);
    for (int i = 0; i < hf->step_count && !status; i++) {
        next.size = 0;
        status = run_step(&hf->steps[i], &now, &next, err);
        if (!status && next.size > GROWTH_FREE && (next.size - GROWTH_FREE) / GROWTH_MAX > size)
            status =
                mel_fail(err, MEL_EUNSUPPORTED, "normalizer: step %d makes %zu bytes of %zu", i + 1, next.size, size);
        mel_buffer swap = now;
        now = next;
        next = swap;
    }
    size_t at = 0;
    while (at < now.size && !status) {
        if (hf->split_spaces) at += leading_space(now.data + at, now.size - at);
        size_t length = hf->split_spaces ? word_length(now.data + at, now.size - at) : now.size - at;
        if (!length) break;
        status = take_word(to, now.data + at, length, first && !at, &next, err);
        at += length;
    }
    mel_buffer_finish(&now);
    mel_buffer_finish(&next);
    return status;
}

static mel_status walk(const sink *to, const char *text, size_t size, mel_error *err) {
    mel_status status = MEL_OK;
    size_t from = 0;
    for (size_t at = 0; at < size && !status;) {
        int32_t id;
        size_t length = mel_trie_longest(&to->t->hf->added, text + at, size - at, &id);
        if (!length) {
            at++;
            continue;
        }
        if (at > from) status = take_text(to, text + from, at - from, !from, err);
        if (!status) status = take(to, text + at, length, id, err);
        from = at += length;
    }
    if (size > from && !status) status = take_text(to, text + from, size - from, !from, err);
    return status;
}

mel_status mel_hf_normalize(const mel_tokenizer *t, const char *text, size_t size, mel_buffer *out, mel_error *err) {
    return walk(&(sink){t, out, true}, text, size, err);
}

mel_status mel_hf_encode(const mel_tokenizer *t, const char *text, size_t size, mel_buffer *ids, mel_error *err) {
    return walk(&(sink){t, ids, false}, text, size, err);
}
