// Each operation without state against a naive loop in double, on every instruction set this processor has.
#include "ops_help.h"

static void activations(void) {
    mel_tensor *x = scattered(random_tensor(MEL_F32, SHAPE(7, 9))), *y = NULL;
    double *v = values_of(x), want[63];
    for (int act = MEL_ACT_NONE; act <= MEL_ACT_SIGMOID; act++) {
        for (int i = 0; i < 63; i++)
            want[i] = act_of((mel_act)act, v[i]);
        CHECK_OK(mel_activate((mel_act)act, x, MEL_SAME, &y, err));
        close_to("activate", y, want, 3e-6, 3e-6);
        DROP(y);
        CHECK_OK(mel_activate((mel_act)act, x, MEL_BF16, &y, err));
        CHECK(mel_tensor_dtype(y) == MEL_BF16);
        close_to("activate bf16", y, want, 3e-6, 1.0 / 256);
        DROP(y);
    }
    free(v);
    DROP(x);
}

static double unary_of(mel_unary_op op, double x) {
    switch (op) {
    case MEL_NEG: return -x;
    case MEL_ABS: return fabs(x);
    case MEL_EXP: return exp(x);
    case MEL_LOG: return log(x);
    case MEL_SQRT: return sqrt(x);
    case MEL_RSQRT: return 1 / sqrt(x);
    case MEL_SQUARE: return x * x;
    case MEL_SIN: return sin(x);
    case MEL_COS: return cos(x);
    case MEL_ROUND: return nearbyint(x);
    case MEL_FLOOR: return floor(x);
    default: return 1 / x;
    }
}

static void unaries(void) {
    mel_tensor *x = random_tensor(MEL_F32, SHAPE(5, 40)), *y = NULL;
    double *v = values_of(x), want[200];
    for (int op = MEL_NEG; op <= MEL_RECIP; op++) {
        for (int i = 0; i < 200; i++)
            want[i] = unary_of((mel_unary_op)op, v[i]);
        CHECK_OK(mel_unary((mel_unary_op)op, x, MEL_SAME, &y, err));
        close_to("unary", y, want, 1e-6, 3e-6);
        DROP(y);
    }
    free(v);
    DROP(x);
}

static double binary_of(mel_binary_op op, double a, double b) {
    switch (op) {
    case MEL_ADD: return a + b;
    case MEL_SUB: return a - b;
    case MEL_MUL: return a * b;
    case MEL_DIV: return a / b;
    case MEL_MAX: return a > b ? a : b;
    case MEL_MIN: return a < b ? a : b;
    default: return pow(a, b);
    }
}

// [3, 1, 5] with [4, 1], one of them scattered.
static void binaries(void) {
    mel_tensor *a = scattered(random_tensor(MEL_F32, SHAPE(3, 1, 5))), *b = random_tensor(MEL_F32, SHAPE(4, 1)), *y;
    double *va = values_of(a), *vb = values_of(b), want[60];
    for (int op = MEL_ADD; op <= MEL_POW; op++) {
        for (int i = 0; i < 60; i++)
            want[i] = binary_of((mel_binary_op)op, va[i / 20 * 5 + i % 5], vb[i / 5 % 4]);
        CHECK_OK(mel_binary((mel_binary_op)op, a, b, &y, err));
        shape_is(y, SHAPE(3, 4, 5));
        close_to("binary", y, want, 1e-7, 1e-5);
        DROP(y);
        for (int i = 0; i < 15; i++)
            want[i] = binary_of((mel_binary_op)op, va[i], 1.5);
        CHECK_OK(mel_binary_scalar((mel_binary_op)op, a, 1.5, false, &y, err));
        close_to("binary_scalar", y, want, 1e-7, 1e-5);
        DROP(y);
        for (int i = 0; i < 15; i++)
            want[i] = binary_of((mel_binary_op)op, 1.5, va[i]);
        CHECK_OK(mel_binary_scalar((mel_binary_op)op, a, 1.5, true, &y, err));
        close_to("scalar_binary", y, want, 1e-7, 1e-5);
        DROP(y);
    }
    free(va);
    free(vb);
    DROP(a, b);
    // The result's dtype: the common one, else f32.
    a = random_tensor(MEL_BF16, SHAPE(4));
    b = random_tensor(MEL_F16, SHAPE(4));
    CHECK_OK(mel_binary(MEL_ADD, a, a, &y, err));
    CHECK(mel_tensor_dtype(y) == MEL_BF16);
    DROP(y);
    CHECK_OK(mel_binary(MEL_ADD, a, b, &y, err));
    CHECK(mel_tensor_dtype(y) == MEL_F32);
    DROP(y, a, b);
}

// Long rows, rows of one element, an empty shape: how work is cut must not show.
static void binary_shapes(void) {
    static const int64_t shapes[][2] = {{1, 70001}, {70001, 1}, {300, 299}, {0, 5}, {5, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int kind = 0; kind < 3; kind++) {
            const int64_t n = shapes[s][0] * shapes[s][1], m = shapes[s][1];
            mel_tensor *a = random_tensor(MEL_F32, 2, shapes[s]), *y = NULL;
            mel_tensor *b = kind == 0   ? random_tensor(MEL_BF16, 2, shapes[s])
                            : kind == 1 ? random_tensor(MEL_F32, 1, &m)
                                        : random_tensor(MEL_F32, 2, (int64_t[]){shapes[s][0], 1});
            CHECK_OK(mel_binary(MEL_SUB, a, b, &y, err));
            double *va = values_of(a), *vb = values_of(b);
            for (int64_t i = 0; i < n; i++)
                va[i] -= vb[kind == 0 ? i : kind == 1 ? i % m : i / m];
            close_to("binary shapes", y, va, 1e-6, 0);
            free(va);
            free(vb);
            DROP(a, b, y);
        }
}

// Integers are rounded and saturated, as casts do.
static void filling(void) {
    static const double values[] = {2.7, -2.7, 300, -1e300, 1e300, NAN, -INFINITY},
                        want[] = {3, -3, 127, -128, 127, 0, -128};
    for (int i = 0; i < 7; i++) {
        mel_tensor *t = NULL;
        CHECK_OK(mel_tensor_zeros(MEL_S8, SHAPE(3), &t, err));
        CHECK_OK(mel_tensor_fill(t, values[i], err));
        close_to("fill", t, (double[]){want[i], want[i], want[i]}, 0, 0);
        DROP(t);
    }
}

static void clamping(void) {
    mel_tensor *x = random_tensor(MEL_F32, SHAPE(50)), *y = NULL;
    double *v = values_of(x);
    for (int i = 0; i < 50; i++)
        v[i] = fmin(fmax(v[i], -0.5), 1);
    CHECK_OK(mel_clamp(x, -0.5, 1, &y, err));
    close_to("clamp", y, v, 0, 0);
    free(v);
    DROP(x, y);
}

static void adding_in_place(void) {
    for (int kind = 0; kind < 4; kind++) {
        mel_dtype dtype = kind == 3 ? MEL_BF16 : MEL_F32;
        mel_tensor *y = random_tensor(dtype, SHAPE(3, 4, 50)), *x = random_tensor(MEL_F32, SHAPE(4, 50)), *gate = NULL;
        if (kind == 1) y = scattered(y);
        if (kind > 0) gate = random_tensor(MEL_F32, SHAPE(3, 1, 50));
        if (kind == 2) {
            DROP(gate);
            gate = random_tensor(MEL_BF16, SHAPE(3, 1, 1));
        }
        double *vy = values_of(y), *vx = values_of(x), *vg = gate ? values_of(gate) : NULL;
        for (int i = 0; i < 600; i++)
            vy[i] += 0.75 * vx[i % 200] * (!gate ? 1 : kind == 2 ? vg[i / 200] : vg[i / 200 * 50 + i % 50]);
        CHECK_OK(mel_add_inplace(y, 0.75, x, gate, err));
        close_to("add_inplace", y, vy, 2e-6, kind == 3 ? 1.0 / 200 : 0);
        free(vy);
        free(vx);
        free(vg);
        DROP(y, x, gate);
    }
}

static void reductions(void) {
    const int64_t shape[] = {4, 5, 6};
    mel_tensor *x = scattered(random_tensor(MEL_F32, 3, shape)), *y = NULL;
    double *v = values_of(x);
    for (int op = MEL_SUM; op <= MEL_SUMSQ; op++)
        for (int axis = -3; axis < 3; axis++) {
            int a = axis < 0 ? axis + 3 : axis;
            int64_t inner = a == 0 ? 30 : a == 1 ? 6 : 1, n = shape[a], outer = 120 / n / inner;
            double want[30];
            for (int64_t o = 0; o < outer; o++)
                for (int64_t j = 0; j < inner; j++) {
                    double r = op == MEL_REDUCE_MAX ? -INFINITY : op == MEL_REDUCE_MIN ? INFINITY : 0;
                    for (int64_t i = 0; i < n; i++) {
                        double e = v[(o * n + i) * inner + j];
                        r = op == MEL_REDUCE_MAX   ? fmax(r, e)
                            : op == MEL_REDUCE_MIN ? fmin(r, e)
                                                   : r + (op == MEL_SUMSQ ? e * e : e);
                    }
                    want[o * inner + j] = op == MEL_MEAN ? r / (double)n : r;
                }
            CHECK_OK(mel_reduce((mel_reduce_op)op, x, axis, axis < 0, &y, err));
            CHECK(mel_tensor_ndim(y) == (axis < 0 ? 3 : 2));
            if (axis < 0) CHECK(mel_tensor_shape(y)[a] == 1);
            close_to("reduce", y, want, 1e-6, 1e-5);
            DROP(y);
        }
    double all[5] = {0, 0, -INFINITY, INFINITY, 0}, got;
    for (int i = 0; i < 120; i++) {
        all[MEL_SUM] += v[i];
        all[MEL_REDUCE_MAX] = fmax(all[MEL_REDUCE_MAX], v[i]);
        all[MEL_REDUCE_MIN] = fmin(all[MEL_REDUCE_MIN], v[i]);
        all[MEL_SUMSQ] += v[i] * v[i];
    }
    all[MEL_MEAN] = all[MEL_SUM] / 120;
    for (int op = MEL_SUM; op <= MEL_SUMSQ; op++) {
        CHECK_OK(mel_reduce_all((mel_reduce_op)op, x, &got, err));
        CHECK_NEAR(got, all[op], 1e-9);
    }
    CHECK_OK(mel_dot(x, x, &got, err));
    CHECK_NEAR(got, all[MEL_SUMSQ], 1e-9);
    int64_t count = -1;
    CHECK_OK(mel_tensor_set(x, 7, NAN, err));
    CHECK_OK(mel_tensor_set(x, 70, -INFINITY, err));
    CHECK_OK(mel_count_nonfinite(x, &count, err));
    CHECK(count == 2);
    free(v);
    DROP(x);
    // Empty: a sum is 0.
    x = random_tensor(MEL_F32, SHAPE(0, 3));
    CHECK_OK(mel_reduce(MEL_SUM, x, 0, false, &y, err));
    close_to("empty sum", y, (double[]){0, 0, 0}, 0, 0);
    CHECK_OK(mel_reduce_all(MEL_SUM, x, &got, err));
    CHECK(got == 0);
    DROP(x, y);
}

static void moving(void) {
    // concat of [2, 1, 3], [2, 4, 3] along 1; the second scattered
    mel_tensor *a = random_tensor(MEL_F32, SHAPE(2, 1, 3)), *b = scattered(random_tensor(MEL_F32, SHAPE(2, 4, 3)));
    mel_tensor *y = NULL;
    double *va = values_of(a), *vb = values_of(b), want[128];
    for (int i = 0; i < 30; i++) {
        int o = i / 15, t = i / 3 % 5, c = i % 3;
        want[i] = t == 0 ? va[o * 3 + c] : vb[(o * 4 + t - 1) * 3 + c];
    }
    CHECK_OK(mel_concat(2, (const mel_tensor *const[]){a, b}, -2, &y, err));
    shape_is(y, SHAPE(2, 5, 3));
    close_to("concat", y, want, 0, 0);
    DROP(y);
    // pad [2, 4, 3] along 1 by 2 and 1
    for (int edge = 0; edge < 2; edge++) {
        for (int i = 0; i < 42; i++) {
            int o = i / 21, t = i / 3 % 7 - 2, c = i % 3, in = t < 0 ? 0 : t > 3 ? 3 : t;
            want[i] = t == in || edge ? vb[(o * 4 + in) * 3 + c] : -7;
        }
        CHECK_OK(mel_pad(b, 1, 2, 1, -7, edge, &y, err));
        shape_is(y, SHAPE(2, 7, 3));
        close_to("pad", y, want, 0, 0);
        DROP(y);
    }
    free(va);
    free(vb);
    DROP(a, b);
    // gather
    mel_tensor *table = scattered(random_tensor(MEL_BF16, SHAPE(9, 3))), *ids = NULL;
    double *vt = values_of(table);
    for (int kind = 0; kind < 2; kind++) {
        CHECK_OK(mel_tensor_create(kind ? MEL_S32 : MEL_I64, SHAPE(2, 5), &ids, err));
        for (int i = 0; i < 10; i++) {
            CHECK_OK(mel_tensor_set(ids, i, i * 7 % 9, err));
            for (int c = 0; c < 3; c++)
                want[i * 3 + c] = vt[i * 7 % 9 * 3 + c];
        }
        CHECK_OK(mel_gather(table, ids, kind ? MEL_F32 : MEL_SAME, &y, err));
        CHECK(mel_tensor_dtype(y) == (kind ? MEL_F32 : MEL_BF16));
        shape_is(y, SHAPE(2, 5, 3));
        close_to("gather", y, want, 0, 0);
        DROP(y, ids);
    }
    free(vt);
    DROP(table);
}

static double keys(double x, double a) {
    x = fabs(x);
    if (x < 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
    return x < 2 ? a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a : 0;
}

static void resizing(void) {
    enum {
        N = 9
    };
    mel_tensor *x = random_tensor(MEL_F32, SHAPE(2, N, 3)), *y = NULL;
    double *v = values_of(x);
    static const int64_t sizes[] = {1, 3, 4, 9, 13, 18};
    for (int s = 0; s < 6; s++)
        for (int mode = MEL_NEAREST; mode <= MEL_AREA; mode++)
            for (int anti = 0; anti < 2; anti++) {
                int64_t size = sizes[s];
                double want[2 * 18 * 3], scale = (double)N / (double)size, wide = anti && scale > 1 ? scale : 1;
                for (int64_t i = 0; i < 2 * size * 3; i++) {
                    int64_t o = i / (size * 3), t = i / 3 % size, c = i % 3;
                    double centre = ((double)t + 0.5) * scale, sum = 0, total = 0;
                    for (int64_t k = -4; k < N + 4; k++) {
                        double w = 0, d = (double)k + 0.5 - centre;
                        switch (mode) {
                        case MEL_NEAREST: w = (double)k <= centre && centre < (double)k + 1; break;
                        case MEL_BILINEAR: w = fmax(0, 1 - fabs(d / wide)); break;
                        case MEL_BICUBIC: w = keys(d / wide, wide > 1 ? -0.5 : -0.75); break;
                        default:
                            w = fmax(0, fmin((double)k + 1, centre + scale / 2) - fmax((double)k, centre - scale / 2));
                        }
                        // A widened kernel is cut at the border; a plain one repeats the border.
                        if (wide > 1 && (k < 0 || k >= N)) w = 0;
                        int64_t in = k < 0 ? 0 : k >= N ? N - 1 : k;
                        sum += w * v[(o * N + in) * 3 + c];
                        total += w;
                    }
                    want[i] = sum / total;
                }
                CHECK_OK(mel_resize(x, 1, size, (mel_resize_mode)mode, anti, &y, err));
                close_to("resize", y, want, 2e-6, 1e-5);
                DROP(y);
            }
    free(v);
    DROP(x);
    // u8 rounds and stays in range
    CHECK_OK(mel_tensor_create(MEL_U8, SHAPE(4), &x, err));
    for (int i = 0; i < 4; i++)
        CHECK_OK(mel_tensor_set(x, i, (double[]){0, 255, 255, 0}[i], err));
    CHECK_OK(mel_resize(x, 0, 8, MEL_BICUBIC, false, &y, err));
    CHECK(mel_tensor_dtype(y) == MEL_U8);
    for (int i = 0; i < 8; i++) {
        double u;
        CHECK_OK(mel_tensor_get(y, i, &u, err));
        CHECK(u >= 0 && u <= 255);
    }
    DROP(x, y);
}

enum {
    B = 2,
    L = 5,
    D = 37
};

// x [2, 5, 37] with a modulation that is one row a sample.
static void norms(void) {
    mel_tensor *x = scattered(random_tensor(MEL_F32, SHAPE(B, L, D))), *w = random_tensor(MEL_BF16, SHAPE(D));
    mel_tensor *b = random_tensor(MEL_F32, SHAPE(D)), *scale = random_tensor(MEL_F32, SHAPE(B, 1, D));
    mel_tensor *shift = random_tensor(MEL_F32, SHAPE(D)), *y = NULL;
    double *vx = values_of(x), *vw = values_of(w), *vb = values_of(b), *vs = values_of(scale), *vh = values_of(shift);
    double layer[B * L * D], rms[B * L * D], l2[B * L * D], soft[B * L * D], bare[B * L * D];
    for (int r = 0; r < B * L; r++) {
        double mean = 0, var = 0, ss = 0, sum = 0, *p = vx + r * D;
        for (int i = 0; i < D; i++)
            mean += p[i] / D, ss += p[i] * p[i], sum += exp(p[i]);
        for (int i = 0; i < D; i++)
            var += (p[i] - mean) * (p[i] - mean) / D;
        for (int i = 0; i < D; i++) {
            double s = 1 + vs[r / L * D + i], h = vh[i];
            bare[r * D + i] = (p[i] - mean) / sqrt(var + 1e-5);
            layer[r * D + i] = act_of(MEL_ACT_SILU, (bare[r * D + i] * vw[i] + vb[i]) * s + h);
            rms[r * D + i] = p[i] / sqrt(ss / D + 1e-6) * vw[i] * s + h;
            l2[r * D + i] = act_of(MEL_ACT_SILU, p[i] / sqrt(ss) * sqrt(D) * vw[i]);
            soft[r * D + i] = exp(p[i]) / sum;
        }
    }
    CHECK_OK(mel_layer_norm(x, NULL, NULL, 1e-5, NULL, NULL, MEL_ACT_NONE, MEL_SAME, &y, err));
    close_to("layer_norm bare", y, bare, 3e-5, 1e-5);
    DROP(y);
    CHECK_OK(mel_layer_norm(x, w, b, 1e-5, scale, shift, MEL_ACT_SILU, MEL_SAME, &y, err));
    close_to("layer_norm", y, layer, 3e-5, 1e-5);
    DROP(y);
    CHECK_OK(mel_rms_norm(x, w, 1e-6, scale, shift, MEL_ACT_NONE, MEL_SAME, &y, err));
    close_to("rms_norm", y, rms, 3e-5, 1e-5);
    DROP(y);
    CHECK_OK(mel_l2_norm(x, w, MEL_ACT_SILU, MEL_SAME, &y, err));
    close_to("l2_norm", y, l2, 3e-5, 1e-5);
    DROP(y);
    CHECK_OK(mel_softmax(x, MEL_SAME, &y, err));
    close_to("softmax", y, soft, 1e-7, 1e-5);
    DROP(y);
    free(vx);
    free(vw);
    free(vb);
    free(vs);
    free(vh);
    DROP(x, w, b, scale, shift);
}

// x [2, 3, 4, 6] in 3 groups of 2 channels.
static void group_norms(void) {
    mel_tensor *x = scattered(random_tensor(MEL_F32, SHAPE(2, 3, 4, 6))), *w = random_tensor(MEL_F32, SHAPE(6));
    mel_tensor *b = random_tensor(MEL_F32, SHAPE(6)), *y = NULL;
    double *vx = values_of(x), *vw = values_of(w), *vb = values_of(b), want[144];
    for (int n = 0; n < 2; n++)
        for (int g = 0; g < 3; g++) {
            double mean = 0, var = 0;
            for (int pass = 0; pass < 3; pass++)
                for (int i = 0; i < 24; i++) {
                    int c = g * 2 + i % 2, at = n * 72 + i / 2 * 6 + c;
                    if (pass == 0) mean += vx[at] / 24;
                    if (pass == 1) var += (vx[at] - mean) * (vx[at] - mean) / 24;
                    if (pass == 2) want[at] = act_of(MEL_ACT_SILU, (vx[at] - mean) / sqrt(var + 1e-6) * vw[c] + vb[c]);
                }
        }
    CHECK_OK(mel_group_norm(x, 3, w, b, 1e-6, MEL_ACT_SILU, MEL_SAME, &y, err));
    close_to("group_norm", y, want, 1e-5, 1e-5);
    free(vx);
    free(vw);
    free(vb);
    DROP(x, w, b, y);
}

static void ropes(void) {
    for (int kind = 0; kind < 4; kind++) {
        bool pairs = kind % 2, each = kind / 2;
        mel_tensor *x = scattered(random_tensor(MEL_F32, SHAPE(2, 3, 4, 10))), *y = NULL;
        const int64_t *shape = (int64_t[]){2, 3, 5};
        mel_tensor *c = random_tensor(MEL_F32, each ? 3 : 2, each ? shape : shape + 1);
        mel_tensor *s = random_tensor(MEL_F32, each ? 3 : 2, each ? shape : shape + 1);
        double *vx = values_of(x), *vc = values_of(c), *vs = values_of(s), want[240];
        for (int r = 0; r < 24; r++)
            for (int i = 0; i < 5; i++) {
                int l = r / 4 % 3 + (each ? r / 12 * 3 : 0), p = r * 10 + (pairs ? 2 * i : i);
                int q = r * 10 + (pairs ? 2 * i + 1 : i + 5);
                want[p] = vx[p] * vc[l * 5 + i] - vx[q] * vs[l * 5 + i];
                want[q] = vx[p] * vs[l * 5 + i] + vx[q] * vc[l * 5 + i];
            }
        CHECK_OK(mel_rope(x, c, s, pairs, MEL_SAME, &y, err));
        close_to("rope", y, want, 2e-6, 0);
        free(vx);
        free(vc);
        free(vs);
        DROP(x, y, c, s);
    }
}

// The same bits from one thread and from three, on shapes large enough to be shared out.
static void threads_agree(void) {
    mel_tensor *x = random_tensor(MEL_F32, SHAPE(2, 700, 4, 32)), *w = random_tensor(MEL_F32, SHAPE(64, 32));
    mel_tensor *c = random_tensor(MEL_F32, SHAPE(700, 16)), *first[9] = {NULL};
    mel_linear *layer = NULL;
    CHECK_OK(mel_linear_create(w, NULL, MEL_F32, &layer, err));
    for (int threads = 1; threads <= 3; threads += 2) {
        CHECK_OK(mel_set_threads(threads, err));
        mel_tensor *y[9] = {NULL};
        CHECK_OK(mel_activate(MEL_ACT_SILU, x, MEL_SAME, &y[0], err));
        CHECK_OK(mel_reduce(MEL_SUM, x, 1, false, &y[1], err));
        CHECK_OK(mel_layer_norm(x, NULL, NULL, 1e-5, NULL, NULL, MEL_ACT_NONE, MEL_SAME, &y[2], err));
        CHECK_OK(mel_rope(x, c, c, true, MEL_SAME, &y[3], err));
        CHECK_OK(mel_attention(x, x, x, 0.2, NULL, NULL, false, MEL_SAME, &y[4], err));
        CHECK_OK(mel_group_norm(x, 4, NULL, NULL, 1e-5, MEL_ACT_NONE, MEL_SAME, &y[5], err));
        CHECK_OK(mel_resize(x, 1, 333, MEL_BILINEAR, true, &y[6], err));
        CHECK_OK(mel_linear_run(layer, x, MEL_ACT_NONE, MEL_SAME, &y[7], err));
        CHECK_OK(mel_attention_with(
            x, x, x, &(mel_attention_options){.scale = 0.2, .s8_scores = true, .s8_values = true}, &y[8], err));
        for (int i = 0; i < 9; i++) {
            if (first[i]) {
                CHECK(
                    y[i] && !memcmp(mel_tensor_data(first[i]), mel_tensor_data(y[i]), (size_t)mel_tensor_bytes(y[i])));
                mel_tensor_unref(y[i]);
            } else {
                first[i] = y[i];
            }
        }
    }
    CHECK_OK(mel_set_threads(0, err));
    for (int i = 0; i < 9; i++)
        mel_tensor_unref(first[i]);
    mel_linear_free(layer);
    DROP(x, w, c);
}

int main(void) {
    static const char *const names[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
    int64_t live = mel_mem_live();
    for (int isa = mel_cpu_isa(); isa >= MEL_ISA_PLAIN; isa--) {
        mel_set_isa((mel_isa)isa);
        printf("-- %s\n", names[isa]);
        RUN(activations);
        RUN(unaries);
        RUN(binaries);
        RUN(binary_shapes);
        RUN(clamping);
        RUN(filling);
        RUN(adding_in_place);
        RUN(reductions);
        RUN(moving);
        RUN(resizing);
        RUN(norms);
        RUN(group_norms);
        RUN(ropes);
        RUN(threads_agree);
    }
    CHECK(mel_mem_live() == live);
    return CHECK_DONE();
}
