// Attention, matrix products, linear and convolution layers against naive loops in double.
#include "ops_help.h"

// ---- attention ------------------------------------------------------------------------------------------

typedef struct attention_case {
    int64_t b, lq, lk, h, d;
    mel_dtype dtype;
    bool causal, bias, key_bias, scatter, s8, mask, values;
} attention_case;

// Values as they are after 8 bits, a token of a head at a time; keys less their mean over the tokens.
static void quantize_naively(double *x, int64_t b, int64_t l, int64_t h, int64_t d, bool keys) {
    for (int64_t r = 0; r < b * h && keys; r++)
        for (int64_t c = 0; c < d; c++) {
            double *first = x + (r / h * l * h + r % h) * d + c, mean = 0;
            for (int64_t i = 0; i < l; i++)
                mean += first[i * h * d] / (double)l;
            for (int64_t i = 0; i < l; i++)
                first[i * h * d] -= mean;
        }
    for (int64_t t = 0; t < b * l * h; t++) {
        double top = 0;
        for (int64_t c = 0; c < d; c++)
            top = fmax(top, fabs(x[t * d + c]));
        for (int64_t c = 0; c < d && top > 0; c++)
            x[t * d + c] = nearbyint(x[t * d + c] / top * 127) * top / 127;
    }
}

// A mask that lets through some blocks, none of the second block of queries; seen[i * nk + j] tells which.
static void random_mask(int64_t lq, int64_t lk, bool *seen, mel_tensor **offsets, mel_tensor **blocks) {
    const int64_t nq = (lq + MEL_ATTENTION_BLOCK - 1) / MEL_ATTENTION_BLOCK;
    const int64_t nk = (lk + MEL_ATTENTION_BLOCK - 1) / MEL_ATTENTION_BLOCK;
    int64_t n = 0, at = 0;
    for (int64_t i = 0; i < nq * nk; i++)
        n += seen[i] = i / nk != 1 && random_value(1) > -0.3;
    CHECK_OK(mel_tensor_create(MEL_S32, 1, (int64_t[]){nq + 1}, offsets, err));
    CHECK_OK(mel_tensor_create(MEL_S32, 1, (int64_t[]){n}, blocks, err));
    for (int64_t i = 0; i < nq; i++) {
        CHECK_OK(mel_tensor_set(*offsets, i, (double)at, err));
        for (int64_t j = 0; j < nk; j++)
            if (seen[i * nk + j]) CHECK_OK(mel_tensor_set(*blocks, at++, (double)j, err));
    }
    CHECK_OK(mel_tensor_set(*offsets, nq, (double)at, err));
}

static void attend(const attention_case *t) {
    mel_tensor *q = random_tensor(t->dtype, SHAPE(t->b, t->lq, t->h, t->d)), *y = NULL, *bias = NULL, *key = NULL;
    mel_tensor *k = random_tensor(t->dtype, SHAPE(t->b, t->lk, t->h, t->d));
    mel_tensor *v = random_tensor(t->dtype, SHAPE(t->b, t->lk, t->h, t->d));
    if (t->scatter) q = scattered(q), k = scattered(k), v = scattered(v);
    if (t->bias) bias = random_tensor(MEL_F32, SHAPE(1, t->h, t->lq, t->lk));
    if (t->key_bias) {
        key = random_tensor(MEL_F32, SHAPE(t->b, t->lk));
        for (int64_t j = 0; j < t->b * t->lk; j += 3)
            CHECK_OK(mel_tensor_set(key, j, -INFINITY, err));
    }
    double *vq = values_of(q), *vk = values_of(k), *vv = values_of(v), *vb = bias ? values_of(bias) : NULL;
    double *vm = key ? values_of(key) : NULL, scale = 1 / sqrt((double)t->d);
    if (t->s8) {
        quantize_naively(vq, t->b, t->lq, t->h, t->d, false);
        quantize_naively(vk, t->b, t->lk, t->h, t->d, true);
    }
    mel_tensor *offsets = NULL, *blocks = NULL;
    bool seen[256];
    if (t->mask) random_mask(t->lq, t->lk, seen, &offsets, &blocks);
    const int64_t nk = (t->lk + MEL_ATTENTION_BLOCK - 1) / MEL_ATTENTION_BLOCK;
    double *want = calloc((size_t)(t->b * t->lq * t->h * t->d) + 1, sizeof(double));
    double *s = malloc(sizeof(double) * (size_t)(t->lk + 1));
    for (int64_t r = 0; r < t->b * t->lq * t->h; r++) {
        int64_t b = r / (t->lq * t->h), i = r / t->h % t->lq, h = r % t->h;
        double top = -INFINITY, total = 0;
        for (int64_t j = 0; j < t->lk; j++) {
            const double *a = vq + r * t->d, *c = vk + ((b * t->lk + j) * t->h + h) * t->d;
            s[j] = 0;
            for (int64_t e = 0; e < t->d; e++)
                s[j] += scale * a[e] * c[e];
            if (vb) s[j] += vb[(h * t->lq + i) * t->lk + j];
            if (vm) s[j] += vm[b * t->lk + j];
            if (t->causal && j > i + t->lk - t->lq) s[j] = -INFINITY;
            if (t->mask && !seen[i / MEL_ATTENTION_BLOCK * nk + j / MEL_ATTENTION_BLOCK]) s[j] = -INFINITY;
            top = fmax(top, s[j]);
        }
        for (int64_t j = 0; j < t->lk; j++) {
            s[j] = top == -INFINITY ? 0 : exp(s[j] - top);
            total += s[j];
        }
        for (int64_t j = 0; j < t->lk && total > 0; j++)
            for (int64_t e = 0; e < t->d; e++)
                want[r * t->d + e] += s[j] / total * vv[((b * t->lk + j) * t->h + h) * t->d + e];
    }
    const mel_attention_options options = {.scale = scale,
        .bias = bias,
        .key_bias = key,
        .causal = t->causal,
        .dtype = MEL_F32,
        .s8_scores = t->s8,
        .s8_values = t->values,
        .offsets = offsets,
        .blocks = blocks};
    if (t->s8 || t->mask || t->values)
        CHECK_OK(mel_attention_with(q, k, v, &options, &y, err));
    else
        CHECK_OK(mel_attention(q, k, v, scale, bias, key, t->causal, MEL_F32, &y, err));
    char what[96];
    snprintf(what, sizeof what, "attention %lld %lld %lld %lld %lld %s%s%s%s%s", (long long)t->b, (long long)t->lq,
        (long long)t->lk, (long long)t->h, (long long)t->d, mel_dtype_name(t->dtype), t->causal ? " causal" : "",
        t->s8 ? " s8" : "", t->mask ? " mask" : "", t->values ? " values" : "");
    // bf16 probabilities: 8 bits of each term. In 8 bits a value may lie between two and be rounded the other way.
    if (!t->values) close_to(what, y, want, t->dtype == MEL_BF16 ? 6e-3 : t->s8 ? 2e-3 : 5e-6, 0);
    if (t->values) {
        // What 255 steps leave of small probabilities beside a large one: a bound for all together.
        double off = 0, size = 0, *got = values_of(y);
        for (int64_t i = 0; i < t->b * t->lq * t->h * t->d; i++) {
            off += (got[i] - want[i]) * (got[i] - want[i]);
            size += want[i] * want[i];
        }
        if (sqrt(off / size) > 0.02) fprintf(stderr, "%s: %g off\n", what, sqrt(off / size));
        CHECK(sqrt(off / size) <= 0.02);
        free(got);
    }
    free(vq), free(vk), free(vv), free(vb), free(vm), free(want), free(s);
    DROP(q, k, v, bias, key, y, offsets, blocks);
}

static void attention(void) {
    static const attention_case cases[] = {
        {1, 1, 1, 1, 1, MEL_F32, false, false, false, false, false, false, false},
        {2, 5, 7, 3, 10, MEL_F32, false, false, false, true, false, false, false},
        {1, 97, 257, 2, 33, MEL_F32, false, true, true, false, false, false,
            false}, // one past a block of queries and of keys
        {2, 100, 300, 2, 64, MEL_BF16, false, false, true, true, false, false, false},
        {1, 97, 257, 1, 33, MEL_BF16, true, true, false, false, false, false,
            false}, // an odd width: half a pair of padding
        {1, 300, 300, 1, 16, MEL_F32, true, false, false, false, false, false, false},
        {1, 7, 3, 2, 8, MEL_F32, true, false, false, false, false, false, false}, // the first queries see no key
        {1, 3, 600, 1, 128, MEL_BF16, true, false, true, false, false, false, false},
        {1, 4, 5, 1, 20, MEL_F16, false, false, false, false, false, false, false},
        {1, 5, 7, 3, 10, MEL_F32, false, false, false, true, true, false, false},
        {2, 97, 257, 2, 33, MEL_F32, true, true, true, false, true, false, false},
        {1, 200, 300, 2, 128, MEL_BF16, false, false, false, false, true, false, false},
        {2, 101, 301, 1, 64, MEL_BF16, false, false, true, true, true, false, false},
        {1, 1, 1, 1, 1, MEL_F32, false, false, false, false, false, true, false},
        {2, 200, 777, 2, 24, MEL_F32, false, false, false, true, false, true, false},
        {1, 200, 777, 2, 64, MEL_BF16, false, false, false, false, true, true, false},
        {1, 500, 501, 1, 16, MEL_F32, true, false, false, false, false, true, false},
        {1, 130, 400, 2, 16, MEL_F32, false, true, true, false, false, true, false},
        {1, 1, 1, 1, 1, MEL_F32, false, false, false, false, false, false, true},
        {2, 97, 301, 2, 70, MEL_F32, false, false, false, true, false, false, true},
        {1, 200, 777, 2, 128, MEL_BF16, false, false, false, false, true, true, true},
        {2, 70, 600, 1, 64, MEL_BF16, false, false, false, false, true, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        attend(&cases[i]);
    // No keys, no queries.
    mel_tensor *q = random_tensor(MEL_F32, SHAPE(1, 2, 1, 4)), *none = random_tensor(MEL_F32, SHAPE(1, 0, 1, 4)), *y;
    CHECK_OK(mel_attention(q, none, none, 1, NULL, NULL, false, MEL_SAME, &y, err));
    close_to("no keys", y, (double[8]){0}, 0, 0);
    DROP(y);
    CHECK_OK(mel_attention(none, q, q, 1, NULL, NULL, false, MEL_SAME, &y, err));
    CHECK(mel_tensor_numel(y) == 0);
    DROP(y, q, none);
}

// ---- products -------------------------------------------------------------------------------------------

static void matmul_case(mel_tensor *a, mel_tensor *b, bool transpose, double alpha, mel_dtype dtype, double tolerance) {
    mel_tensor *y = NULL;
    CHECK_OK(mel_matmul(a, b, transpose, alpha, dtype, &y, err));
    int na = mel_tensor_ndim(a), nb = mel_tensor_ndim(b), n = mel_tensor_ndim(y);
    const int64_t *sa = mel_tensor_shape(a), *sb = mel_tensor_shape(b), *sy = mel_tensor_shape(y);
    int64_t rows = sy[n - 2], columns = sy[n - 1], k = sa[na - 1];
    double *va = values_of(a), *vb = values_of(b), *want = calloc((size_t)mel_tensor_numel(y) + 1, sizeof(double));
    for (int64_t i = 0; i < mel_tensor_numel(y); i++) {
        int64_t rest = i / rows / columns, oa = 0, ob = 0, step_a = 1, step_b = 1;
        for (int d = n - 3; d >= 0; d--) {
            int64_t at = rest % sy[d], da = d - (n - na) >= 0 ? sa[d - (n - na)] : 1;
            int64_t db = d - (n - nb) >= 0 ? sb[d - (n - nb)] : 1;
            rest /= sy[d];
            oa += (da > 1 ? at : 0) * step_a;
            ob += (db > 1 ? at : 0) * step_b;
            step_a *= da;
            step_b *= db;
        }
        int64_t r = i / columns % rows, c = i % columns;
        for (int64_t t = 0; t < k; t++)
            want[i] +=
                alpha * va[(oa * rows + r) * k + t] * vb[ob * k * columns + (transpose ? c * k + t : t * columns + c)];
    }
    close_to("matmul", y, want, tolerance, tolerance);
    free(va), free(vb), free(want);
    DROP(a, b, y);
}

static void matmuls(void) {
    for (int i = 0; i < 2; i++) {
        mel_dtype d = i ? MEL_BF16 : MEL_F32;
        double t = i ? 2e-2 : 2e-5;
        matmul_case(random_tensor(d, SHAPE(3, 7)), random_tensor(d, SHAPE(7, 5)), false, 1, MEL_SAME, t);
        matmul_case(random_tensor(d, SHAPE(3, 7)), random_tensor(d, SHAPE(5, 7)), true, 0.3, MEL_F32, t);
        matmul_case(random_tensor(d, SHAPE(4, 3, 7)), random_tensor(d, SHAPE(4, 7, 5)), false, 1, MEL_SAME, t);
        matmul_case(random_tensor(d, SHAPE(4, 3, 7)), random_tensor(d, SHAPE(5, 7)), true, 2, MEL_SAME, t);
        matmul_case(random_tensor(d, SHAPE(3, 7)), random_tensor(d, SHAPE(2, 4, 7, 5)), false, 1, MEL_SAME, t);
        matmul_case(random_tensor(d, SHAPE(2, 1, 3, 7)), random_tensor(d, SHAPE(4, 7, 5)), false, 1, MEL_SAME, t);
        matmul_case(scattered(random_tensor(d, SHAPE(4, 3, 7))), scattered(random_tensor(d, SHAPE(4, 5, 7))), true, 1,
            MEL_SAME, t);
    }
    matmul_case(random_tensor(MEL_BF16, SHAPE(3, 7)), random_tensor(MEL_F32, SHAPE(7, 5)), false, 1, MEL_SAME, 2e-2);
    matmul_case(random_tensor(MEL_F16, SHAPE(3, 7)), random_tensor(MEL_F32, SHAPE(7, 5)), false, 1, MEL_SAME, 2e-2);
    matmul_case(random_tensor(MEL_F32, SHAPE(3, 0)), random_tensor(MEL_F32, SHAPE(0, 5)), false, 1, MEL_SAME, 0);
    matmul_case(random_tensor(MEL_F32, SHAPE(0, 7)), random_tensor(MEL_F32, SHAPE(7, 5)), false, 1, MEL_SAME, 0);
}

static void linears(void) {
    enum {
        N = 13,
        K = 21
    };
    for (int kind = 0; kind < 8; kind++) {
        mel_dtype compute = kind & 1 ? MEL_BF16 : MEL_F32, in = kind & 2 ? MEL_BF16 : MEL_F32;
        mel_tensor *w = random_tensor(kind & 1 ? MEL_BF16 : MEL_F32, SHAPE(N, K));
        mel_tensor *bias = kind & 4 ? random_tensor(MEL_F32, SHAPE(N)) : NULL;
        mel_linear *layer = NULL;
        CHECK_OK(mel_linear_create(w, bias, compute, &layer, err));
        CHECK(mel_linear_inputs(layer) == K && mel_linear_outputs(layer) == N);
        double *vw = values_of(w), *vb = bias ? values_of(bias) : NULL;
        DROP(w, bias); // the layer keeps what it needs
        // More sizes than the layer keeps operations for, and back to the first.
        for (int64_t m = 0; m <= 12; m++)
            for (int act = MEL_ACT_NONE; act <= MEL_ACT_SIGMOID; act += m == 3 ? 1 : 8) {
                mel_dtype out = m % 3 == 0 ? MEL_SAME : m % 3 == 1 ? MEL_F32 : MEL_F16;
                mel_tensor *x = random_tensor(in, SHAPE(m % 11, 2, K)), *y = NULL;
                if (m == 5) x = scattered(x);
                CHECK_OK(mel_linear_run(layer, x, (mel_act)act, out, &y, err));
                shape_is(y, SHAPE(m % 11, 2, N));
                CHECK(mel_tensor_dtype(y) == (out == MEL_SAME ? in : out));
                double *vx = values_of(x), *want = calloc((size_t)(m * 2 * N) + 1, sizeof(double));
                for (int64_t i = 0; i < m % 11 * 2 * N; i++) {
                    for (int k = 0; k < K; k++)
                        want[i] += vx[i / N * K + k] * vw[i % N * K + k];
                    want[i] = act_of((mel_act)act, want[i] + (vb ? vb[i % N] : 0));
                }
                bool half = mel_tensor_dtype(y) != MEL_F32 || (compute == MEL_BF16 && in == MEL_F32);
                close_to("linear", y, want, half ? 6e-2 : act == MEL_ACT_GELU_TANH ? 2e-4 : 2e-5, half ? 1e-2 : 1e-5);
                free(vx), free(want);
                DROP(x, y);
            }
        free(vw), free(vb);
        mel_linear_free(layer);
    }
    mel_linear_free(NULL);
}

// ---- convolutions ---------------------------------------------------------------------------------------

typedef struct conv_case {
    int spatial;
    int64_t n, ic, oc, groups;
    int64_t in[3], kernel[3], stride[3], before[3], after[3];
} conv_case;

static void convolve(const conv_case *t, mel_dtype dtype) {
    const int sp = t->spatial;
    int64_t wshape[5] = {t->oc, t->ic / t->groups}, xshape[5] = {t->n}, out[3] = {1, 1, 1}, in[3] = {1, 1, 1};
    int64_t kernel[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, before[3] = {0};
    for (int i = 0; i < sp; i++) {
        int o = 3 - sp + i; // two spatial dimensions are H and W of one frame
        wshape[2 + i] = kernel[o] = t->kernel[i];
        xshape[1 + i] = in[o] = t->in[i];
        stride[o] = t->stride[i];
        before[o] = t->before[i];
        out[o] = (t->in[i] + t->before[i] + t->after[i] - t->kernel[i]) / t->stride[i] + 1;
    }
    xshape[1 + sp] = t->ic;
    mel_tensor *w = random_tensor(dtype, sp + 2, wshape), *b = random_tensor(MEL_F32, SHAPE(t->oc));
    mel_tensor *x = scattered(random_tensor(dtype, sp + 2, xshape)), *y = NULL;
    mel_conv *layer = NULL;
    CHECK_OK(mel_conv_create(w, b, t->stride, t->before, t->after, t->groups, dtype, &layer, err));
    double *vw = values_of(w), *vb = values_of(b), *vx = values_of(x);
    DROP(w, b);
    int64_t oc = t->oc / t->groups, ic = t->ic / t->groups, total = t->n * out[0] * out[1] * out[2] * t->oc;
    double *want = malloc(sizeof(double) * (size_t)(total + 1));
    for (int64_t i = 0; i < total; i++) {
        int64_t o = i % t->oc, ow = i / t->oc % out[2], oh = i / t->oc / out[2] % out[1];
        int64_t ot = i / t->oc / out[2] / out[1] % out[0], n = i / t->oc / out[2] / out[1] / out[0];
        double s = vb[o];
        for (int64_t c = 0; c < ic; c++)
            for (int64_t k = 0; k < kernel[0] * kernel[1] * kernel[2]; k++) {
                int64_t z = ot * stride[0] - before[0] + k / (kernel[1] * kernel[2]);
                int64_t r = oh * stride[1] - before[1] + k / kernel[2] % kernel[1];
                int64_t q = ow * stride[2] - before[2] + k % kernel[2];
                if (z < 0 || z >= in[0] || r < 0 || r >= in[1] || q < 0 || q >= in[2]) continue;
                s += vx[(((n * in[0] + z) * in[1] + r) * in[2] + q) * t->ic + o / oc * ic + c] *
                     vw[(o * ic + c) * kernel[0] * kernel[1] * kernel[2] + k];
            }
        want[i] = act_of(MEL_ACT_SILU, s);
    }
    for (int pass = 0; pass < 2; pass++) {
        CHECK_OK(mel_conv_run(layer, x, MEL_ACT_SILU, pass ? MEL_F16 : MEL_SAME, &y, err));
        if (sp == 3)
            shape_is(y, SHAPE(t->n, out[0], out[1], out[2], t->oc));
        else
            shape_is(y, SHAPE(t->n, out[1], out[2], t->oc));
        double tolerance = dtype == MEL_F32 && !pass ? 3e-5 : 2e-2;
        close_to(sp == 3 ? "conv 3d" : "conv 2d", y, want, tolerance, tolerance);
        DROP(y);
    }
    // More sizes than the layer keeps operations for.
    for (int64_t extra = 1; extra < 11; extra++) {
        xshape[0] = 1;
        xshape[1] = t->in[0] + extra;
        mel_tensor *other = random_tensor(dtype, sp + 2, xshape);
        CHECK_OK(mel_conv_run(layer, other, MEL_ACT_NONE, MEL_SAME, &y, err));
        DROP(other, y);
    }
    CHECK_OK(mel_conv_run(layer, x, MEL_ACT_SILU, MEL_F32, &y, err));
    double tolerance = dtype == MEL_F32 ? 3e-5 : 1e-4;
    close_to("conv again", y, want, tolerance, tolerance);
    free(vw), free(vb), free(vx), free(want);
    mel_conv_free(layer);
    DROP(x, y);
}

static void convolutions(void) {
    static const conv_case cases[] = {
        {2, 2, 3, 5, 1, {6, 7}, {3, 3}, {1, 1}, {1, 1}, {1, 1}},
        {2, 1, 4, 8, 2, {9, 8}, {3, 2}, {2, 2}, {0, 1}, {1, 0}}, // a remainder is left over
        {2, 1, 16, 16, 16, {5, 5}, {3, 3}, {1, 1}, {1, 1}, {1, 1}},
        {2, 1, 3, 6, 3, {5, 5}, {3, 3}, {1, 1}, {1, 1}, {1, 1}},
        {2, 1, 20, 3, 1, {4, 4}, {1, 1}, {1, 1}, {0, 0}, {0, 0}},
        {3, 1, 4, 6, 1, {5, 4, 6}, {3, 3, 3}, {1, 1, 1}, {2, 1, 1}, {0, 1, 1}}, // causal
        {3, 2, 3, 8, 1, {4, 6, 6}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0}, {0, 0, 0}}, // patches
        {3, 1, 4, 4, 1, {7, 5, 5}, {3, 1, 1}, {2, 1, 1}, {0, 0, 0}, {0, 0, 0}},
        {3, 1, 16, 32, 1, {3, 5, 5}, {3, 3, 3}, {1, 2, 2}, {2, 0, 0}, {0, 1, 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        convolve(&cases[i], MEL_F32);
        convolve(&cases[i], MEL_BF16);
    }
    mel_conv_free(NULL);
}

int main(void) {
    int64_t live = mel_mem_live();
    mel_isa best = mel_cpu_isa();
    for (int isa = best; isa >= MEL_ISA_PLAIN; isa--) {
        mel_set_isa((mel_isa)isa);
        RUN(attention);
    }
    mel_set_isa(best);
    RUN(matmuls);
    RUN(linears);
    RUN(convolutions);
    CHECK(mel_mem_live() == live);
    return CHECK_DONE();
}
