// Resampling of one axis: every output is a weighted sum of a few inputs; the weights are made once.
#include "ops/ops.h"

#include <math.h>
#include <string.h>

// Cubic convolution, Keys 1981. a is -0.75 without antialias and -0.5 with it, as users know it from PyTorch.
static double cubic(double x, double a) {
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return 0;
}

static double triangle(double x) {
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

// taps weights and indices for each of `size` outputs over n inputs.
static void make_taps(
    mel_resize_mode mode, bool antialias, int64_t n, int64_t size, int taps, float *weights, int64_t *index) {
    double scale = (double)n / (double)size;
    for (int64_t o = 0; o < size; o++) {
        float *w = weights + o * taps;
        int64_t *at = index + o * taps;
        memset(w, 0, sizeof(float) * (size_t)taps);
        for (int t = 0; t < taps; t++)
            at[t] = 0;
        double centre = ((double)o + 0.5) * scale;
        if (mode == MEL_NEAREST) {
            int64_t i = (int64_t)floor(centre);
            at[0] = i >= n ? n - 1 : i;
            w[0] = 1;
            continue;
        }
        double sum = 0;
        if (mode == MEL_AREA || (antialias && scale > 1)) {
            double support = mode == MEL_AREA ? scale / 2 : (mode == MEL_BICUBIC ? 2 : 1) * scale;
            int64_t lo = (int64_t)floor(centre - support + (mode == MEL_AREA ? 1e-9 : 0.5));
            int64_t hi = (int64_t)(mode == MEL_AREA ? ceil(centre + support - 1e-9) : floor(centre + support + 0.5));
            if (lo < 0) lo = 0;
            if (hi > n) hi = n;
            for (int64_t i = lo; i < hi && i - lo < taps; i++) {
                double x;
                if (mode == MEL_AREA) {
                    double a = fmax((double)i, centre - support), b = fmin((double)i + 1, centre + support);
                    x = fmax(0, b - a);
                } else {
                    double distance = ((double)i + 0.5 - centre) / scale;
                    x = mode == MEL_BICUBIC ? cubic(distance, -0.5) : triangle(distance);
                }
                w[i - lo] = (float)x;
                at[i - lo] = i;
                sum += x;
            }
            for (int t = 0; t < taps && sum != 0; t++)
                w[t] = (float)(w[t] / sum);
            continue;
        }
        double src = centre - 0.5;
        if (mode == MEL_BILINEAR && src < 0) src = 0;
        int64_t base = (int64_t)floor(src);
        double f = src - (double)base;
        int first = mode == MEL_BICUBIC ? -1 : 0, count = mode == MEL_BICUBIC ? 4 : 2;
        for (int t = 0; t < count; t++) {
            int64_t i = base + first + t;
            at[t] = i < 0 ? 0 : i >= n ? n - 1 : i;
            w[t] = (float)(mode == MEL_BICUBIC ? cubic(f - (first + t), -0.75) : t ? f : 1 - f);
        }
    }
}

mel_status mel_resize(const mel_tensor *x, int axis, int64_t size, mel_resize_mode mode, bool antialias,
    mel_tensor **out, mel_error *err) {
    int a;
    char sx[128];
    MEL_SPAN("resize");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_axis(x, axis, "resize", &a, err);
    if (s) return s;
    if (!mel_is_float(x->dtype) && x->dtype != MEL_U8)
        return mel_fail(err, MEL_EINVAL, "resize: floats or u8 are wanted, not %s", mel_dtype_name(x->dtype));
    if ((unsigned)mode > MEL_AREA) return mel_fail(err, MEL_EINVAL, "resize: unknown mode %d", (int)mode);
    int64_t n = x->shape[a];
    if (size < 1 || size > 1 << 20 || n < 1)
        return mel_fail(err, MEL_EINVAL, "resize: axis %d of %s to %lld", a + 1,
            mel_tensor_shape_text(x, sx, sizeof sx), (long long)size);
    double scale = (double)n / (double)size;
    int taps = mode == MEL_NEAREST ? 1 : mode == MEL_BICUBIC ? 4 : 2;
    if (mode == MEL_AREA)
        taps = (int)ceil(scale) + 2;
    else if (antialias && scale > 1 && mode != MEL_NEAREST)
        taps = 2 * (int)ceil((mode == MEL_BICUBIC ? 2 : 1) * scale) + 2;
    int64_t outer = 1, inner = 1, shape[MEL_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[a] = size;
    for (int i = 0; i < x->ndim; i++) {
        if (i < a) outer *= x->shape[i];
        if (i > a) inner *= x->shape[i];
    }
    mel_tensor *src = NULL, *y = NULL, *result = NULL;
    float *weights = NULL;
    int64_t *index = NULL;
    s = mel_tensor_cast(x, MEL_F32, &src, err);
    if (!s) s = mel_tensor_create(MEL_F32, x->ndim, shape, &y, err);
    if (!s && !(weights = mel_alloc(sizeof(float) * (size_t)(size * taps), err))) s = MEL_ENOMEM;
    if (!s && !(index = mel_alloc(sizeof(int64_t) * (size_t)(size * taps), err))) s = MEL_ENOMEM;
    if (!s) {
        make_taps(mode, antialias, n, size, taps, weights, index);
        const row_kernels *k = mel_rows();
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (outer * size * inner >= MEL_PARALLEL_FROM)
        for (int64_t job = 0; job < outer * size; job++) {
            const float *from = (const float *)src->data + job / size * n * inner;
            float *to = (float *)y->data + job * inner;
            const float *w = weights + job % size * taps;
            const int64_t *at = index + job % size * taps;
            memset(to, 0, sizeof(float) * (size_t)inner);
            for (int t = 0; t < taps; t++) {
                if (w[t] == 0) continue;
                if (inner == 1)
                    to[0] += w[t] * from[at[t]];
                else
                    k->axpy(to, w[t], from + at[t] * inner, 1, NULL, 0, inner);
            }
        }
        s = mel_tensor_cast(y, x->dtype, &result, err);
    }
    mel_free(weights);
    mel_free(index);
    mel_tensor_unref(src);
    mel_tensor_unref(y);
    if (!s) *out = result;
    return s;
}
