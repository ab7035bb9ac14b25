#include "check.h"
#include "sample/philox.h"

#include <melies/sample.h>

// Known answers of Random123 1.09 (kat_vectors, philox4x32-10).
static void test_philox_known_answers(void) {
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff},
            {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
            {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t out[4];
        philox4x32_10(cases[i].counter, cases[i].key, out);
        CHECK(memcmp(out, cases[i].want, sizeof out) == 0);
    }
}

static const float *values(const mel_tensor *t) {
    return mel_tensor_data(t);
}

static void test_uniform_is_the_counter(void) {
    int64_t shape[] = {4};
    mel_tensor *t = NULL;
    CHECK_OK(mel_noise_uniform(0, 0, 0, 1, shape, &t, err));
    CHECK(values(t)[0] == (float)(0x6627e8d5u >> 8) / 16777216.0f);
    CHECK(values(t)[3] == (float)(0x9b00dbd8u >> 8) / 16777216.0f);
    mel_tensor_unref(t);
}

// Any thread count and any split give the same bits.
static void test_noise_split_and_threads(void) {
    enum {
        N = 70001
    };
    int64_t shape[] = {N};
    mel_tensor *one = NULL, *many = NULL, *part = NULL;
    CHECK_OK(mel_set_threads(1, err));
    CHECK_OK(mel_noise_normal(7, 3, 0, 1, shape, &one, err));
    CHECK_OK(mel_set_threads(5, err));
    CHECK_OK(mel_noise_normal(7, 3, 0, 1, shape, &many, err));
    CHECK(memcmp(values(one), values(many), N * sizeof(float)) == 0);
    for (int64_t first = 1; first < 12; first++) {
        int64_t part_shape[] = {7, 13};
        CHECK_OK(mel_noise_normal(7, 3, (uint64_t)first, 2, part_shape, &part, err));
        CHECK(memcmp(values(one) + first, values(part), 91 * sizeof(float)) == 0);
        mel_tensor_unref(part);
    }
    CHECK_OK(mel_set_threads(0, err));
    mel_tensor_unref(one);
    mel_tensor_unref(many);
}

static void test_noise_moments(void) {
    enum {
        N = 1 << 20
    };
    int64_t shape[] = {N};
    mel_tensor *a = NULL, *b = NULL, *u = NULL;
    CHECK_OK(mel_noise_normal(42, 0, 0, 1, shape, &a, err));
    CHECK_OK(mel_noise_normal(42, 1, 0, 1, shape, &b, err));
    CHECK_OK(mel_noise_uniform(42, 2, 0, 1, shape, &u, err));
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, ab = 0, lag = 0, um = 0, low = 1, high = 0;
    int64_t beyond2 = 0;
    for (int i = 0; i < N; i++) {
        double x = values(a)[i];
        m1 += x, m2 += x * x, m3 += x * x * x, m4 += x * x * x * x;
        ab += x * values(b)[i];
        lag += i ? x * values(a)[i - 1] : 0;
        beyond2 += fabs(x) > 2;
        double v = values(u)[i];
        um += v, low = fmin(low, v), high = fmax(high, v);
    }
    CHECK_NEAR(m1 / N, 0, 0.005);
    CHECK_NEAR(m2 / N, 1, 0.007);
    CHECK_NEAR(m3 / N, 0, 0.02);
    CHECK_NEAR(m4 / N, 3, 0.05);
    CHECK_NEAR(ab / N, 0, 0.005);
    CHECK_NEAR(lag / N, 0, 0.005);
    CHECK_NEAR((double)beyond2 / N, 0.0455003, 0.001);
    CHECK_NEAR(um / N, 0.5, 0.002);
    CHECK(low >= 0 && high < 1);
    mel_tensor_unref(a);
    mel_tensor_unref(b);
    mel_tensor_unref(u);
}

static void test_noise_edges(void) {
    mel_tensor *t = NULL;
    int64_t empty[] = {3, 0}, negative[] = {-1};
    CHECK_OK(mel_noise_normal(0, 0, 0, 2, empty, &t, err));
    CHECK(mel_tensor_numel(t) == 0);
    mel_tensor_unref(t);
    CHECK_OK(mel_noise_normal(0, 0, UINT64_MAX - 1, 0, NULL, &t, err));
    CHECK(isfinite(values(t)[0]));
    mel_tensor_unref(t);
    t = NULL;
    CHECK_FAILS(mel_noise_normal(0, 0, 0, 1, negative, &t, err), MEL_EINVAL, "-1");
    mel_cancel();
    int64_t shape[] = {10000};
    int64_t live = mel_mem_live();
    CHECK_FAILS(mel_noise_normal(0, 0, 0, 1, shape, &t, err), MEL_ECANCELED, "cancel");
    mel_cancel_clear();
    CHECK(t == NULL && mel_mem_live() == live);
}

static void test_lincomb_against_naive(void) {
    enum {
        MOST = 16
    };
    for (int n = 1; n <= MOST; n++) {
        int64_t size = n * 977;
        mel_tensor *terms[MOST], *out = NULL;
        double c[MOST];
        for (int k = 0; k < n; k++) {
            CHECK_OK(mel_noise_normal(1, (uint64_t)k, 0, 1, &size, &terms[k], err));
            c[k] = 0.3 * k - 1.7;
        }
        CHECK_OK(mel_lincomb(n, c, (const mel_tensor *const *)terms, &out, err));
        for (int64_t i = 0; i < size; i++) {
            double want = 0;
            for (int k = 0; k < n; k++)
                want += c[k] * (double)values(terms[k])[i];
            if (values(out)[i] != (float)want) CHECK_NEAR(values(out)[i], want, 1e-6);
        }
        mel_tensor_unref(out);
        for (int k = 0; k < n; k++)
            mel_tensor_unref(terms[k]);
    }
}

static void test_lincomb_rules(void) {
    int64_t shape[] = {4, 6}, other[] = {6, 4};
    int axes[] = {1, 0};
    mel_tensor *x = NULL, *y = NULL, *turned = NULL, *bad = NULL, *out = NULL, *h = NULL;
    CHECK_OK(mel_noise_normal(1, 0, 0, 2, shape, &x, err));
    CHECK_OK(mel_noise_normal(1, 1, 0, 2, other, &y, err));
    CHECK_OK(mel_tensor_permute(y, axes, &turned, err));
    CHECK_OK(mel_tensor_cast(x, MEL_BF16, &h, err));
    CHECK_OK(mel_tensor_create(MEL_F32, 2, shape, &bad, err));
    CHECK_OK(mel_tensor_fill(bad, NAN, err));
    double c[] = {2, -1, 0};
    const mel_tensor *terms[] = {x, turned, bad};
    CHECK_OK(mel_lincomb(3, c, terms, &out, err)); // a view is read through its strides, a zero coefficient is not read
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 6; j++)
            CHECK_NEAR(values(out)[i * 6 + j], 2.0 * values(x)[i * 6 + j] - values(y)[j * 4 + i], 1e-6);
    mel_tensor_unref(out);
    double none[] = {0};
    CHECK_OK(mel_lincomb(1, none, &terms[2], &out, err));
    CHECK(values(out)[5] == 0);
    mel_tensor_unref(out);
    out = NULL;
    const mel_tensor *shapes[] = {x, y}, *types[] = {x, h};
    CHECK_FAILS(mel_lincomb(2, c, shapes, &out, err), MEL_EINVAL, "[6, 4]");
    CHECK_FAILS(mel_lincomb(2, c, types, &out, err), MEL_EINVAL, "bf16");
    CHECK_FAILS(mel_lincomb(0, c, terms, &out, err), MEL_EINVAL, "0 terms");
    CHECK_FAILS(mel_lincomb(17, c, terms, &out, err), MEL_EINVAL, "17 terms");
    CHECK(out == NULL);
    for (int64_t nth = 1; nth < 50; nth++) {
        int64_t live = mel_mem_live();
        mel_mem_fail_nth(nth);
        mel_status status = mel_lincomb(3, c, terms, &out, NULL);
        mel_mem_fail_nth(0);
        if (status == MEL_OK) {
            mel_tensor_unref(out);
            break;
        }
        CHECK(status == MEL_ENOMEM && mel_mem_live() == live);
    }
    mel_tensor_unref(x);
    mel_tensor_unref(y);
    mel_tensor_unref(turned);
    mel_tensor_unref(bad);
    mel_tensor_unref(h);
}

int main(void) {
    RUN(test_philox_known_answers);
    RUN(test_uniform_is_the_counter);
    RUN(test_noise_split_and_threads);
    RUN(test_noise_moments);
    RUN(test_noise_edges);
    RUN(test_lincomb_against_naive);
    RUN(test_lincomb_rules);
    CHECK(mel_mem_live() == 0);
    return CHECK_DONE();
}
