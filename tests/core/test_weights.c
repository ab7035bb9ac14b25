// Reading weight files: golden files, refusals, truncation, shards, types, failing allocations.
#include "../fuzz/weights_target.h"
#include "check.h"

#include <dirent.h>
#include <melies/weights.h>
#include <sys/stat.h>
#include <unistd.h>

#define GOLDEN TEST_DATA "/golden/"

static char folder[] = "/tmp/melies_weights_XXXXXX";

static const char *beside(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void put_file(const char *name, const void *data, size_t size) {
    FILE *f = fopen(beside(name), "wb");
    CHECK(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

static char *get_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    CHECK(f != NULL);
    if (!f) return NULL;
    char *data = malloc(1 << 20);
    *size = fread(data, 1, (1 << 20) - 1, f);
    fclose(f);
    return data;
}

static bool same_bits(double a, double b) {
    return a == b || (a != a && b != b);
}

// Every tensor of file equals the float32 of the expected file: rtol, atol, 0 for exact.
static void compare(const char *file, const char *expected, double rtol, double atol) {
    mel_weights *got = NULL, *want = NULL;
    CHECK_OK(mel_weights_open(file, &got, err));
    CHECK_OK(mel_weights_open(expected, &want, err));
    if (!got || !want) return;
    CHECK(mel_weights_count(got) == mel_weights_count(want));
    for (int64_t i = 0; i < mel_weights_count(want); i++) {
        const char *name = mel_weights_name(want, i);
        mel_tensor *a = NULL, *b = NULL;
        CHECK_OK(mel_weights_tensor(got, name, MEL_F32, &a, err));
        CHECK_OK(mel_weights_tensor(want, name, MEL_SAME, &b, err));
        if (!a || !b) continue;
        bool scalar = mel_weights_ndim(got, i) == 0; // the expected file holds it as [1]
        CHECK(mel_tensor_numel(a) == mel_tensor_numel(b) && (scalar || mel_tensor_ndim(a) == mel_tensor_ndim(b)));
        for (int k = 0; k < mel_tensor_ndim(a); k++)
            CHECK(mel_tensor_shape(a)[k] == mel_tensor_shape(b)[k]);
        const float *x = mel_tensor_data(a);
        mel_tensor *dense = NULL;
        CHECK_OK(mel_tensor_contiguous(b, &dense, err));
        const float *y = mel_tensor_data(dense);
        int64_t bad = 0;
        for (int64_t k = 0; k < mel_tensor_numel(b); k++)
            bad += !same_bits(x[k], y[k]) && !(fabs(x[k] - y[k]) <= atol + rtol * fabs(y[k]));
        if (bad) fprintf(stderr, "%s: %lld values of '%s' differ\n", file, (long long)bad, name);
        CHECK(bad == 0);
        mel_tensor_unref(a);
        mel_tensor_unref(b);
        mel_tensor_unref(dense);
    }
    mel_weights_close(got);
    mel_weights_close(want);
}

static void golden_safetensors(void) {
    compare(GOLDEN "st_valid.safetensors", GOLDEN "st_valid.expected.safetensors", 0, 0);
}
static void golden_gguf(void) { // the same bits, more than the fixture asks for
    compare(GOLDEN "gguf_basic.gguf", GOLDEN "gguf_basic.expected.safetensors", 0, 0);
    compare(GOLDEN "gguf_k.gguf", GOLDEN "gguf_k.expected.safetensors", 0, 0);
}
static void golden_pth(void) {
    compare(GOLDEN "pth_valid.pth", GOLDEN "pth_valid.expected.safetensors", 0, 0);
}

static void stored_types(void) {
    static const struct {
        const char *name, *stored;
        mel_dtype dtype;
    } want[] = {{"a.f32", "F32", MEL_F32}, {"b.f16", "F16", MEL_F16}, {"c.bf16", "BF16", MEL_BF16},
        {"d.f8_e4m3", "F8_E4M3", MEL_BF16}, {"e.f8_e5m2", "F8_E5M2", MEL_BF16}, {"f.f64", "F64", MEL_F32},
        {"g.i64", "I64", MEL_I64}, {"h.i32", "I32", MEL_S32}, {"i.i16", "I16", MEL_S32}, {"j.i8", "I8", MEL_S8},
        {"k.u8", "U8", MEL_U8}, {"l.bool", "BOOL", MEL_U8}};
    mel_weights *w = NULL;
    CHECK_OK(mel_weights_open(GOLDEN "st_valid.safetensors", &w, err));
    if (!w) return;
    CHECK(strcmp(mel_weights_format(w), "safetensors") == 0);
    CHECK(strstr(mel_weights_path(w), "st_valid.safetensors") != NULL);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        int64_t at = mel_weights_find(w, want[i].name);
        CHECK(at >= 0 && strcmp(mel_weights_stored(w, at), want[i].stored) == 0);
        mel_tensor *t = NULL;
        CHECK_OK(mel_weights_tensor(w, want[i].name, MEL_SAME, &t, err));
        CHECK(mel_tensor_dtype(t) == want[i].dtype && mel_weights_dtype(w, at) == want[i].dtype);
        mel_tensor_unref(t);
    }
    mel_tensor *t = NULL;
    CHECK_FAILS(mel_weights_tensor(w, "a.f33", MEL_SAME, &t, err), MEL_EINVAL, "has no tensor 'a.f33'");
    CHECK_FAILS(mel_weights_tensor(w, "a.f32", 77, &t, err), MEL_EINVAL, "77");
    CHECK(mel_weights_find(w, "a.f33") == -1 && mel_weights_find(w, NULL) == -1);
    CHECK(mel_weights_name(w, -1) == NULL && mel_weights_name(w, mel_weights_count(w)) == NULL);
    CHECK(mel_weights_bytes(w, 999) == -1 && mel_weights_shape(w, 999) == NULL && mel_weights_ndim(w, 999) == -1);
    CHECK_OK(mel_weights_prefetch(w, NULL, err));
    CHECK_OK(mel_weights_drop(w, "a.f32", err));
    CHECK_FAILS(mel_weights_drop(w, "zz", err), MEL_EINVAL, "zz");
    mel_weights_close(w);
}

// A view costs no memory of ours, is read-only, and outlives the handle.
static void zero_copy(void) {
    int64_t live = mel_mem_live();
    mel_weights *w = NULL;
    CHECK_OK(mel_weights_open(GOLDEN "st_valid.safetensors", &w, err));
    mel_tensor *t = NULL;
    int64_t before = mel_mem_live();
    CHECK_OK(mel_weights_tensor(w, "a.f32", MEL_SAME, &t, err));
    CHECK(mel_mem_live() - before < 1024 && !mel_tensor_is_writable(t));
    double first = 0, again = 0;
    CHECK_OK(mel_tensor_get(t, 0, &first, err));
    mel_weights_close(w);
    CHECK_OK(mel_tensor_get(t, 0, &again, err));
    CHECK(first == again);
    mel_tensor_unref(t);
    CHECK(mel_mem_live() == live);
}

static void gguf_metadata(void) {
    mel_weights *w = NULL;
    mel_meta_value v;
    CHECK_OK(mel_weights_open(GOLDEN "gguf_basic.gguf", &w, err));
    if (!w) return;
    CHECK(strcmp(mel_weights_format(w), "gguf") == 0);
#define META(key, element) CHECK_OK(mel_weights_meta_get(w, mel_weights_meta_find(w, key), element, &v, err))
#define META_INT(key, code, wanted)                                                                                    \
    META(key, 0);                                                                                                      \
    CHECK(v.type == (code) && v.integer == (int64_t)(wanted) && v.text == NULL)
    META_INT("test.u8", MEL_META_U8, 201);
    META_INT("test.i8", MEL_META_I8, -101);
    META_INT("test.u16", MEL_META_U16, 60001);
    META_INT("test.i16", MEL_META_I16, -30001);
    META_INT("test.u32", MEL_META_U32, 4000000001);
    META_INT("test.i32", MEL_META_I32, -2000000001);
    META_INT("test.u64", MEL_META_U64, 18000000000000000001u);
    META_INT("test.i64", MEL_META_I64, -9000000000000000001);
    META_INT("test.bool", MEL_META_BOOL, 1);
    META("test.f32", 0);
    CHECK(v.type == MEL_META_F32 && v.number == 2.5);
    META("test.f64", 0);
    CHECK(v.type == MEL_META_F64 && v.number == -3.25);
    META("test.utf8", 0);
    CHECK(v.type == MEL_META_STRING && v.length == (int64_t)strlen("naïve 猫 😀") &&
          memcmp(v.text, "naïve 猫 😀", (size_t)v.length) == 0);
    META("test.empty_string", 0);
    CHECK(v.length == 0);
    CHECK(mel_weights_meta_length(w, mel_weights_meta_find(w, "test.utf8")) == -1);
    CHECK(mel_weights_meta_length(w, mel_weights_meta_find(w, "test.arr_str")) == 4);
    CHECK(mel_weights_meta_length(w, mel_weights_meta_find(w, "test.arr_empty")) == 0);
    META("test.arr_str", 3);
    CHECK(v.length == 5 && memcmp(v.text, "delta", 5) == 0);
    META("test.arr_i32", 1);
    CHECK(v.type == MEL_META_I32 && v.integer == -2);
    META("test.arr_f32", 1);
    CHECK(v.number == -1.25);
    int64_t at = mel_weights_meta_find(w, "test.arr_i32");
    CHECK_FAILS(mel_weights_meta_get(w, at, 3, &v, err), MEL_EINVAL, "element 3 of 3");
    CHECK_FAILS(mel_weights_meta_get(w, -1, 0, &v, err), MEL_EINVAL, "metadata -1");
    CHECK(mel_weights_meta_key(w, mel_weights_meta_count(w)) == NULL);

    mel_tensor *raw = NULL;
    CHECK_OK(mel_weights_raw(w, "blk.3.q8_0.weight", &raw, err));
    CHECK(mel_tensor_dtype(raw) == MEL_U8 && mel_tensor_numel(raw) == 7 * 2 * 34);
    mel_tensor_unref(raw);
    mel_weights_close(w);
}

static void safetensors_metadata(void) {
    mel_weights *w = NULL;
    mel_meta_value v;
    CHECK_OK(mel_weights_open(GOLDEN "st_valid.safetensors", &w, err));
    if (!w) return;
    CHECK(mel_weights_meta_count(w) == 2);
    META("note", 0);
    CHECK(v.type == MEL_META_STRING && v.length == (int64_t)strlen("é \"quoted\" \\ 猫"));
    mel_weights_close(w);
}

// ---- refusals ------------------------------------------------------------------------------------------
static bool one_line(const char *text) {
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20) return false;
    }
    return true;
}

// The value of "key": "..." after at, or NULL.
static char *json_text(char *at, const char *key, char out[256]) {
    char label[32];
    snprintf(label, sizeof label, "\"%s\": \"", key);
    at = at ? strstr(at, label) : NULL;
    if (!at) return NULL;
    at += strlen(label);
    size_t n = strcspn(at, "\"");
    snprintf(out, 256, "%.*s", (int)n, at);
    return at + n;
}

static void refuse(const char *base, const char *why) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "malformed/%s", base);
    mel_weights *w = NULL;
    mel_error err = {0};
    int64_t live = mel_mem_live();
    mel_mem_reset_peak();
    mel_status s = mel_weights_open(path, &w, &err);
    const char *reason = strstr(err.message, base);
    CHECK((s == MEL_EFORMAT || s == MEL_EUNSUPPORTED) && !w);
    CHECK(reason && one_line(err.message));
    CHECK(mel_mem_peak() - live < 1 << 20 && mel_mem_live() == live);
    size_t size; // once more from a block of its exact size, where a sanitizer sees each read
    char *data = get_file(path, &size);
    uint8_t *exact = data ? realloc(data, size ? size : 1) : NULL;
    CHECK(exact && !weights_target(exact, size, base));
    free(exact);
    printf("     %s (%s)%s\n", base, why, reason ? reason + strlen(base) : err.message);
    mel_weights_close(w);
}

// Every file of malformed.json that is ours: refused with one line that names it, and little memory.
static void malformed(void) {
    size_t size;
    char *text = get_file(GOLDEN "malformed.json", &size), *at = text, file[256], why[256];
    int seen = 0;
    if (!text) return;
    text[size] = 0;
    while ((at = json_text(at, "file", file)) != NULL) {
        const char *base = strchr(file, '/') + 1;
        at = json_text(at, "why", why);
        if (strncmp(base, "st_", 3) != 0 && strncmp(base, "gguf_", 5) != 0 && strncmp(base, "pth_", 4) != 0) continue;
        refuse(base, why);
        seen++;
    }
    CHECK(seen == 84);
    free(text);
}

static void missing_files(void) {
    mel_weights *w = NULL;
    CHECK_FAILS(
        mel_weights_open("/nowhere/x.safetensors", &w, err), MEL_EIO, "/nowhere/x.safetensors: cannot be opened");
    CHECK_FAILS(mel_weights_open("", &w, err), MEL_EINVAL, "empty");
    CHECK_FAILS(mel_weights_open(folder, &w, err), MEL_EIO, "is a folder");
    CHECK_FAILS(mel_weights_open("/dev/null", &w, err), MEL_EIO, "device");
    put_file("notes.txt", "just some text, nothing else", 28);
    CHECK_FAILS(mel_weights_open(beside("notes.txt"), &w, err), MEL_EFORMAT, "neither safetensors");
    put_file("old.pth", "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.", 15);
    CHECK_FAILS(mel_weights_open(beside("old.pth"), &w, err), MEL_EUNSUPPORTED, "pickles run code");
}

// Cut at every byte: refused, or (never for safetensors, whose bytes are all claimed) valid.
static void truncation(const char *path, const char *name, bool may_open) {
    size_t size;
    char *data = get_file(path, &size);
    int64_t live = mel_mem_live();
    for (size_t n = 0; data && n < size; n++) {
        char *part = malloc(n ? n : 1); // its own block: a read past it is seen by the sanitizer
        memcpy(part, data, n);
        mel_weights *w = NULL;
        mel_error err = {0};
        mel_status s = mel_weights_open_memory(part, (int64_t)n, name, &w, &err);
        CHECK(s != MEL_OK || may_open);
        for (int64_t i = 0; w && i < mel_weights_count(w); i++) {
            mel_tensor *t = NULL;
            CHECK_OK(mel_weights_tensor(w, mel_weights_name(w, i), MEL_SAME, &t, err));
            mel_tensor_unref(t);
        }
        mel_weights_close(w);
        free(part);
    }
    CHECK(mel_mem_live() == live);
    free(data);
}

static void truncated(void) {
    truncation(GOLDEN "st_valid.safetensors", "cut.safetensors", false);
    truncation(GOLDEN "gguf_basic.gguf", "cut.gguf", true); // the padding after the last tensor may be missing
    truncation(GOLDEN "pth_valid.pth", "cut.pth", false);
}

// What fuzzing once found, and files that reach far into each reader: nothing bad happens, nothing is left.
static int replay(const char *format) {
    char path[512], name[64];
    snprintf(path, sizeof path, TEST_DATA "/fuzz/regress/%s", format);
    snprintf(name, sizeof name, "fuzz.%s", format);
    DIR *d = opendir(path);
    int files = 0;
    int64_t live = mel_mem_live();
    CHECK(d != NULL);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        size_t size;
        snprintf(path, sizeof path, TEST_DATA "/fuzz/regress/%s/%s", format, e->d_name);
        char *data = get_file(path, &size);
        uint8_t *exact = data ? realloc(data, size ? size : 1) : NULL;
        if (exact) weights_target(exact, size, name);
        free(exact);
        CHECK(mel_mem_live() == live);
        files++;
    }
    if (d) closedir(d);
    return files;
}

static void regressions(void) {
    CHECK(replay("safetensors") > 0);
    CHECK(replay("gguf") > 0);
    CHECK(replay("pth") > 0);
}

// ---- shards ------------------------------------------------------------------------------------------------
static void put_shard(const char *file, const char *name, float value) {
    mel_weights_writer *writer = NULL;
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_create(MEL_F32, 1, (int64_t[]){3}, &t, err));
    CHECK_OK(mel_tensor_fill(t, value, err));
    CHECK_OK(mel_weights_writer_create(beside(file), &writer, err));
    CHECK_OK(mel_weights_writer_metadata(writer, "format", "pt", err));
    CHECK_OK(mel_weights_writer_declare(writer, name, MEL_F32, 1, (int64_t[]){3}, err));
    CHECK_OK(mel_weights_writer_write(writer, name, t, err));
    CHECK_OK(mel_weights_writer_finish(writer, err));
    mel_weights_writer_free(writer);
    mel_tensor_unref(t);
}

static void put_index(const char *text) {
    put_file("m.safetensors.index.json", text, strlen(text));
}

static void shards(void) {
    mel_weights *w = NULL;
    mel_meta_value v;
    put_shard("m-1.safetensors", "a", 1);
    put_shard("m-2.safetensors", "b", 2);
    put_index("{\"metadata\": {\"total_size\": 24, \"x\": \"y\"},\n"
              " \"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-2.safetensors\"}}");
    CHECK_OK(mel_weights_open(beside("m.safetensors.index.json"), &w, err));
    if (!w) return;
    CHECK(mel_weights_count(w) == 2 && strcmp(mel_weights_format(w), "safetensors index") == 0);
    CHECK(strstr(mel_weights_file(w, 1), "m-2.safetensors") != NULL);
    META("total_size", 0);
    CHECK(v.integer == 24 && mel_weights_meta_count(w) == 2);
    mel_tensor *t = NULL;
    double got = 0;
    CHECK_OK(mel_weights_tensor(w, "b", MEL_SAME, &t, err));
    CHECK_OK(mel_tensor_get(t, 2, &got, err));
    CHECK(got == 2);
    mel_tensor_unref(t);
    mel_weights_close(w);

    w = NULL;
    const char *path = "m.safetensors.index.json";
    put_index("{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-3.safetensors\", \"c\": \"m-4.safetensors\"}}");
    CHECK_FAILS(
        mel_weights_open(beside(path), &w, err), MEL_EIO, "2 of 3 shards missing beside it: m-3.safetensors, m-4");
    put_index("{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"../m-2.safetensors\"}}");
    CHECK_FAILS(mel_weights_open(beside(path), &w, err), MEL_EFORMAT, "'b' does not name a file in the same folder");
    put_index("{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-1.safetensors\"}}");
    CHECK_FAILS(mel_weights_open(beside(path), &w, err), MEL_EFORMAT, "tensor 'b' is not in m-1.safetensors");
    put_index("{\"weight_map\": {\"a\": \"m-2.safetensors\", \"b\": \"m-1.safetensors\"}}");
    CHECK_FAILS(mel_weights_open(beside(path), &w, err), MEL_EFORMAT, "not where it says");
    put_index("{\"weight_map\": {\"a\": \"m-1.safetensors\", \"a\": \"m-2.safetensors\"}}");
    CHECK_FAILS(mel_weights_open(beside(path), &w, err), MEL_EFORMAT, "duplicate");
    put_index("{\"weight_map\": {}}");
    CHECK_FAILS(mel_weights_open(beside(path), &w, err), MEL_EFORMAT, "empty");
    put_index("{\"model_type\": \"t5\"}");
    CHECK_FAILS(mel_weights_open(beside(path), &w, err), MEL_EFORMAT, "no weight_map");
    CHECK_FAILS(mel_weights_open_memory("{\"weight_map\":{\"a\":\"b\"}}", 24, "x.json", &w, err), MEL_EUNSUPPORTED,
        "needs a folder");
}

// ---- hand-made files: misaligned data, types, a reshaped GGUF tensor ---------------------------------------------
static void misaligned(void) { // 8 + 65 bytes of header: f32 at an odd address is copied, not wrapped
    char file[8 + 65 + 8] = {65};
    snprintf(file + 8, 66, "%-65s", "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}");
    memcpy(file + 73, (float[]){1.5f, -2}, 8);
    mel_weights *w = NULL;
    CHECK_OK(mel_weights_open_memory(file, sizeof file, "odd.safetensors", &w, err));
    mel_tensor *t = NULL;
    CHECK_OK(mel_weights_tensor(w, "w", MEL_SAME, &t, err));
    CHECK(((float *)mel_tensor_data(t))[0] == 1.5f && ((float *)mel_tensor_data(t))[1] == -2);
    mel_tensor_unref(t);
    mel_weights_close(w);
}

static void unsigned_types(void) {
    const char *header = "{\"a\":{\"dtype\":\"U16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                         "\"b\":{\"dtype\":\"U32\",\"shape\":[1],\"data_offsets\":[4,8]},"
                         "\"c\":{\"dtype\":\"U64\",\"shape\":[2],\"data_offsets\":[8,24]}}";
    char file[512] = {0};
    uint64_t length = strlen(header);
    memcpy(file, &length, 8);
    memcpy(file + 8, header, length);
    char *data = file + 8 + length;
    memcpy(data, (uint16_t[]){65535, 1}, 4);
    memcpy(data + 4, (uint32_t[]){4294967295u}, 4);
    memcpy(data + 8, (uint64_t[]){UINT64_MAX, 5}, 16);
    mel_weights *w = NULL;
    mel_tensor *t = NULL;
    CHECK_OK(mel_weights_open_memory(file, (int64_t)(8 + length + 24), "u.safetensors", &w, err));
    CHECK_OK(mel_weights_tensor(w, "a", MEL_SAME, &t, err));
    CHECK(mel_tensor_dtype(t) == MEL_S32 && ((int32_t *)mel_tensor_data(t))[0] == 65535);
    mel_tensor_unref(t);
    CHECK_OK(mel_weights_tensor(w, "b", MEL_SAME, &t, err));
    CHECK(mel_tensor_dtype(t) == MEL_I64 && ((int64_t *)mel_tensor_data(t))[0] == 4294967295);
    mel_tensor_unref(t);
    CHECK_OK(mel_weights_tensor(w, "c", MEL_SAME, &t, err));
    CHECK(((int64_t *)mel_tensor_data(t))[0] == INT64_MAX && ((int64_t *)mel_tensor_data(t))[1] == 5);
    mel_tensor_unref(t);
    mel_weights_close(w);
}

static size_t put_u(char *at, uint64_t v, size_t bytes) {
    memcpy(at, &v, bytes);
    return bytes;
}

static size_t put_text(char *at, const char *text) {
    size_t n = put_u(at, strlen(text), 8);
    memcpy(at + n, text, strlen(text));
    return n + strlen(text);
}

static void gguf_original_shape(void) { // a 5-D weight that ComfyUI-GGUF stores flat
    _Alignas(32) char file[512] = "GGUF";
    size_t n = 4;
    n += put_u(file + n, 2, 4);
    n += put_u(file + n, 1, 8);
    n += put_u(file + n, 1, 8);
    n += put_text(file + n, "comfy.gguf.orig_shape.p.weight");
    n += put_u(file + n, 9, 4);
    n += put_u(file + n, 5, 4);
    n += put_u(file + n, 5, 8);
    for (int i = 0; i < 5; i++)
        n += put_u(file + n, (uint64_t[]){2, 3, 1, 2, 1}[i], 4);
    n += put_text(file + n, "p.weight");
    n += put_u(file + n, 1, 4);
    n += put_u(file + n, 12, 8);
    n += put_u(file + n, 0, 4);
    n += put_u(file + n, 0, 8);
    n = (n + 31) & ~(size_t)31;
    mel_weights *w = NULL;
    CHECK_OK(mel_weights_open_memory(file, (int64_t)n + 48, "c.gguf", &w, err));
    if (!w) return;
    const int64_t *shape = mel_weights_shape(w, 0);
    CHECK(mel_weights_ndim(w, 0) == 5 && shape[0] == 2 && shape[1] == 3 && shape[2] == 1 && shape[3] == 2);
    CHECK(mel_weights_offset(w, 0) == (int64_t)n);
    mel_weights_close(w);
}

// ---- failing allocations ---------------------------------------------------------------------------------------
static void failing(const char *path) {
    int64_t live = mel_mem_live();
    for (int64_t n = 1; n < 4000; n++) {
        mel_weights *w = NULL;
        mel_error err = {0};
        mel_mem_fail_nth(n);
        mel_status s = mel_weights_open(path, &w, &err);
        for (int64_t i = 0; s == MEL_OK && i < mel_weights_count(w); i++) {
            mel_tensor *t = NULL;
            s = mel_weights_tensor(w, mel_weights_name(w, i), MEL_F32, &t, &err);
            mel_tensor_unref(t);
        }
        mel_mem_fail_nth(0);
        mel_weights_close(w);
        CHECK(mel_mem_live() == live);
        if (s == MEL_OK) return;
        CHECK(s == MEL_ENOMEM && err.message[0]);
    }
    CHECK(!"it never succeeded");
}

static void failing_allocations(void) {
    failing(GOLDEN "st_valid.safetensors");
    failing(GOLDEN "gguf_basic.gguf");
    failing(GOLDEN "pth_valid.pth");
    put_index("{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-2.safetensors\"}}");
    failing(beside("m.safetensors.index.json"));
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL);
    RUN(golden_safetensors);
    RUN(golden_gguf);
    RUN(golden_pth);
    RUN(stored_types);
    RUN(zero_copy);
    RUN(gguf_metadata);
    RUN(safetensors_metadata);
    RUN(malformed);
    RUN(missing_files);
    RUN(truncated);
    RUN(regressions);
    RUN(shards);
    RUN(misaligned);
    RUN(unsigned_types);
    RUN(gguf_original_shape);
    RUN(failing_allocations);
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0);
    return CHECK_DONE();
}
