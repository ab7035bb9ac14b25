// Random tensors and their values as doubles, for the tests of operations.
#ifndef MELIES_TEST_OPS_HELP_H
#define MELIES_TEST_OPS_HELP_H

#include "check.h"

#include <melies/ops.h>

#define SHAPE(...)                                                                                                     \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]) {                                           \
        __VA_ARGS__                                                                                                    \
    }

static uint64_t random_state = 88172645463325252ull;
static double random_value(double size) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return size * ((double)(random_state >> 11) * 0x1p-52 - 1.0);
}

// Values in [-2, 2).
static mel_tensor *random_tensor(mel_dtype dtype, int ndim, const int64_t *shape) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_create(dtype, ndim, shape, &t, err));
    int64_t n = mel_tensor_numel(t);
    for (int64_t i = 0; i < n; i++)
        mel_tensor_set(t, i, random_value(2), NULL);
    return t;
}

// The same values at other strides: a view with its axes reversed in memory.
static inline mel_tensor *scattered(mel_tensor *t) {
    int axes[MEL_MAX_DIMS], n = mel_tensor_ndim(t);
    mel_tensor *turned = NULL, *dense = NULL, *back = NULL;
    for (int i = 0; i < n; i++)
        axes[i] = n - 1 - i;
    CHECK_OK(mel_tensor_permute(t, axes, &turned, err));
    CHECK_OK(mel_tensor_clone(turned, &dense, err));
    CHECK_OK(mel_tensor_permute(dense, axes, &back, err));
    mel_tensor_unref(t);
    mel_tensor_unref(turned);
    mel_tensor_unref(dense);
    return back;
}

static inline double *values_of(const mel_tensor *t) {
    int64_t n = mel_tensor_numel(t);
    double *v = malloc(sizeof(double) * (size_t)(n + 1));
    for (int64_t i = 0; i < n; i++)
        mel_tensor_get(t, i, &v[i], NULL);
    return v;
}

// |got - want| <= atol + rtol |want| for all; the first misfit is reported.
static inline void close_to(const char *what, const mel_tensor *got, const double *want, double atol, double rtol) {
    check_count++;
    int64_t n = got ? mel_tensor_numel(got) : 0;
    bool fine = got != NULL;
    for (int64_t i = 0; i < n && fine; i++) {
        double v;
        mel_tensor_get(got, i, &v, NULL);
        if (want[i] != want[i] ? v != v : v == want[i] || fabs(v - want[i]) <= atol + rtol * fabs(want[i])) continue;
        fprintf(stderr, "%s: at %lld: %.9g, wanted %.9g\n", what, (long long)i, v, want[i]);
        fine = false;
    }
    if (!fine) check_failures++;
}

static inline void shape_is(const mel_tensor *t, int ndim, const int64_t *shape) {
    bool same = t && mel_tensor_ndim(t) == ndim;
    for (int i = 0; i < ndim && same; i++)
        same = mel_tensor_shape(t)[i] == shape[i];
    CHECK(same);
}

#define DROP(...)                                                                                                      \
    do {                                                                                                               \
        mel_tensor *drop_[] = {__VA_ARGS__};                                                                           \
        for (size_t d_ = 0; d_ < sizeof drop_ / sizeof *drop_; d_++)                                                   \
            mel_tensor_unref(drop_[d_]);                                                                               \
    } while (0)

static inline double act_of(mel_act act, double x) {
    switch (act) {
    case MEL_ACT_SILU: return x / (1 + exp(-x));
    case MEL_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case MEL_ACT_GELU_ERF: return 0.5 * x * (1 + erf(x * 0.7071067811865476));
    case MEL_ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case MEL_ACT_RELU: return x > 0 ? x : 0;
    case MEL_ACT_TANH: return tanh(x);
    case MEL_ACT_SIGMOID: return 1 / (1 + exp(-x));
    default: return x;
    }
}

#endif
