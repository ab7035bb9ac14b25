// Writing GGUF and quantising: values against ggml's reference, rows in any order and split, misuse, failing
// allocations.
#include "check.h"

#include <melies/weights.h>
#include <unistd.h>

enum {
    COLUMNS = 256 * 8,
    ROWS = 8,
    N = COLUMNS * ROWS
};

static char folder[] = "/tmp/melies_gguf_XXXXXX";

static const char *beside(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

// Blocks of 256 of very different sizes, one-sided ones, half empty ones and one of zeros; exact in any arithmetic.
static void input(float *x) {
    uint64_t s = 20240607;
    for (int i = 0; i < N; i++) {
        float v = 0, unit = 1;
        for (int k = 0; k < 4; k++) {
            s = s * 6364136223846793005u + 1442695040888963407u;
            v += (float)((int64_t)(s >> 40) - (1 << 23));
        }
        int b = i / 256;
        for (int k = 0; k < b % 7; k++)
            unit *= 0.125f;
        if (b % 17 == 3 && v < 0) v = -v;
        if (b % 13 == 5 && i % 32 < 16) v = 0;
        if (b == 40) v = 0;
        x[i] = v * 0x1p-23f * unit;
    }
}

// FNV-1a over the bits of the values that ggml's quantize_row_*_ref and dequantize_row_* give for input()
// (ggml-org/ggml d99724f2), and the relative error of its largest blocks.
static const struct {
    const char *name;
    uint64_t hash;
    double error;
} types[] = {
    {"Q4_0", 0xe429d8233eff7725u, 0.08094},
    {"Q4_1", 0x2d6cfb8304caba45u, 0.07402},
    {"Q5_0", 0x0e717cfff1a91925u, 0.04066},
    {"Q5_1", 0x279749f786852385u, 0.03617},
    {"Q8_0", 0x4b44446f6797a3e5u, 0.00500},
    {"Q2_K", 0xf6df4ea642ed7aa5u, 0.29220},
    {"Q3_K", 0x7675e88e061394a5u, 0.14500},
    {"Q4_K", 0x3c956178a51c9d75u, 0.06832},
    {"Q5_K", 0x2c1fc3b7db5bd72du, 0.03426},
    {"Q6_K", 0x63869477f45b9565u, 0.01670},
};
enum {
    TYPES = sizeof types / sizeof types[0]
};

static mel_tensor *input_tensor(void) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_create(MEL_F32, 2, (int64_t[]){ROWS, COLUMNS}, &t, err));
    input(mel_tensor_data(t));
    return t;
}

// All types in one file, rows in three parts, the last first.
static mel_status write_all(const char *path, const mel_tensor *x, bool quick, mel_error *err) {
    mel_weights_writer *w = NULL;
    mel_status s = mel_weights_writer_create_gguf(path, &w, err);
    if (s == MEL_OK) s = mel_weights_writer_metadata(w, "general.architecture", "test", err);
    if (s == MEL_OK) s = mel_weights_writer_number(w, "general.quantization_version", MEL_META_U32, 2, err);
    for (int i = 0; i < TYPES && s == MEL_OK; i++)
        s = mel_weights_writer_declare_stored(w, types[i].name, types[i].name, 2, mel_tensor_shape(x), err);
    if (s == MEL_OK) s = mel_weights_writer_declare_stored(w, "five", "BF16", 5, (int64_t[]){2, 4, 1, 2, 2}, err);
    if (s == MEL_OK) s = mel_weights_writer_declare_stored(w, "vector", "F16", 1, (int64_t[]){COLUMNS}, err);
    if (s == MEL_OK) mel_weights_writer_set_quick(w, quick);
    static const int parts[][2] = {{5, 3}, {0, 4}, {4, 1}};
    for (int k = 0; k < 3; k++) {
        mel_tensor *rows = NULL;
        if (s == MEL_OK) s = mel_tensor_slice(x, 0, parts[k][0], parts[k][1], &rows, err);
        for (int i = 0; i < TYPES && s == MEL_OK; i++)
            s = mel_weights_writer_rows(w, types[i].name, parts[k][0], rows, err);
        mel_tensor_unref(rows);
    }
    mel_tensor *part = NULL, *shaped = NULL, *row = NULL, *vector = NULL;
    if (s == MEL_OK) s = mel_tensor_slice(x, 1, 0, 4, &part, err);
    if (s == MEL_OK) s = mel_tensor_reshape(part, 5, (int64_t[]){2, 4, 1, 2, 2}, &shaped, err);
    if (s == MEL_OK) s = mel_weights_writer_rows(w, "five", 0, shaped, err);
    if (s == MEL_OK) s = mel_tensor_slice(x, 0, 0, 1, &row, err);
    if (s == MEL_OK) s = mel_tensor_reshape(row, 1, (int64_t[]){COLUMNS}, &vector, err);
    if (s == MEL_OK) s = mel_weights_writer_rows(w, "vector", 0, vector, err);
    if (s == MEL_OK) s = mel_weights_writer_finish(w, err);
    mel_tensor_unref(part);
    mel_tensor_unref(shaped);
    mel_tensor_unref(row);
    mel_tensor_unref(vector);
    mel_weights_writer_free(w);
    return s;
}

static void check_type(const mel_weights *f, const float *x, int i, bool quick) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_weights_tensor(f, types[i].name, MEL_F32, &t, err));
    if (!t) return;
    const float *y = mel_tensor_data(t);
    uint64_t hash = 14695981039346656037u;
    double wrong = 0, size = 0;
    for (int k = 0; k < N; k++) {
        uint32_t bits;
        float v = y[k] == 0 ? 0 : y[k]; // either zero
        memcpy(&bits, &v, 4);
        hash = (hash ^ bits) * 1099511628211u;
        if (k / 256 % 7 == 0) {
            wrong += (double)(y[k] - x[k]) * (double)(y[k] - x[k]);
            size += (double)x[k] * (double)x[k];
        }
    }
    if (!quick && hash != types[i].hash) fprintf(stderr, "%s: %016llx\n", types[i].name, (unsigned long long)hash);
    CHECK(quick || hash == types[i].hash);
    CHECK(sqrt(wrong / size) < types[i].error * (quick ? 1.2 : 1.001));
    mel_tensor_unref(t);
}

static void values(void) {
    mel_tensor *x = input_tensor();
    for (int quick = 0; quick < 2; quick++) {
        for (int threads = 1; threads <= 2; threads++) {
            CHECK_OK(mel_set_threads(threads, err));
            CHECK_OK(write_all(beside("all.gguf"), x, quick, err));
            mel_weights *f = NULL;
            CHECK_OK(mel_weights_open(beside("all.gguf"), &f, err));
            if (!f) continue;
            for (int i = 0; i < TYPES; i++)
                check_type(f, mel_tensor_data(x), i, quick);
            mel_weights_close(f);
        }
    }
    CHECK_OK(mel_set_threads(0, err));
    mel_tensor_unref(x);
}

static void layout(void) {
    mel_tensor *x = input_tensor(), *t = NULL;
    CHECK_OK(write_all(beside("all.gguf"), x, true, err));
    mel_weights *f = NULL;
    CHECK_OK(mel_weights_open(beside("all.gguf"), &f, err));
    int64_t five = mel_weights_find(f, "five");
    static const int64_t wanted[] = {2, 4, 1, 2, 2}; // what the reader makes of the four dimensions in the file
    CHECK(mel_weights_ndim(f, five) == 5 && memcmp(mel_weights_shape(f, five), wanted, sizeof wanted) == 0);
    CHECK(strcmp(mel_weights_stored(f, five), "BF16") == 0);
    int64_t kept = mel_weights_meta_find(f, "comfy.gguf.orig_shape.five");
    CHECK(kept >= 0 && mel_weights_meta_length(f, kept) == 5);
    mel_meta_value v = {0};
    CHECK_OK(mel_weights_meta_get(f, kept, 1, &v, err));
    CHECK(v.integer == 4);
    CHECK_OK(mel_weights_meta_get(f, mel_weights_meta_find(f, "general.architecture"), 0, &v, err));
    CHECK(v.length == 4 && memcmp(v.text, "test", 4) == 0);
    CHECK_OK(mel_weights_tensor(f, "vector", MEL_F32, &t, err));
    const float *from = mel_tensor_data(x);
    for (int i = 0; t && i < COLUMNS; i++)
        CHECK(fabsf(((float *)mel_tensor_data(t))[i] - from[i]) <= fabsf(from[i]) * 0x1p-11f + 0x1p-25f);
    for (int64_t i = 0; i < mel_weights_count(f); i++)
        CHECK(mel_weights_offset(f, i) % 32 == 0);
    mel_tensor_unref(t);
    mel_weights_close(f);
    mel_tensor_unref(x);
}

static void misuse(void) {
    mel_tensor *x = input_tensor(), *rows = NULL;
    mel_weights_writer *w = NULL;
    const int64_t odd[] = {4, 100}, *shape = mel_tensor_shape(x);
    CHECK_OK(mel_weights_writer_create(beside("a.safetensors"), &w, err));
    CHECK_FAILS(
        mel_weights_writer_declare_stored(w, "a", "Q8_0", 2, shape, err), MEL_EINVAL, "safetensors has no type");
    CHECK_FAILS(mel_weights_writer_number(w, "a", MEL_META_U32, 1, err), MEL_EINVAL, "no numbers");
    mel_weights_writer_free(w);
    CHECK_OK(mel_weights_writer_create_gguf(beside("a.gguf"), &w, err));
    CHECK_FAILS(mel_weights_writer_declare_stored(w, "a", "Q8_0", 2, odd, err), MEL_EINVAL, "no whole blocks of 32");
    CHECK_FAILS(mel_weights_writer_declare_stored(w, "a", "F8_E4M3", 2, odd, err), MEL_EUNSUPPORTED, "F8_E4M3");
    CHECK_FAILS(mel_weights_writer_declare_stored(w, "a", "Q9", 2, odd, err), MEL_EUNSUPPORTED, "Q9");
    CHECK_FAILS(mel_weights_writer_declare_stored(w, "a", "U8", 2, odd, err), MEL_EINVAL, "GGUF has no type");
    CHECK_OK(mel_weights_writer_declare_stored(w, "a", "Q4_K", 2, shape, err));
    CHECK_OK(mel_tensor_slice(x, 0, 0, 5, &rows, err));
    CHECK_OK(mel_weights_writer_rows(w, "a", 0, rows, err));
    CHECK_FAILS(mel_weights_writer_rows(w, "a", 3, rows, err), MEL_EINVAL, "written twice");
    mel_weights_writer_free(w);
    CHECK_OK(mel_weights_writer_create_gguf(beside("a.gguf"), &w, err));
    CHECK_OK(mel_weights_writer_declare_stored(w, "a", "Q4_K", 2, shape, err));
    CHECK_FAILS(mel_weights_writer_rows(w, "a", 4, rows, err), MEL_EINVAL, "from row 5 on");
    mel_weights_writer_free(w);
    CHECK_OK(mel_weights_writer_create_gguf(beside("a.gguf"), &w, err));
    CHECK_OK(mel_weights_writer_declare_stored(w, "a", "Q4_K", 2, shape, err));
    CHECK_OK(mel_weights_writer_rows(w, "a", 0, rows, err));
    CHECK_FAILS(mel_weights_writer_finish(w, err), MEL_EINVAL, "'a' was declared but not written");
    mel_weights_writer_free(w);
    ((float *)mel_tensor_data(x))[1000] = NAN;
    CHECK_OK(mel_weights_writer_create_gguf(beside("a.gguf"), &w, err));
    CHECK_OK(mel_weights_writer_declare_stored(w, "a", "Q8_0", 2, shape, err));
    CHECK_FAILS(mel_weights_writer_rows(w, "a", 0, x, err), MEL_EINVAL, "not finite");
    mel_weights_writer_free(w);
    CHECK(access(beside("a.gguf"), F_OK) != 0);
    mel_tensor_unref(rows);
    mel_tensor_unref(x);
}

static void failing_allocations(void) {
    mel_tensor *x = input_tensor();
    int64_t live = mel_mem_live();
    for (int64_t n = 1; n < 1000; n++) {
        mel_mem_fail_nth(n);
        mel_status s = write_all(beside("n.gguf"), x, true, NULL);
        mel_mem_fail_nth(0);
        CHECK(mel_mem_live() == live);
        if (s == MEL_OK) break;
        CHECK(s == MEL_ENOMEM);
        CHECK(access(beside("n.gguf"), F_OK) != 0);
    }
    CHECK(access(beside("n.gguf"), F_OK) == 0);
    mel_tensor_unref(x);
}

int main(void) {
    if (!mkdtemp(folder)) return 1;
    RUN(values);
    RUN(layout);
    RUN(misuse);
    RUN(failing_allocations);
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command) != 0) return 1;
    return CHECK_DONE();
}
