// Tokenizers against the recorded behaviour of sentencepiece and CLIP, bad files, and every allocation failing.
#include "check.h"

#include <melies/json.h>
#include <melies/text.h>

#define GOLDEN TEST_DATA "/golden/"

static char *read_all(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    char *data = malloc(*size + 1);
    *size = fread(data, 1, *size, f);
    data[*size] = 0;
    fclose(f);
    return data;
}

static mel_json *read_json(const char *path) {
    size_t size;
    mel_json *json = NULL;
    char *text = read_all(path, &size);
    CHECK(text != NULL);
    if (text) CHECK_OK(mel_json_parse(text, size, path, &json, err));
    free(text);
    return json;
}

static bool same_ids(const mel_json_value *want, const int32_t *ids, size_t count) {
    if ((size_t)mel_json_size(want) != count) return false;
    for (size_t i = 0; i < count; i++)
        if (mel_json_integer(mel_json_at(want, (int64_t)i)) != ids[i]) return false;
    return true;
}

static bool same_text(const mel_json_value *want, const char *text, size_t size) {
    size_t length;
    const char *string = mel_json_string(want, &length);
    return !string || (length == size && !memcmp(string, text, size));
}

static void check_row(const mel_tokenizer *t, const mel_json_value *row, const char *pieces_name) {
    size_t size, count = 0, length = 0;
    int32_t *ids = NULL;
    char *text = NULL;
    const char *input = mel_json_string(mel_json_get(row, "text"), &size);
    CHECK_OK(mel_tokenizer_encode(t, input, size, &ids, &count, err));
    bool right = same_ids(mel_json_get(row, "ids"), ids, count);
    CHECK(right);
    if (!right) {
        fprintf(stderr, "  text '%s':", input);
        for (size_t i = 0; i < count; i++)
            fprintf(stderr, " %d", ids[i]);
        fprintf(stderr, "\n");
    }
    const mel_json_value *pieces = mel_json_get(row, pieces_name);
    for (size_t i = 0; pieces && right && i < count; i++) {
        const char *piece = mel_tokenizer_piece(t, ids[i], &length);
        CHECK(same_text(mel_json_at(pieces, (int64_t)i), piece, length));
    }
    CHECK_OK(mel_tokenizer_normalize(t, input, size, &text, &length, err));
    if (mel_tokenizer_kind_of(t) != MEL_TOKENIZER_HF_UNIGRAM)
        CHECK(same_text(mel_json_get(row, "normalized"), text, length));
    mel_free(text);
    CHECK_OK(mel_tokenizer_decode(t, ids, count, &text, &length, err));
    CHECK(same_text(mel_json_get(row, "decoded"), text, length));
    mel_free(text);
    mel_free(ids);
}

static void check_fixture(const char *name, const char *model, const char *merges, const char *pieces_name) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s.json", name);
    mel_json *json = read_json(path);
    mel_tokenizer *t = NULL;
    CHECK_OK(mel_tokenizer_load(model, merges, &t, err));
    if (json && t) {
        const mel_json_value *rows = mel_json_get(mel_json_root(json), "rows");
        CHECK(mel_json_size(rows) > 100);
        for (int64_t i = 0; i < mel_json_size(rows); i++)
            check_row(t, mel_json_at(rows, i), pieces_name);
        const mel_json_value *special = mel_json_get(mel_json_root(json), "special");
        static const char *const roles[] = {"unk", "bos", "eos", "pad"};
        for (int role = 0; role < 4 && special; role++)
            CHECK(
                mel_tokenizer_special(t, (mel_token_role)role) == mel_json_integer(mel_json_get(special, roles[role])));
        const mel_json_value *size = mel_json_get(mel_json_root(json), "vocab_size");
        if (size) CHECK(mel_tokenizer_size(t) == mel_json_integer(size));
    }
    mel_tokenizer_free(t);
    mel_json_free(json);
}

static void unigram_bytefallback(void) {
    check_fixture("tok_spm_unigram_bytefallback", GOLDEN "tok_spm_unigram_bytefallback.model", NULL, "pieces");
}
static void unigram_unk(void) {
    check_fixture("tok_spm_unigram_unk", GOLDEN "tok_spm_unigram_unk.model", NULL, "pieces");
}
static void unigram_identity(void) {
    check_fixture("tok_spm_unigram_identity", GOLDEN "tok_spm_unigram_identity.model", NULL, "pieces");
}
static void bpe_identity(void) {
    check_fixture("tok_spm_bpe_identity", GOLDEN "tok_spm_bpe_identity.model", NULL, "pieces");
}
static void hf_unigram(void) {
    check_fixture("tok_hf_unigram", GOLDEN "tok_hf_unigram.tokenizer.json", NULL, "pieces");
}
static void clip(void) {
    check_fixture("tok_clip", GOLDEN "tok_clip_vocab.json", GOLDEN "tok_clip_merges.txt", "tokens");
}

static void check_ids(const mel_tokenizer *t, const char *text, size_t size, const char *want) {
    int32_t *ids = NULL;
    size_t count = 0;
    char got[512] = "";
    CHECK_OK(mel_tokenizer_encode(t, text, size, &ids, &count, err));
    for (size_t i = 0; i < count; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", ids[i]);
    CHECK(!strcmp(got, want));
    if (strcmp(got, want)) fprintf(stderr, "  got '%s', wanted '%s'\n", got, want);
    mel_free(ids);
}

// One more than the recorded rows: what Python's str.lower and html.unescape do.
static void check_clip_text(const mel_tokenizer *t, const char *text, const char *want) {
    char *got = NULL;
    size_t size;
    CHECK_OK(mel_tokenizer_normalize(t, text, strlen(text), &got, &size, err));
    CHECK(got && !strcmp(got, want));
    if (got && strcmp(got, want)) fprintf(stderr, "  '%s' became '%s', wanted '%s'\n", text, got, want);
    mel_free(got);
}

static void clip_cleaning(void) {
    mel_tokenizer *t = NULL;
    CHECK_OK(mel_tokenizer_load(GOLDEN "tok_clip_vocab.json", GOLDEN "tok_clip_merges.txt", &t, err));
    if (!t) return;
    check_clip_text(t, "ΟΔΥΣΣΕΥΣ ΣΑΣ Σ ΑΣ. Α.Σ Α'Σ'Α", "οδυσσευς σας σ ας. α.ς α'σ'α");
    check_clip_text(t, "İI ǅ Ⅷ Ⓐ ẞ K", "i̇i ǆ ⅷ ⓐ ß k");
    check_clip_text(t,
        "\n a\t\xE2\x80\x83"
        "b\xC2\x85 c  ",
        "a b c");
    check_clip_text(
        t, "&amp;lt; &#65;&#x42; &eacute;&mdash;&notit; &bogus; & &#; &#x80;", "< ab é—¬it; &bogus; & &#; €");
    check_clip_text(t, "\xff\xc3", "\xEF\xBF\xBD\xEF\xBF\xBD");
    CHECK(mel_tokenizer_id(t, "a</w>", 5) == 320);
    CHECK(mel_tokenizer_id(t, "no such", 7) == -1);
    mel_tokenizer_free(t);
}

static void invalid_utf8(void) {
    mel_tokenizer *t = NULL;
    CHECK_OK(mel_tokenizer_load(GOLDEN "tok_spm_unigram_bytefallback.model", NULL, &t, err));
    if (!t) return;
    char *text = NULL;
    size_t size = 0;
    CHECK_OK(mel_tokenizer_normalize(t, "a\xff\xe2\x82z\xed\xa0\x80", 8, &text, &size, err));
    CHECK(text && !strcmp(text, "\xE2\x96\x81"
                                "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"));
    mel_free(text);
    check_ids(t, "", 0, "");
    size_t length;
    CHECK(mel_tokenizer_piece(t, -1, &length) == NULL && mel_tokenizer_piece(t, 1500, &length) == NULL);
    int32_t bad = 1500;
    CHECK_FAILS(mel_tokenizer_decode(t, &bad, 1, &text, &size, err), MEL_EINVAL, "1500");
    // A broken run of byte pieces decodes to replacement characters.
    int32_t byte = mel_tokenizer_id(t, "<0xE2>", 6);
    CHECK_OK(mel_tokenizer_decode(t, &byte, 1, &text, &size, err));
    CHECK(size == 3 && !memcmp(text, "\xEF\xBF\xBD", 3));
    mel_free(text);
    mel_tokenizer_free(t);
}

// A megabyte takes a moment, whatever it is made of.
static void long_text(void) {
    static const char *const models[][2] = {{GOLDEN "tok_spm_unigram_bytefallback.model", NULL},
        {GOLDEN "tok_spm_bpe_identity.model", NULL}, {GOLDEN "tok_hf_unigram.tokenizer.json", NULL},
        {GOLDEN "tok_clip_vocab.json", GOLDEN "tok_clip_merges.txt"}};
    static const char *const fills[] = {"a", "the quick brown fox ", "\xCE\xA3\xCC\x81", "&", "  "};
    size_t size = 1 << 20;
    char *text = malloc(size);
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        mel_tokenizer *t = NULL;
        CHECK_OK(mel_tokenizer_load(models[m][0], models[m][1], &t, err));
        for (size_t f = 0; t && f < sizeof fills / sizeof *fills; f++) {
            size_t unit = strlen(fills[f]), count = 0;
            int32_t *ids = NULL;
            for (size_t i = 0; i < size; i++)
                text[i] = fills[f][i % unit];
            double start = mel_seconds();
            CHECK_OK(mel_tokenizer_encode(t, text, size, &ids, &count, err));
            double took = mel_seconds() - start;
            CHECK(took < 20);
            if (took > 1) fprintf(stderr, "  %s on '%s': %.1f s\n", models[m][0], fills[f], took);
            mel_free(ids);
        }
        mel_tokenizer_free(t);
    }
    free(text);
}

static void cancel(void) {
    mel_tokenizer *t = NULL;
    size_t size = 100000, count;
    char *text = malloc(size);
    int32_t *ids = NULL;
    for (size_t i = 0; i < size; i++)
        text[i] = "the "[i % 4];
    static const char *const models[] = {GOLDEN "tok_spm_unigram_unk.model", GOLDEN "tok_spm_bpe_identity.model"};
    for (int i = 0; i < 2; i++) {
        CHECK_OK(mel_tokenizer_load(models[i], NULL, &t, err));
        if (!t) break;
        mel_cancel();
        CHECK_FAILS(mel_tokenizer_encode(t, text, size, &ids, &count, err), MEL_ECANCELED, "cancel");
        mel_cancel_clear();
        mel_tokenizer_free(t);
        t = NULL;
    }
    free(text);
}

static void malformed(void) {
    static const struct {
        const char *name;
        mel_status status;
        const char *says;
    } files[] = {{"spm_empty.model", MEL_EFORMAT, "empty"}, {"spm_garbage.model", MEL_EFORMAT, "protobuf"},
        {"spm_truncated.model", MEL_EFORMAT, "left"}, {"spm_len_huge.model", MEL_EFORMAT, "9223372036854775807 bytes"},
        {"spm_varint_endless.model", MEL_EFORMAT, "protobuf"}, {"tokenizer_truncated.json", MEL_EFORMAT, "line 1"},
        {"tokenizer_no_model.json", MEL_EFORMAT, "'model'"},
        {"tokenizer_model_unknown.json", MEL_EUNSUPPORTED, "model 'Quux'"}, {"no_such_file", MEL_EIO, "No such file"}};
    int64_t live = mel_mem_live();
    mel_tokenizer *t = NULL;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[512];
        snprintf(path, sizeof path, GOLDEN "malformed/%s", files[i].name);
        mel_mem_reset_peak();
        CHECK_FAILS(mel_tokenizer_load(path, NULL, &t, err), files[i].status, files[i].says);
        CHECK_FAILS(mel_tokenizer_load(path, NULL, &t, err), files[i].status, files[i].name);
        CHECK(mel_mem_peak() - live < 4 << 20);
    }
    const char *bad = GOLDEN "malformed/clip_merges_bad.txt", *vocabulary = GOLDEN "tok_clip_vocab.json";
    CHECK_FAILS(mel_tokenizer_load(vocabulary, bad, &t, err), MEL_EFORMAT, "line 2 is not two symbols");
    CHECK_FAILS(mel_tokenizer_load(vocabulary, bad, &t, err), MEL_EFORMAT, "clip_merges_bad.txt");
    CHECK_FAILS(mel_tokenizer_load(vocabulary, NULL, &t, err), MEL_EINVAL, "merges.txt");
    CHECK_FAILS(mel_tokenizer_load(GOLDEN "tok_spm_unigram_unk.model", bad, &t, err), MEL_EINVAL, "vocab.json");
    CHECK(t == NULL && mel_mem_live() == live);
}

static void refused_by_name(void) {
    static const char head[] = "{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"<unk>\",0],[\"a\",-1]]}";
    static const char *const tails[][2] = {{",\"normalizer\":{\"type\":\"NFKC\"}}", "normalizer 'NFKC'"},
        {",\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}", "pre_tokenizer 'ByteLevel'"},
        {",\"added_tokens\":[{\"id\":1,\"content\":\"a\",\"lstrip\":true}]}", "lstrip of 'a'"},
        {",\"added_tokens\":[{\"id\":7,\"content\":\"b\"}]}", "hole"},
        {",\"added_tokens\":[{\"id\":1,\"content\":\"b\"}]}", "'b' here and 'a'"},
        {",\"truncation\":{\"max_length\":3}}", "truncation"}};
    mel_tokenizer *t = NULL;
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        char text[512];
        int size = snprintf(text, sizeof text, "%s%s", head, tails[i][0]);
        mel_error err = {0};
        CHECK(mel_tokenizer_load_memory("t.json", text, (size_t)size, NULL, 0, &t, &err) != MEL_OK);
        CHECK(strstr(err.message, tails[i][1]) != NULL);
        if (!strstr(err.message, tails[i][1])) fprintf(stderr, "  message '%s'\n", err.message);
    }
    char text[512];
    int size = snprintf(text, sizeof text,
        "%s,\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Strip\",\"strip_left\":true,"
        "\"strip_right\":true},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\"-\"}]},"
        "\"added_tokens\":[{\"id\":2,\"content\":\"<x>\",\"special\":true}]}",
        head);
    CHECK_OK(mel_tokenizer_load_memory("t.json", text, (size_t)size, NULL, 0, &t, err));
    if (!t) return;
    check_ids(t, " a  <x>aa  ab\xC2\xA0", 15, "1 2 1 1 0 1 0");
    check_ids(t, "aa  ab", 6, "1 1 0 1 0");
    mel_tokenizer_free(t);
}

static void every_allocation_fails(const char *model, const char *merges) {
    static const char text[] = "The quick ΣΑΣ \xE2\x80\x94 &amp; 12 zebras\xff";
    mel_mem_trim(0);
    int64_t live = mel_mem_live();
    int failures = 0;
    for (int64_t n = 1; n < 5000; n++) {
        mel_error err = {0};
        mel_tokenizer *t = NULL;
        int32_t *ids = NULL;
        char *decoded = NULL;
        size_t count = 0, size;
        mel_mem_fail_nth(n);
        mel_status status = mel_tokenizer_load(model, merges, &t, &err);
        if (!status) status = mel_tokenizer_encode(t, text, sizeof text - 1, &ids, &count, &err);
        if (!status) status = mel_tokenizer_decode(t, ids, count, &decoded, &size, &err);
        mel_mem_fail_nth(0);
        mel_free(decoded);
        mel_free(ids);
        mel_tokenizer_free(t);
        if (mel_mem_live() != live) {
            CHECK(mel_mem_live() == live);
            fprintf(stderr, "  %s: allocation %d leaks\n", model, (int)n);
            return;
        }
        if (!status) break;
        failures++;
        CHECK(status == MEL_ENOMEM && err.message[0]);
    }
    CHECK(failures > 3 && failures < 4999);
}

static void allocation_failures(void) {
    every_allocation_fails(GOLDEN "tok_spm_unigram_unk.model", NULL);
    every_allocation_fails(GOLDEN "tok_spm_bpe_identity.model", NULL);
    every_allocation_fails(GOLDEN "tok_hf_unigram.tokenizer.json", NULL);
    every_allocation_fails(GOLDEN "tok_clip_vocab.json", GOLDEN "tok_clip_merges.txt");
}

int main(void) {
    RUN(unigram_bytefallback);
    RUN(unigram_unk);
    RUN(unigram_identity);
    RUN(bpe_identity);
    RUN(hf_unigram);
    RUN(clip);
    RUN(clip_cleaning);
    RUN(invalid_utf8);
    RUN(long_text);
    RUN(cancel);
    RUN(malformed);
    RUN(refused_by_name);
    RUN(allocation_failures);
    return CHECK_DONE();
}
