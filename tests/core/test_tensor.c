// Memory accounting, shapes, views, casts.
#include "check.h"

#include <melies/tensor.h>

static mel_tensor *iota(mel_dtype dtype, int ndim, const int64_t *shape) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_create(dtype, ndim, shape, &t, err));
    for (int64_t i = 0; i < mel_tensor_numel(t); i++)
        CHECK_OK(mel_tensor_set(t, i, (double)i, err));
    return t;
}

static double at(const mel_tensor *t, int64_t i) {
    double v = NAN;
    CHECK_OK(mel_tensor_get(t, i, &v, err));
    return v;
}

static void accounting(void) {
    int64_t before = mel_mem_live();
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_create(MEL_F32, 2, (int64_t[]){1000, 1000}, &t, err));
    CHECK(mel_mem_live() >= before + 4000000);
    CHECK(mel_mem_peak() >= mel_mem_live());
    CHECK((uintptr_t)mel_tensor_data(t) % 64 == 0);
    mel_tensor *v = NULL;
    CHECK_OK(mel_tensor_slice(t, 0, 10, 5, &v, err));
    mel_tensor_unref(t);
    CHECK(mel_mem_live() >= before + 4000000); // the view keeps the storage
    mel_tensor_unref(v);
    CHECK(mel_mem_live() == before);
    mel_mem_set_limit(mel_mem_live() + (1 << 20));
    CHECK_FAILS(mel_tensor_create(MEL_F32, 1, (int64_t[]){1 << 20}, &t, err), MEL_ENOMEM, "the limit is");
    mel_mem_set_limit(0);
    mel_mem_trim(0);
    CHECK(mel_mem_pooled() == 0);
}

static void bad_shapes(void) {
    mel_tensor *t = NULL;
    CHECK_FAILS(mel_tensor_create(MEL_F32, 9, (int64_t[9]){0}, &t, err), MEL_EINVAL, "9 dimensions");
    CHECK_FAILS(mel_tensor_create(MEL_F32, 1, (int64_t[]){-1}, &t, err), MEL_EINVAL, "is -1");
    CHECK_FAILS(mel_tensor_create(MEL_F32, 3, (int64_t[]){1ll << 40, 1ll << 40, 1}, &t, err), MEL_EINVAL, "overflows");
    CHECK_FAILS(mel_tensor_create((mel_dtype)42, 1, (int64_t[]){1}, &t, err), MEL_EINVAL, "dtype 42");
    CHECK(t == NULL);
}

static void views(void) {
    mel_tensor *t = iota(MEL_F32, 3, (int64_t[]){2, 3, 4}), *p = NULL, *r = NULL, *s = NULL, *e = NULL;
    CHECK_OK(mel_tensor_permute(t, (int[]){2, 0, 1}, &p, err));
    CHECK(mel_tensor_shape(p)[0] == 4 && at(p, 0) == 0 && at(p, 1) == 4 && at(p, 6) == 1);
    CHECK(!mel_tensor_is_contiguous(p));
    CHECK_OK(mel_tensor_reshape(p, 2, (int64_t[]){4, 6}, &r, err)); // [2, 3] merge: a view
    CHECK(mel_tensor_data(r) == mel_tensor_data(t));
    for (int i = 0; i < 24; i++)
        CHECK(at(r, i) == at(p, i));
    mel_tensor_unref(r);
    CHECK_OK(mel_tensor_reshape(p, 2, (int64_t[]){-1, 2}, &r, err)); // no view: a copy
    for (int i = 0; i < 24; i++)
        CHECK(at(r, i) == at(p, i));
    CHECK_OK(mel_tensor_slice(t, -1, 1, 2, &s, err));
    CHECK(at(s, 0) == 1 && at(s, 2) == 5);
    CHECK_FAILS(mel_tensor_slice(t, 1, 2, 2, &s, err), MEL_EINVAL, "outside axis 2 of [2, 3, 4]");
    CHECK_FAILS(mel_tensor_slice(t, 3, 0, 1, &s, err), MEL_EINVAL, "no axis 4");
    CHECK_FAILS(mel_tensor_reshape(t, 1, (int64_t[]){25}, &s, err), MEL_EINVAL, "[25]");
    CHECK_OK(mel_tensor_expand(s, 4, (int64_t[]){5, 2, 3, 2}, &e, err));
    CHECK(at(e, 12) == 1 && !mel_tensor_is_writable(e));
    CHECK_FAILS(mel_tensor_fill(e, 0, err), MEL_EINVAL, "read-only");
    mel_tensor *all[] = {t, p, r, s, e};
    for (int i = 0; i < 5; i++)
        mel_tensor_unref(all[i]);
}

static void casts(void) {
    mel_tensor *t = NULL, *u = NULL;
    double values[] = {0, 1, -1.5, 2.5, 3.5, 300, -300, 1e-3, 65504, 70000, NAN, 0.333333333};
    CHECK_OK(mel_tensor_create(MEL_F32, 1, (int64_t[]){12}, &t, err));
    for (int i = 0; i < 12; i++)
        CHECK_OK(mel_tensor_set(t, i, values[i], err));
    CHECK_OK(mel_tensor_cast(t, MEL_U8, &u, err));
    double want[] = {0, 1, 0, 2, 4, 255, 0, 0, 255, 255, 0, 0};
    for (int i = 0; i < 12; i++)
        CHECK(at(u, i) == want[i]);
    mel_tensor_unref(u);
    CHECK_OK(mel_tensor_cast(t, MEL_F16, &u, err));
    CHECK(at(u, 8) == 65504 && isinf(at(u, 9)) && isnan(at(u, 10)));
    CHECK_NEAR(at(u, 11), 0.333333333, 2e-4);
    mel_tensor_unref(u);
    CHECK_OK(mel_tensor_cast(t, MEL_BF16, &u, err));
    CHECK(isnan(at(u, 10)) && at(u, 2) == -1.5 && at(u, 5) == 300);
    mel_tensor_unref(u);
    mel_tensor_unref(t);
    t = iota(MEL_I64, 2, (int64_t[]){3, 5});
    CHECK_OK(mel_tensor_set(t, 1, 9007199254740991.0, err));
    CHECK_OK(mel_tensor_cast(t, MEL_S32, &u, err));
    CHECK(at(u, 1) == INT32_MAX && at(u, 14) == 14);
    mel_tensor_unref(u);
    mel_tensor_unref(t);
}

static void copies_big_and_strided(void) {
    mel_tensor *t = iota(MEL_F32, 3, (int64_t[]){40, 50, 60}), *p = NULL, *c = NULL, *b = NULL;
    CHECK_OK(mel_tensor_permute(t, (int[]){1, 2, 0}, &p, err));
    CHECK_OK(mel_tensor_contiguous(p, &c, err));
    CHECK_OK(mel_tensor_cast(p, MEL_BF16, &b, err));
    const float *x = mel_tensor_data(t), *y = mel_tensor_data(c);
    int bad = 0;
    for (int i = 0; i < 50; i++)
        for (int j = 0; j < 60; j++)
            for (int k = 0; k < 40; k++) {
                float want = x[(k * 50 + i) * 60 + j];
                bad += y[(i * 60 + j) * 40 + k] != want;
                bad += fabs(at(b, (i * 60 + j) * 40 + k) - want) > want / 250;
            }
    CHECK(bad == 0);
    mel_tensor *all[] = {t, p, c, b};
    for (int i = 0; i < 4; i++)
        mel_tensor_unref(all[i]);
}

static void fail_every_allocation(void) {
    int64_t before = mel_mem_live();
    for (int n = 1; n < 50; n++) {
        mel_tensor *t = NULL, *p = NULL, *c = NULL;
        mel_mem_fail_nth(n);
        mel_error err = {0};
        mel_status s = mel_tensor_zeros(MEL_F32, 2, (int64_t[]){7, 9}, &t, &err);
        if (!s) s = mel_tensor_permute(t, (int[]){1, 0}, &p, &err);
        if (!s) s = mel_tensor_reshape(p, 1, (int64_t[]){63}, &c, &err);
        mel_mem_fail_nth(0);
        mel_tensor_unref(t);
        mel_tensor_unref(p);
        mel_tensor_unref(c);
        CHECK(mel_mem_live() == before);
        if (s == MEL_OK) return;
        CHECK(s == MEL_ENOMEM && strstr(err.message, "injected"));
    }
    CHECK(!"the loop ends");
}

int main(void) {
    RUN(accounting);
    RUN(bad_shapes);
    RUN(views);
    RUN(casts);
    RUN(copies_big_and_strided);
    RUN(fail_every_allocation);
    return CHECK_DONE();
}
