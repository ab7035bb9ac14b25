// Writing safetensors: round trips, layout, atomicity, misuse, failing allocations, a full disk.
#include "check.h"

#include <dirent.h>
#include <melies/weights.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/melies_writer_XXXXXX";

static const char *beside(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int files_there(void) {
    DIR *d = opendir(folder);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static mel_tensor *ramp(mel_dtype dtype, int ndim, const int64_t *shape) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_create(dtype, ndim, shape, &t, err));
    for (int64_t i = 0; t && i < mel_tensor_numel(t); i++)
        CHECK_OK(mel_tensor_set(t, i, (double)(i % 100) - 5 * (dtype != MEL_U8), err));
    return t;
}

static const mel_dtype dtypes[] = {MEL_S8, MEL_F32, MEL_BF16, MEL_I64, MEL_F16, MEL_U8, MEL_S32};
enum {
    DTYPES = sizeof dtypes / sizeof dtypes[0]
};

// One tensor of each dtype, declared forwards and written backwards.
static mel_status write_all(const char *path, mel_tensor **tensors, mel_error *err) {
    mel_weights_writer *w = NULL;
    char name[32];
    mel_status s = mel_weights_writer_create(path, &w, err);
    if (s == MEL_OK) s = mel_weights_writer_metadata(w, "zwei", "2 \"quoted\" ü", err);
    if (s == MEL_OK) s = mel_weights_writer_metadata(w, "eins", "1", err);
    for (int i = 0; i < DTYPES && s == MEL_OK; i++) {
        snprintf(name, sizeof name, "%s \"ü\\", mel_dtype_name(dtypes[i]));
        s = mel_weights_writer_declare(
            w, name, dtypes[i], mel_tensor_ndim(tensors[i]), mel_tensor_shape(tensors[i]), err);
    }
    for (int i = DTYPES - 1; i >= 0 && s == MEL_OK; i--) {
        snprintf(name, sizeof name, "%s \"ü\\", mel_dtype_name(dtypes[i]));
        s = mel_weights_writer_write(w, name, tensors[i], err);
    }
    if (s == MEL_OK) s = mel_weights_writer_finish(w, err);
    mel_weights_writer_free(w);
    return s;
}

static void round_trip(void) {
    mel_tensor *tensors[DTYPES];
    for (int i = 0; i < DTYPES; i++)
        tensors[i] = ramp(dtypes[i], 2, (int64_t[]){3, 5 + i});
    CHECK_OK(write_all(beside("all.safetensors"), tensors, err));
    mel_weights *r = NULL;
    CHECK_OK(mel_weights_open(beside("all.safetensors"), &r, err));
    CHECK(mel_weights_count(r) == DTYPES && mel_weights_meta_count(r) == 2);
    mel_meta_value v;
    CHECK_OK(mel_weights_meta_get(r, 1, 0, &v, err));
    CHECK(v.length == (int64_t)strlen("2 \"quoted\" ü") && strcmp(mel_weights_meta_key(r, 1), "zwei") == 0);
    for (int i = 0; i < DTYPES; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s \"ü\\", mel_dtype_name(dtypes[i]));
        mel_tensor *t = NULL;
        int64_t at = mel_weights_find(r, name), live = mel_mem_live();
        CHECK(mel_weights_offset(r, at) % mel_dtype_size(dtypes[i]) == 0);
        CHECK_OK(mel_weights_tensor(r, name, MEL_SAME, &t, err));
        CHECK(mel_mem_live() - live < 1024); // aligned: a view
        CHECK(mel_tensor_dtype(t) == dtypes[i] && mel_tensor_bytes(t) == mel_tensor_bytes(tensors[i]));
        CHECK(memcmp(mel_tensor_data(t), mel_tensor_data(tensors[i]), (size_t)mel_tensor_bytes(t)) == 0);
        mel_tensor_unref(t);
        mel_tensor_unref(tensors[i]);
    }
    mel_weights_close(r);
    CHECK(files_there() == 1);
}

// Scalars, empty tensors, views, no tensors at all; the same declarations in another order give the same bytes.
static void corners(void) {
    mel_tensor *scalar = ramp(MEL_F32, 0, NULL), *empty = ramp(MEL_F32, 2, (int64_t[]){0, 3});
    mel_tensor *matrix = ramp(MEL_F32, 2, (int64_t[]){3, 4}), *turned = NULL, *back = NULL;
    CHECK_OK(mel_tensor_permute(matrix, (int[]){1, 0}, &turned, err));
    char first[4096], second[4096];
    size_t length[2] = {0};
    for (int order = 0; order < 2; order++) {
        mel_weights_writer *w = NULL;
        CHECK_OK(mel_weights_writer_create(beside("corners.safetensors"), &w, err));
        for (int i = 0; i < 3; i++) {
            int k = order ? 2 - i : i;
            mel_tensor *t = k == 0 ? scalar : k == 1 ? empty : turned;
            CHECK_OK(mel_weights_writer_declare(w, (const char *[]){"scalar", "empty", "turned"}[k], MEL_F32,
                mel_tensor_ndim(t), mel_tensor_shape(t), err));
        }
        CHECK_OK(mel_weights_writer_write(w, "turned", turned, err));
        CHECK_OK(mel_weights_writer_write(w, "scalar", scalar, err));
        CHECK_OK(mel_weights_writer_write(w, "empty", empty, err));
        CHECK_OK(mel_weights_writer_finish(w, err));
        mel_weights_writer_free(w);
        FILE *f = fopen(beside("corners.safetensors"), "rb");
        length[order] = fread(order ? second : first, 1, sizeof first, f);
        fclose(f);
    }
    CHECK(length[0] == length[1] && memcmp(first, second, length[0]) == 0);
    mel_weights *r = NULL;
    CHECK_OK(mel_weights_open(beside("corners.safetensors"), &r, err));
    CHECK_OK(mel_weights_tensor(r, "turned", MEL_SAME, &back, err));
    double a = 0, b = 0;
    CHECK_OK(mel_tensor_get(back, 1, &a, err)); // [0][1] of the transpose
    CHECK_OK(mel_tensor_get(matrix, 4, &b, err));
    CHECK(a == b && mel_tensor_shape(back)[0] == 4);
    mel_tensor_unref(back);
    mel_weights_close(r);
    mel_tensor_unref(scalar);
    mel_tensor_unref(empty);
    mel_tensor_unref(matrix);
    mel_tensor_unref(turned);

    mel_weights_writer *w = NULL;
    CHECK_OK(mel_weights_writer_create(beside("none.safetensors"), &w, err));
    CHECK_OK(mel_weights_writer_finish(w, err));
    mel_weights_writer_free(w);
    CHECK_OK(mel_weights_open(beside("none.safetensors"), &r, err));
    CHECK(mel_weights_count(r) == 0 && mel_weights_find(r, "x") == -1);
    mel_weights_close(r);
}

static void misuse(void) {
    mel_weights_writer *w = NULL;
    int64_t shape[] = {2};
    mel_tensor *t = ramp(MEL_F32, 1, shape), *other = ramp(MEL_BF16, 1, shape);
    int before = files_there();
    CHECK_FAILS(
        mel_weights_writer_create("/nowhere/x.safetensors", &w, err), MEL_EIO, "/nowhere/x.safetensors: cannot be");
    CHECK_FAILS(mel_weights_writer_create("", &w, err), MEL_EINVAL, "empty");
#define BEGIN() CHECK_OK(mel_weights_writer_create(beside("bad.safetensors"), &w, err))
#define END() mel_weights_writer_free(w)
#define DECLARE(name) CHECK_OK(mel_weights_writer_declare(w, name, MEL_F32, 1, shape, err))
    BEGIN();
    CHECK_FAILS(mel_weights_writer_declare(w, "x", MEL_F32, 9, shape, err), MEL_EINVAL, "9 dimensions");
    CHECK_FAILS(mel_weights_writer_declare(w, "x", 40, 1, shape, err), MEL_EINVAL, "no such dtype: 40");
    CHECK_FAILS(mel_weights_writer_declare(w, "\xff", MEL_F32, 1, shape, err), MEL_EINVAL, "UTF-8");
    CHECK_FAILS(mel_weights_writer_declare(w, "__metadata__", MEL_F32, 1, shape, err), MEL_EINVAL, "__metadata__");
    CHECK_FAILS(mel_weights_writer_declare(w, "x", MEL_F32, 1, (int64_t[]){-1}, err), MEL_EINVAL, "negative");
    CHECK_FAILS(mel_weights_writer_metadata(w, "", "x", err), MEL_EINVAL, "key is empty");
    CHECK_FAILS(mel_weights_writer_metadata(w, "k", "\xc0", err), MEL_EINVAL, "'k': not UTF-8");
    DECLARE("x");
    CHECK_FAILS(mel_weights_writer_write(w, "y", t, err), MEL_EINVAL, "'y' was not declared");
    CHECK_FAILS(mel_weights_writer_write(w, "x", t, err), MEL_EINVAL, "has failed");
    END();
    BEGIN();
    DECLARE("x");
    CHECK_FAILS(mel_weights_writer_write(w, "x", other, err), MEL_EINVAL, "bf16 [2] is not what was declared");
    END();
    BEGIN();
    DECLARE("x");
    DECLARE("x");
    CHECK_FAILS(mel_weights_writer_write(w, "x", t, err), MEL_EINVAL, "'x' is declared twice");
    END();
    BEGIN();
    DECLARE("x");
    DECLARE("y");
    CHECK_OK(mel_weights_writer_write(w, "x", t, err));
    CHECK_FAILS(mel_weights_writer_declare(w, "z", MEL_F32, 1, shape, err), MEL_EINVAL, "before the first write");
    CHECK_FAILS(mel_weights_writer_finish(w, err), MEL_EINVAL, "'y' was declared but not written");
    END();
    BEGIN();
    DECLARE("x");
    CHECK_OK(mel_weights_writer_write(w, "x", t, err));
    CHECK_FAILS(mel_weights_writer_write(w, "x", t, err), MEL_EINVAL, "written twice");
    END();
    BEGIN();
    CHECK_OK(mel_weights_writer_metadata(w, "k", "1", err));
    CHECK_OK(mel_weights_writer_metadata(w, "k", "2", err));
    CHECK_FAILS(mel_weights_writer_finish(w, err), MEL_EINVAL, "'k' is given twice");
    END();
    BEGIN();
    DECLARE("x");
    mel_cancel();
    CHECK_FAILS(mel_weights_writer_write(w, "x", t, err), MEL_ECANCELED, "");
    mel_cancel_clear();
    END();
    mel_weights_writer_free(NULL);
    CHECK(files_there() == before); // no partial file under any name
    mel_tensor_unref(t);
    mel_tensor_unref(other);
}

// A limit on file sizes stands in for a full disk: the write fails the same way.
static void full_disk(void) {
    struct rlimit old, small = {4096, 4096};
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    int before = files_there();
    int64_t shape[] = {100000};
    mel_tensor *t = ramp(MEL_F32, 1, shape);
    mel_weights_writer *w = NULL;
    setrlimit(RLIMIT_FSIZE, &small);
    CHECK_OK(mel_weights_writer_create(beside("big.safetensors"), &w, err));
    CHECK_OK(mel_weights_writer_declare(w, "x", MEL_F32, 1, shape, err));
    CHECK_FAILS(mel_weights_writer_write(w, "x", t, err), MEL_EIO, "big.safetensors: cannot be written");
    setrlimit(RLIMIT_FSIZE, &old);
    mel_weights_writer_free(w);
    mel_tensor_unref(t);
    CHECK(files_there() == before);
}

// An old file stays whole until the new one is complete.
static void replaces_at_the_end(void) {
    int64_t shape[] = {2};
    mel_tensor *t = ramp(MEL_F32, 1, shape);
    mel_weights_writer *w = NULL;
    mel_weights *r = NULL;
    CHECK_OK(mel_weights_writer_create(beside("all.safetensors"), &w, err));
    CHECK_OK(mel_weights_writer_declare(w, "new", MEL_F32, 1, shape, err));
    CHECK_OK(mel_weights_writer_write(w, "new", t, err));
    CHECK_OK(mel_weights_open(beside("all.safetensors"), &r, err));
    CHECK(mel_weights_find(r, "new") == -1 && mel_weights_count(r) == DTYPES);
    mel_weights_close(r);
    CHECK_OK(mel_weights_writer_finish(w, err));
    mel_weights_writer_free(w);
    CHECK_OK(mel_weights_open(beside("all.safetensors"), &r, err));
    CHECK(mel_weights_find(r, "new") == 0 && mel_weights_count(r) == 1);
    mel_weights_close(r);
    mel_tensor_unref(t);
}

static void failing_allocations(void) {
    mel_tensor *tensors[DTYPES];
    for (int i = 0; i < DTYPES; i++)
        tensors[i] = ramp(dtypes[i], 2, (int64_t[]){3, 5 + i});
    int64_t live = mel_mem_live(), n = 1;
    int before = files_there();
    for (; n < 1000; n++) {
        mel_error err = {0};
        mel_mem_fail_nth(n);
        mel_status s = write_all(beside("nth.safetensors"), tensors, &err);
        mel_mem_fail_nth(0);
        CHECK(mel_mem_live() == live);
        if (s == MEL_OK) break;
        CHECK(s == MEL_ENOMEM && files_there() == before);
    }
    CHECK(n > 3 && n < 1000);
    for (int i = 0; i < DTYPES; i++)
        mel_tensor_unref(tensors[i]);
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL);
    RUN(round_trip);
    RUN(corners);
    RUN(misuse);
    RUN(full_disk);
    RUN(replaces_at_the_end);
    RUN(failing_allocations);
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0);
    return CHECK_DONE();
}
