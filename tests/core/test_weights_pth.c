// Hand-made .pth files: nesting, protocols, views, zip64, and what must be refused.
#include "check.h"

#include <melies/weights.h>

// ---- a zip container in memory ------------------------------------------------------------------------
typedef struct zip {
    char bytes[8192], directory[2048];
    size_t size, directory_size;
    int records;
    bool zip64;
    uint16_t method;
} zip;

static void put(char *to, size_t *at, uint64_t value, size_t bytes) {
    memcpy(to + *at, &value, bytes);
    *at += bytes;
}

static void zip_add(zip *z, const char *name, const void *data, size_t size) {
    size_t local = z->size, n = strlen(name);
    put(z->bytes, &z->size, 0x04034b50, 4);
    memset(z->bytes + z->size, 0, 22);
    z->size += 22;
    put(z->bytes, &z->size, n, 2);
    put(z->bytes, &z->size, 0, 2);
    memcpy(z->bytes + z->size, name, n);
    z->size += n;
    memcpy(z->bytes + z->size, data, size);
    z->size += size;

    char *d = z->directory;
    size_t *at = &z->directory_size;
    put(d, at, 0x02014b50, 4);
    put(d, at, 0, 6);
    put(d, at, z->method, 2);
    put(d, at, 0, 8);
    put(d, at, z->zip64 ? 0xffffffff : size, 4);
    put(d, at, z->zip64 ? 0xffffffff : size, 4);
    put(d, at, n, 2);
    put(d, at, z->zip64 ? 28 : 0, 2);
    put(d, at, 0, 2);
    put(d, at, 0, 8);
    put(d, at, z->zip64 ? 0xffffffff : local, 4);
    memcpy(d + *at, name, n);
    *at += n;
    if (z->zip64) {
        put(d, at, 1 | 24 << 16, 4);
        put(d, at, size, 8);
        put(d, at, size, 8);
        put(d, at, local, 8);
    }
    z->records++;
}

static void zip_end(zip *z) {
    size_t start = z->size, end64, *at = &z->size;
    char *b = z->bytes;
    memcpy(b + start, z->directory, z->directory_size);
    *at += z->directory_size;
    if (z->zip64) {
        end64 = *at;
        put(b, at, 0x06064b50, 4);
        put(b, at, 44, 8);
        put(b, at, 0, 8);
        put(b, at, 0, 4);
        put(b, at, (uint64_t)z->records, 8);
        put(b, at, (uint64_t)z->records, 8);
        put(b, at, z->directory_size, 8);
        put(b, at, start, 8);
        put(b, at, 0x07064b50, 4);
        put(b, at, 0, 4);
        put(b, at, end64, 8);
        put(b, at, 1, 4);
    }
    put(b, at, 0x06054b50, 4);
    put(b, at, 0, 4);
    put(b, at, z->zip64 ? 0xffff : (uint64_t)z->records, 2);
    put(b, at, z->zip64 ? 0xffff : (uint64_t)z->records, 2);
    put(b, at, z->zip64 ? 0xffffffff : z->directory_size, 4);
    put(b, at, z->zip64 ? 0xffffffff : start, 4);
    put(b, at, 0, 2);
}

// ---- pickles: storage '0' holds the floats 0 to 5 ---------------------------------------------------------
#define STORAGE(class, count)                                                                                          \
    "(\x8c\x07storagectorch\n" class "\n\x8c\x01"                                                                      \
                                     "0\x8c\x03"                                                                       \
                                     "cpuK" count "tQ"
#define TENSOR_OF(storage, offset, shape, strides)                                                                     \
    "ctorch._utils\n_rebuild_tensor_v2\n(" storage "K" offset "(" shape "t(" strides "t\x89}tR"
#define TENSOR(offset, shape, strides) TENSOR_OF(STORAGE("FloatStorage", "\x06"), offset, shape, strides)
#define NAME1 "\x8c\x01"

static const float floats[6] = {0, 1, 2, 3, 4, 5};

static mel_status open_zip(zip *z, const char *pickle, size_t size, mel_weights **w, mel_error *err) {
    zip_add(z, "a/data.pkl", pickle, size);
    zip_add(z, "a/data/0", floats, sizeof floats);
    zip_end(z);
    return mel_weights_open_memory(z->bytes, (int64_t)z->size, "t.pth", w, err);
}

static zip z;
#define OPEN(pickle, w) (z = (zip){0}, open_zip(&z, pickle, sizeof(pickle) - 1, w, err))
#define REFUSED(pickle, status, text)                                                                                  \
    do {                                                                                                               \
        mel_weights *w_ = NULL;                                                                                        \
        int64_t live_ = mel_mem_live();                                                                                \
        CHECK_FAILS(OPEN(pickle, &w_), status, text);                                                                  \
        CHECK(mel_mem_live() == live_);                                                                                \
    } while (0)

static void check_values(mel_weights *w, const char *name, int count, const float *want) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_weights_tensor(w, name, MEL_SAME, &t, err));
    CHECK(t && mel_tensor_numel(t) == count && memcmp(mel_tensor_data(t), want, (size_t)count * 4) == 0);
    mel_tensor_unref(t);
}

static void nested(void) {
    mel_weights *w = NULL;
    CHECK_OK(
        OPEN("\x80\x02}(\x8c\x05"
             "epochK\x07\x8c\x05state"
             "ccollections\nOrderedDict\n)R(" NAME1 "w"
             "ctorch._utils\n_rebuild_parameter\n(" TENSOR("\0", "K\x02K\x03", "K\x03K\x01") "\x88}tR" NAME1 "v" TENSOR(
                 "\1", "K\x02", "K\x02") "u}\x8c\x09_metadataNsb\x8c\x04list](" TENSOR("\0", "",
                 "") "Ne\x8c\x02lrG\0\0\0\0\0\0\0\0\x8c\x01"
                     "5N\x8c\x03"
                     "big\x8a\x02\xff\x7fu.",
            &w));
    if (!w) return;
    CHECK(mel_weights_count(w) == 3);
    check_values(w, "state.w", 6, floats);
    check_values(w, "state.v", 2, (float[]){1, 3});
    check_values(w, "list.0", 1, floats);
    mel_tensor *raw = NULL;
    CHECK_OK(mel_weights_raw(w, "state.v", &raw, err));
    CHECK(mel_tensor_numel(raw) == 8 && ((float *)mel_tensor_data(raw))[1] == 3);
    mel_tensor_unref(raw);
    mel_weights_close(w);
}

static void protocol_4(void) { // FRAME, MEMOIZE, STACK_GLOBAL, memo reads
    mel_weights *w = NULL;
    CHECK_OK(OPEN("\x80\x04\x95\x99\0\0\0\0\0\0\0}\x94(" NAME1 "a\x94\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2"
                  "\x94\x93\x94(" STORAGE("FloatStorage", "\x06") "K\0K\x06\x85K\x01\x85\x89}tR\x94" NAME1 "bh\x05u.",
        &w));
    if (!w) return;
    check_values(w, "a", 6, floats);
    check_values(w, "b", 6, floats);
    mel_weights_close(w);
}

static void zip_64(void) {
    static const char pickle[] = "\x80\x02}" NAME1 "a" TENSOR("\2", "K\x04", "K\x01") "s.";
    mel_weights *w = NULL;
    z = (zip){.zip64 = true};
    CHECK_OK(open_zip(&z, pickle, sizeof pickle - 1, &w, err));
    if (!w) return;
    check_values(w, "a", 4, floats + 2);
    mel_weights_close(w);
}

static void bare_tensor(void) {
    mel_weights *w = NULL;
    CHECK_OK(OPEN("\x80\x02" TENSOR("\0", "K\x06", "K\x01") ".", &w));
    if (!w) return;
    check_values(w, "tensor", 6, floats);
    mel_weights_close(w);
}

static void converted_view(void) { // strided and of a type that is converted: F64
    static const double doubles[4] = {1, 2, 3, 4};
    static const char pickle[] =
        "\x80\x02}" NAME1 "a" TENSOR_OF(STORAGE("DoubleStorage", "\x04"), "\0", "K\x02K\x02", "K\x01K\x02") "s.";
    mel_weights *w = NULL;
    z = (zip){0};
    zip_add(&z, "data.pkl", pickle, sizeof pickle - 1);
    zip_add(&z, "data/0", doubles, sizeof doubles);
    zip_end(&z);
    CHECK_OK(mel_weights_open_memory(z.bytes, (int64_t)z.size, "t.pth", &w, err));
    if (!w) return;
    check_values(w, "a", 4, (float[]){1, 3, 2, 4});
    mel_weights_close(w);
}

static void refused_views(void) {
    REFUSED("\x80\x02}" NAME1 "a" TENSOR("\1", "K\x06", "K\x01") "s.", MEL_EFORMAT,
        "elements 1 to 6 are not all within the 6");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR("\x07", "K\0", "K\x01") "s.", MEL_EFORMAT, "within the 6");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR("\0", "K\x09", "K\0") "s.", MEL_EUNSUPPORTED,
        "9 elements expanded from a storage");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR("\0", "K\x02", "J\xff\xff\xff\xff") "s.", MEL_EFORMAT, "stride 0");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR("\0", "J\xff\xff\xff\xff", "K\1") "s.", MEL_EFORMAT, "negative dimension");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR("\0", "K\2K\2", "K\1") "s.", MEL_EFORMAT, "2 dimensions, 1 strides");
    REFUSED(
        "\x80\x02}" NAME1 "a" TENSOR("\0", "K\2", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f") "s.", MEL_EFORMAT, "'a'");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR("\0", "K\x04", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f") "s.", MEL_EFORMAT,
        "stride 9223372036854775807 is out of its storage");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR_OF(STORAGE("FloatStorage", "\5"), "\0", "K\2", "K\1") "s.", MEL_EFORMAT,
        "storage '0' has 24 bytes, 5 elements of F32");
    REFUSED("\x80\x02}" NAME1 "a" TENSOR_OF("(\x8c\x07storagectorch\nFloatStorage\n\x8c\x01"
                                            "7NK\6tQ",
                "\0", "K\2", "K\1") "s.",
        MEL_EFORMAT, "no record for its storage '7'");
    REFUSED("\x80\x02}(" NAME1 "a" TENSOR("\0", "K\2", "K\1") NAME1 "a" TENSOR("\0", "K\2", "K\1") "u.", MEL_EFORMAT,
        "two tensors are called 'a'");
}

static void refused_pickles(void) {
    REFUSED("\x80\x02"
            "cposix\nsystem\n\x8c\x04true\x85R.",
        MEL_EUNSUPPORTED, "asks for 'posix.system'; pickles run code");
    REFUSED("\x80\x04\x8c\x08"
            "builtins\x8c\x04"
            "eval\x93.",
        MEL_EUNSUPPORTED, "'builtins.eval'");
    REFUSED("\x80\x02"
            "cos\nsys\x1btem\n.",
        MEL_EUNSUPPORTED, "'os.sys\\x1btem'");
    REFUSED("\x80\x02(ios\nsystem\n.", MEL_EUNSUPPORTED, "opcode 0x69"); // INST
    REFUSED("\x80\x02}\x81.", MEL_EUNSUPPORTED, "opcode 0x81");          // NEWOBJ
    REFUSED("\x80\x02\x82\x01.", MEL_EUNSUPPORTED, "opcode 0x82");       // EXT1
    REFUSED("\x80\x02", MEL_EFORMAT, "does not stop");
    REFUSED("\x80\x02.", MEL_EFORMAT, "makes nothing");
    REFUSED("\x80\x02(.", MEL_EFORMAT, "makes nothing");
    REFUSED("\x80\x02t.", MEL_EFORMAT, "no mark");
    REFUSED("\x80\x02\x86.", MEL_EFORMAT, "stack is empty");
    REFUSED("\x80\x02s.", MEL_EFORMAT, "without their container");
    REFUSED("\x80\x02}(Nu.", MEL_EFORMAT, "a key without its value");
    REFUSED("\x80\x02}h\x05.", MEL_EFORMAT, "never set");
    REFUSED("\x80\x02}r\xff\xff\xff\x7f.", MEL_EFORMAT, "out of turn");
    REFUSED("\x80\x02X\xff\xff\xff\xff.", MEL_EFORMAT, "ends after the pickle");
    REFUSED("\x80\x02\x8a\xff.", MEL_EFORMAT, "more than 64 bits");
    REFUSED("\x80\x02J\x01", MEL_EFORMAT, "ends inside an opcode");
    REFUSED("\x80\x02NQ.", MEL_EFORMAT, "persistent object");
    REFUSED("\x80\x02}b.", MEL_EFORMAT, "attributes");
    REFUSED("\x80\x02"
            "ccollections\nOrderedDict\nK\1\x85R.",
        MEL_EFORMAT, "arguments that it does not take");
    REFUSED("\x80\x02"
            "ctorch._utils\n_rebuild_tensor_v2\n)R.",
        MEL_EFORMAT, "a tensor is not (storage");
    REFUSED("\x80\x02}q\0" NAME1 "ah\0s.", MEL_EUNSUPPORTED, "in a circle");
    REFUSED("\x80\x02}N" TENSOR("\0", "K\2", "K\1") "s.", MEL_EUNSUPPORTED, "a key that cannot stand in a name");
}

// Twelve levels, each naming the one below ten times: a graph of 24 values, a walk of 10^12.
static void shared_parts(void) {
    static char pickle[4096];
    size_t n = 0;
    memcpy(pickle, "\x80\x02]q\0", 5);
    n = 5;
    for (int level = 1; level <= 12; level++) {
        pickle[n++] = ']';
        pickle[n++] = '(';
        for (int i = 0; i < 10; i++) {
            pickle[n++] = 'h';
            pickle[n++] = (char)(level - 1);
        }
        pickle[n++] = 'e';
        pickle[n++] = 'q';
        pickle[n++] = (char)level;
    }
    pickle[n++] = '.';
    mel_weights *w = NULL;
    z = (zip){0};
    CHECK_FAILS(open_zip(&z, pickle, n, &w, err), MEL_EUNSUPPORTED, "in a circle");
}

static void refused_zips(void) {
    static const char pickle[] = "\x80\x02}.";
    mel_weights *w = NULL;
    z = (zip){.method = 8};
    CHECK_FAILS(open_zip(&z, pickle, 4, &w, err), MEL_EUNSUPPORTED, "record 'a/data.pkl' is compressed");
    z = (zip){0};
    zip_add(&z, "a/data.pkl", pickle, 4);
    CHECK_FAILS(open_zip(&z, pickle, 4, &w, err), MEL_EFORMAT, "two records are called 'a/data.pkl'");
    z = (zip){0};
    zip_add(&z, "b/data.pkl", pickle, 4);
    CHECK_FAILS(open_zip(&z, pickle, 4, &w, err), MEL_EFORMAT, "two data.pkl");
    z = (zip){0};
    zip_add(&z, "a/byteorder", "big", 3);
    CHECK_FAILS(open_zip(&z, pickle, 4, &w, err), MEL_EUNSUPPORTED, "byteorder is 'big'");
    z = (zip){0};
    zip_add(&z, "a/mydata.pkl", pickle, 4);
    zip_end(&z);
    CHECK_FAILS(mel_weights_open_memory(z.bytes, (int64_t)z.size, "t.pth", &w, err), MEL_EFORMAT, "without data.pkl");
}

int main(void) {
    RUN(nested);
    RUN(protocol_4);
    RUN(zip_64);
    RUN(bare_tensor);
    RUN(converted_view);
    RUN(refused_views);
    RUN(refused_pickles);
    RUN(shared_parts);
    RUN(refused_zips);
    return CHECK_DONE();
}
