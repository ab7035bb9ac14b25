// Backward passes against naive loops in double, what they refuse, each allocation failing in turn.
#include "ops_help.h"

#include <melies/train.h>

// The tolerance of f32 work; bf16 operands get 200 times that.
static const double TIGHT = 2e-5;

static double *zeros(int64_t n) {
    return calloc((size_t)n + 1, sizeof(double));
}

// ---- sums ------------------------------------------------------------------------------------------------------

static void sums_to(void) {
    // a [3, 70, 5, 6], b [70, 1, 6]
    for (int kept = 0; kept < 16; kept++) {
        int64_t size[4] = {3, 70, 5, 6}, shape[4];
        mel_tensor *a = random_tensor(kept % 2 ? MEL_F32 : MEL_BF16, 4, size),
                   *b = random_tensor(MEL_F32, SHAPE(70, 1, 6));
        double *va = values_of(a), *vb = values_of(b);
        int64_t n = 1;
        for (int i = 0; i < 4; i++)
            n *= shape[i] = kept >> i & 1 ? size[i] : 1;
        for (int with_b = 0; with_b < 2; with_b++) {
            double *want = zeros(n);
            for (int64_t at = 0; at < 6300; at++) {
                int64_t index[4], rest = at, to = 0;
                for (int i = 3; i >= 0; i--) {
                    index[i] = rest % size[i];
                    rest /= size[i];
                }
                for (int i = 0; i < 4; i++)
                    to = to * shape[i] + (shape[i] > 1 ? index[i] : 0);
                want[to] += va[at] * (with_b ? vb[index[1] * 6 + index[3]] : 1);
            }
            mel_tensor *out = NULL;
            CHECK_OK(mel_sum_to(a, with_b ? b : NULL, 4, shape, &out, err));
            shape_is(out, 4, shape);
            close_to("sum_to", out, want, 1e-3, TIGHT);
            DROP(out);
            out = NULL;
            int lead = 0; // fewer dimensions
            while (lead < 4 && shape[lead] == 1)
                lead++;
            CHECK_OK(mel_sum_to(a, with_b ? b : NULL, 4 - lead, shape + lead, &out, err));
            close_to("sum_to, fewer", out, want, 1e-3, TIGHT);
            DROP(out);
            free(want);
        }
        free(va);
        free(vb);
        DROP(a, b);
    }
    mel_tensor *wide = random_tensor(MEL_F32, SHAPE(3, 5000)), *out = NULL;
    double *v = values_of(wide), *want = zeros(5000);
    for (int64_t i = 0; i < 15000; i++)
        want[i % 5000] += v[i];
    CHECK_OK(mel_sum_to(wide, NULL, SHAPE(5000), &out, err));
    close_to("wide sum_to", out, want, TIGHT, TIGHT);
    DROP(out);
    memset(want, 0, 3 * sizeof *want);
    for (int64_t i = 0; i < 15000; i++)
        want[i / 5000] += v[i];
    CHECK_OK(mel_sum_to(wide, NULL, SHAPE(3, 1), &out, err));
    close_to("long sum_to", out, want, 1e-3, TIGHT);
    DROP(out, wide);
    free(v);
    free(want);
}

static void scatters(void) {
    mel_tensor *dy = random_tensor(MEL_F32, SHAPE(2, 9, 300)), *ids = random_tensor(MEL_I64, SHAPE(2, 9)), *out = NULL;
    double *v = values_of(dy), *want = zeros(5 * 300);
    for (int i = 0; i < 18; i++) {
        int64_t id = i * 7 % 5;
        mel_tensor_set(ids, i, (double)id, NULL);
        for (int c = 0; c < 300; c++)
            want[id * 300 + c] += v[i * 300 + c];
    }
    CHECK_OK(mel_scatter_add(dy, ids, 5, &out, err));
    shape_is(out, SHAPE(5, 300));
    close_to("scatter_add", out, want, TIGHT, TIGHT);
    DROP(out, dy, ids);
    free(v);
    free(want);
}

// ---- products ----------------------------------------------------------------------------------------------------

static void products(void) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {5, 7, 3}, {130, 70, 65}, {600, 96, 160}, {64, 300, 700}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int mode = 0; mode < 8; mode++) {
            int64_t m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
            bool ta = mode & 1, tb = mode & 2;
            mel_dtype dtype = mode & 4 ? MEL_BF16 : MEL_F32;
            if (dtype == MEL_BF16 && mel_cpu_isa() < MEL_ISA_AVX512) continue;
            mel_tensor *a = random_tensor(dtype, 2, (int64_t[]){ta ? k : m, ta ? m : k});
            mel_tensor *b = random_tensor(dtype, 2, (int64_t[]){tb ? n : k, tb ? k : n});
            mel_tensor *bias = random_tensor(MEL_F32, 1, &n), *out = NULL;
            double *va = values_of(a), *vb = values_of(b), *vc = values_of(bias), *want = zeros(m * n);
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                    double sum = vc[j];
                    for (int64_t l = 0; l < k; l++)
                        sum += va[ta ? l * m + i : i * k + l] * vb[tb ? j * k + l : l * n + j];
                    want[i * n + j] = sum;
                }
            CHECK_OK(mel_train_matmul(a, ta, b, tb, bias, dtype, MEL_F32, &out, err));
            shape_is(out, SHAPE(m, n));
            close_to("train_matmul", out, want, TIGHT * sqrt((double)k), TIGHT);
            DROP(a, b, bias, out);
            free(va);
            free(vb);
            free(vc);
            free(want);
        }
}

// ---- convolutions ------------------------------------------------------------------------------------------------

static void convolution(int I, int O, int GROUPS, int K, int STRIDE, mel_dtype dtype) {
    enum {
        N = 3,
        H = 7,
        W = 6,
        BEFORE = 2,
        AFTER = 1
    };
    const int OH = (H + BEFORE + AFTER - K) / STRIDE + 1, OW = (W + BEFORE + AFTER - K) / STRIDE + 1, PER = I / GROUPS;
    const double rough = dtype == MEL_BF16 ? 8e-3 : TIGHT;
    const int64_t stride[] = {STRIDE, STRIDE}, before[] = {BEFORE, BEFORE}, after[] = {AFTER, AFTER};
    mel_tensor *x = random_tensor(dtype, SHAPE(N, H, W, I)), *w = random_tensor(dtype, SHAPE(O, PER, K, K));
    mel_tensor *b = random_tensor(MEL_F32, SHAPE(O)), *dy = random_tensor(dtype, SHAPE(N, OH, OW, O));
    mel_tensor *y = NULL, *dx = NULL, *dw = NULL;
    double *vx = values_of(x), *vw = values_of(w), *vb = values_of(b), *vd = values_of(dy);
    double *want_y = zeros(N * OH * OW * O), *want_x = zeros(N * H * W * I), *want_w = zeros(O * PER * K * K);
    for (int n = 0; n < N; n++)
        for (int h = 0; h < OH; h++)
            for (int c = 0; c < OW; c++)
                for (int o = 0; o < O; o++) {
                    int to = ((n * OH + h) * OW + c) * O + o;
                    want_y[to] = vb[o];
                    for (int i = 0; i < PER; i++)
                        for (int kh = 0; kh < K; kh++)
                            for (int kw = 0; kw < K; kw++) {
                                int ih = h * STRIDE + kh - BEFORE, iw = c * STRIDE + kw - BEFORE;
                                if (ih < 0 || ih >= H || iw < 0 || iw >= W) continue;
                                int ix = ((n * H + ih) * W + iw) * I + o / (O / GROUPS) * PER + i;
                                int at = ((o * PER + i) * K + kh) * K + kw;
                                want_y[to] += vx[ix] * vw[at];
                                want_x[ix] += vd[to] * vw[at];
                                want_w[at] += vd[to] * vx[ix];
                            }
                }
    CHECK_OK(mel_train_conv(x, w, b, stride, before, after, GROUPS, dtype, MEL_SAME, &y, err));
    CHECK_OK(mel_train_conv_backward(x, w, dy, stride, before, after, GROUPS, dtype, &dx, &dw, err));
    close_to("conv", y, want_y, rough * 5, rough);
    close_to("conv dx", dx, want_x, rough * 5, rough);
    close_to("conv dw", dw, want_w, 1e-3, TIGHT);
    DROP(x, w, b, dy, y, dx, dw);
    double *mine[] = {vx, vw, vb, vd, want_y, want_x, want_w};
    for (int i = 0; i < 7; i++)
        free(mine[i]);
}

static void convolutions(void) {
    convolution(4, 6, 2, 3, 2, MEL_F32);
    for (int half = 0; half < 2; half++) { // a channel at a time
        mel_dtype dtype = half ? MEL_BF16 : MEL_F32;
        if (half && mel_cpu_isa() < MEL_ISA_AVX512) continue;
        convolution(5, 5, 5, 3, 1, dtype);
        convolution(37, 37, 37, 5, 2, dtype);
        convolution(32, 32, 32, 9, 1, dtype);
        convolution(16, 16, 16, 1, 3, dtype);
    }
}

// ---- attention -----------------------------------------------------------------------------------------------------

// d loss / d q and so on for one choice of shapes, from the definition.
static void attention_case(int64_t b, int64_t lq, int64_t lk, int64_t h, int64_t d, mel_dtype dtype, bool causal,
    int64_t bias_b, int64_t bias_h, bool masked) {
    mel_tensor *q = random_tensor(dtype, SHAPE(b, lq, h, d)), *k = random_tensor(dtype, SHAPE(b, lk, h, d));
    mel_tensor *v = random_tensor(dtype, SHAPE(b, lk, h, d)), *dout = random_tensor(dtype, SHAPE(b, lq, h, d));
    mel_tensor *bias = bias_b ? random_tensor(MEL_F32, SHAPE(bias_b, bias_h, lq, lk)) : NULL;
    mel_tensor *keys = masked ? random_tensor(MEL_F32, SHAPE(b, lk)) : NULL;
    if (keys) mel_tensor_set(keys, lk - 1, -INFINITY, NULL);
    double *vq = values_of(q), *vk = values_of(k), *vv = values_of(v), *vo = values_of(dout);
    double *vb = bias ? values_of(bias) : NULL, *vm = keys ? values_of(keys) : NULL;
    double *wq = zeros(b * lq * h * d), *wk = zeros(b * lk * h * d), *wv = zeros(b * lk * h * d);
    double *wb = zeros(bias_b * bias_h * lq * lk), *p = zeros(lk), *dp = zeros(lk), scale = 0.4;
    for (int64_t n = 0; n < b; n++)
        for (int64_t e = 0; e < h; e++)
            for (int64_t i = 0; i < lq; i++) {
                const double *qi = vq + ((n * lq + i) * h + e) * d, *oi = vo + ((n * lq + i) * h + e) * d;
                int64_t at = ((bias_b > 1 ? n : 0) * bias_h + (bias_h > 1 ? e : 0)) * lq * lk + i * lk;
                double total = 0, top = -INFINITY, mean = 0;
                for (int64_t j = 0; j < lk; j++) {
                    const double *kj = vk + ((n * lk + j) * h + e) * d, *vj = vv + ((n * lk + j) * h + e) * d;
                    p[j] = dp[j] = 0;
                    for (int64_t c = 0; c < d; c++) {
                        p[j] += scale * qi[c] * kj[c];
                        dp[j] += oi[c] * vj[c];
                    }
                    if (vb) p[j] += vb[at + j];
                    if (vm) p[j] += vm[n * lk + j];
                    if (causal && j > i + lk - lq) p[j] = -INFINITY;
                    top = fmax(top, p[j]);
                }
                for (int64_t j = 0; j < lk; j++)
                    total += p[j] = top == -INFINITY ? 0 : exp(p[j] - top);
                for (int64_t j = 0; j < lk; j++) {
                    p[j] = total > 0 ? p[j] / total : 0;
                    mean += p[j] * dp[j];
                }
                for (int64_t j = 0; j < lk; j++) {
                    double ds = p[j] * (dp[j] - mean);
                    if (vb) wb[at + j] += ds;
                    for (int64_t c = 0; c < d; c++) {
                        int64_t kj = ((n * lk + j) * h + e) * d + c;
                        wq[((n * lq + i) * h + e) * d + c] += scale * ds * vk[kj];
                        wk[kj] += scale * ds * qi[c];
                        wv[kj] += p[j] * oi[c];
                    }
                }
            }
    mel_tensor *dq = NULL, *dk = NULL, *dv = NULL, *db = NULL;
    CHECK_OK(mel_attention_backward(q, k, v, dout, scale, bias, keys, causal, &dq, &dk, &dv, bias ? &db : NULL, err));
    double tolerance = dtype == MEL_BF16 ? 0.06 : 5e-5;
    close_to("dq", dq, wq, tolerance, tolerance);
    close_to("dk", dk, wk, tolerance, tolerance);
    close_to("dv", dv, wv, tolerance, tolerance);
    if (bias) close_to("dbias", db, wb, tolerance, tolerance);
    // Any one alone, of scattered operands.
    mel_tensor *one = NULL;
    q = scattered(q);
    CHECK_OK(mel_attention_backward(q, k, v, dout, scale, bias, keys, causal, NULL, &one, NULL, NULL, err));
    close_to("dk alone", one, wk, tolerance, tolerance);
    DROP(q, k, v, dout, bias, keys, dq, dk, dv, db, one);
    double *mine[] = {vq, vk, vv, vo, vb, vm, wq, wk, wv, wb, p, dp};
    for (int i = 0; i < 12; i++)
        free(mine[i]);
}

static void attentions(void) {
    for (int half = 0; half < 2; half++) {
        mel_dtype dtype = half ? MEL_BF16 : MEL_F32;
        attention_case(1, 1, 1, 1, 1, dtype, false, 0, 0, false);
        attention_case(2, 5, 7, 3, 9, dtype, false, 0, 0, true);
        attention_case(2, 80, 33, 2, 64, dtype, false, 1, 2, false);
        attention_case(2, 20, 20, 2, 66, dtype, true, 2, 1, false);
        attention_case(1, 200, 130, 1, 24, dtype, false, 1, 1, true);
        attention_case(1, 9, 5, 1, 8, dtype, true, 0, 0, false); // the first queries see no key
        attention_case(3, 6, 6, 2, 5, dtype, false, 3, 2, true);
    }
}

// ---- norms: against the definition by central differences in double ---------------------------------------------

static double norm_of(int kind, const double *x, int64_t d, const double *w, const double *b, const double *s,
    const double *t, const double *dy) {
    double mean = 0, var = 0, sum = 0;
    for (int64_t i = 0; i < d && kind == MEL_NORM_LAYER; i++)
        mean += x[i] / (double)d;
    for (int64_t i = 0; i < d; i++)
        var += (x[i] - mean) * (x[i] - mean) / (double)d;
    double r = 1 / sqrt(var + (kind == MEL_NORM_L2 ? 0 : 1e-4));
    for (int64_t i = 0; i < d; i++)
        sum += dy[i] * (((x[i] - mean) * r * w[i] + b[i]) * (1 + s[i]) + t[i]);
    return sum;
}

static void norms(void) {
    enum {
        B = 2,
        L = 37,
        D = 11
    };
    for (int kind = MEL_NORM_LAYER; kind <= MEL_NORM_L2; kind++) {
        mel_tensor *x = random_tensor(MEL_F32, SHAPE(B, L, D)), *dy = random_tensor(MEL_F32, SHAPE(B, L, D));
        mel_tensor *p[4] = {random_tensor(MEL_F32, SHAPE(D)), random_tensor(MEL_F32, SHAPE(D)),
            random_tensor(MEL_F32, SHAPE(B, 1, D)), random_tensor(MEL_F32, SHAPE(B, 1, D))};
        double *vx = values_of(x), *vy = values_of(dy), *v[4], *want[5];
        for (int i = 0; i < 4; i++) {
            v[i] = values_of(p[i]);
            want[1 + i] = zeros(B * D);
        }
        want[0] = zeros(B * L * D);
        const double h = 1e-5;
        for (int64_t r = 0; r < B * L; r++) {
            double *args[5] = {vx + r * D, v[0], v[1], v[2] + r / L * D, v[3] + r / L * D};
            double *sums[5] = {want[0] + r * D, want[1], want[2], want[3] + r / L * D, want[4] + r / L * D};
            for (int a = 0; a < 5; a++)
                for (int64_t i = 0; i < D; i++) {
                    double was = args[a][i], up, down;
                    args[a][i] = was + h;
                    up = norm_of(kind, args[0], D, args[1], args[2], args[3], args[4], vy + r * D);
                    args[a][i] = was - h;
                    down = norm_of(kind, args[0], D, args[1], args[2], args[3], args[4], vy + r * D);
                    args[a][i] = was;
                    sums[a][i] += (up - down) / (2 * h);
                }
        }
        mel_tensor *g[5] = {NULL};
        CHECK_OK(mel_norm_backward(
            (mel_norm_kind)kind, x, dy, p[0], p[1], 1e-4, p[2], p[3], &g[0], &g[1], &g[2], &g[3], &g[4], err));
        for (int i = 0; i < 5; i++) {
            close_to("norm_backward", g[i], want[i], 2e-4, 2e-4);
            free(want[i]);
        }
        for (int i = 0; i < 4; i++) {
            free(v[i]);
            DROP(p[i], g[i]);
        }
        free(vx);
        free(vy);
        DROP(x, dy, g[4]);
    }
}

// ---- losses and the optimiser
// ----------------------------------------------------------------------------------------

static void losses(void) {
    mel_tensor *x = random_tensor(MEL_F32, SHAPE(70, 60)), *y = random_tensor(MEL_F32, SHAPE(70, 60));
    mel_tensor *w = random_tensor(MEL_F32, SHAPE(60)), *dx = NULL;
    double *vx = values_of(x), *vy = values_of(y), *vw = values_of(w), *want = zeros(4200), sum = 0, loss = -1;
    for (int i = 0; i < 4200; i++) {
        sum += vw[i % 60] * (vx[i] - vy[i]) * (vx[i] - vy[i]) / 4200;
        want[i] = 2 * vw[i % 60] * (vx[i] - vy[i]) / 4200;
    }
    CHECK_OK(mel_mse(x, y, w, &loss, &dx, err));
    CHECK_NEAR(loss, sum, 1e-6);
    close_to("mse dx", dx, want, 1e-7, TIGHT);
    DROP(dx);
    mel_tensor *labels = random_tensor(MEL_S32, SHAPE(70));
    sum = 0;
    for (int r = 0; r < 70; r++) {
        int label = r % 7 ? r % 60 : -1;
        double total = 0;
        mel_tensor_set(labels, r, label, NULL);
        for (int i = 0; i < 60; i++)
            total += exp(vx[r * 60 + i]);
        for (int i = 0; i < 60; i++)
            want[r * 60 + i] = label < 0 ? 0 : (exp(vx[r * 60 + i]) / total - (i == label)) / 60;
        if (label >= 0) sum += (log(total) - vx[r * 60 + label]) / 60;
    }
    CHECK_OK(mel_cross_entropy(x, labels, -1, &loss, &dx, err));
    CHECK_NEAR(loss, sum, 1e-6);
    close_to("cross_entropy dx", dx, want, 1e-7, TIGHT);
    DROP(dx);
    const mel_tensor *list[] = {x, y, w};
    double norm = 0;
    for (int i = 0; i < 4200; i++)
        norm += vx[i] * vx[i] + vy[i] * vy[i] + (i < 60 ? vw[i] * vw[i] : 0);
    CHECK_OK(mel_global_norm(3, list, &loss, err));
    CHECK_NEAR(loss, sqrt(norm), 1e-6);
    free(vx);
    free(vy);
    free(vw);
    free(want);
    DROP(x, y, w, labels);
}

// x [n, k] with singular values made 1, as Newton and Schulz would in double.
static void orthogonal_naive(double *x, int64_t n, int64_t k) {
    double norm = 0, *s = zeros(n * n), *t = zeros(n * n), *y = zeros(n * k);
    for (int64_t i = 0; i < n * k; i++)
        norm += x[i] * x[i];
    for (int64_t i = 0; i < n * k; i++)
        x[i] /= sqrt(norm) + 1e-7;
    for (int step = 0; step < 5; step++) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                s[i * n + j] = 0;
                for (int64_t l = 0; l < k; l++)
                    s[i * n + j] += x[i * k + l] * x[j * k + l];
            }
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                t[i * n + j] = (i == j ? 3.4445 : 0) - 4.7750 * s[i * n + j];
                for (int64_t l = 0; l < n; l++)
                    t[i * n + j] += 2.0315 * s[i * n + l] * s[l * n + j];
            }
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < k; j++) {
                y[i * k + j] = 0;
                for (int64_t l = 0; l < n; l++)
                    y[i * k + j] += t[i * n + l] * x[l * k + j];
            }
        memcpy(x, y, (size_t)(n * k) * sizeof *x);
    }
    free(s);
    free(t);
    free(y);
}

static void muons(void) {
    static const int64_t sizes[][2] = {{1, 1}, {5, 9}, {16, 16}, {70, 150}, {130, 133}, {9, 600}, {90, 20}, {133, 131}};
    for (size_t at = 0; at < sizeof sizes / sizeof *sizes; at++)
        for (int half = 0; half < 2; half++) {
            int64_t rows = sizes[at][0], columns = sizes[at][1], count = rows * columns;
            if (half && mel_cpu_isa() < MEL_ISA_AVX512) continue;
            bool tall = rows > columns;
            mel_tensor *x = random_tensor(MEL_F32, SHAPE(rows, columns)), *out = NULL;
            double *v = values_of(x), *want = zeros(count);
            for (int64_t i = 0; i < count; i++)
                want[tall ? i % columns * rows + i / columns : i] = v[i];
            orthogonal_naive(want, tall ? columns : rows, tall ? rows : columns);
            for (int64_t i = 0; i < count; i++)
                v[i] = want[tall ? i % columns * rows + i / columns : i];
            CHECK_OK(mel_orthogonal(x, half ? MEL_BF16 : MEL_F32, &out, err));
            shape_is(out, SHAPE(rows, columns));
            close_to("orthogonal", out, v, half ? 0.06 : 1e-4, half ? 0.06 : 1e-4);

            CHECK_OK(mel_set_compute(half ? MEL_BF16 : MEL_F32, err));
            mel_tensor *p = random_tensor(MEL_F32, SHAPE(rows, columns)),
                       *m = random_tensor(MEL_F32, SHAPE(rows, columns)),
                       *ema = random_tensor(MEL_F32, SHAPE(rows, columns));
            double *vg = values_of(x), *vp = values_of(p), *vm = values_of(m), *ve = values_of(ema);
            for (int64_t i = 0; i < count; i++) {
                vm[i] = 0.9 * vm[i] + 0.5 * 0.1 * vg[i];
                want[tall ? i % columns * rows + i / columns : i] = 0.9 * vm[i] + 0.5 * 0.1 * vg[i];
            }
            orthogonal_naive(want, tall ? columns : rows, tall ? rows : columns);
            for (int64_t i = 0; i < count; i++) {
                vp[i] = (1 - 0.01 * 0.2) * vp[i] - 0.2 * sqrt((double)(tall ? rows : columns)) * 0.01 *
                                                       want[tall ? i % columns * rows + i / columns : i];
                ve[i] = 0.75 * ve[i] + 0.25 * vp[i];
            }
            const mel_muon o = {.lr = 0.01, .momentum = 0.9, .weight_decay = 0.2, .grad_scale = 0.5, .ema_decay = 0.75};
            CHECK_OK(mel_muon_step(&o, p, x, m, ema, err));
            close_to("muon's momentum", m, vm, TIGHT, TIGHT);
            close_to("muon's parameter", p, vp, half ? 3e-3 : TIGHT, TIGHT);
            close_to("muon's average", ema, ve, half ? 1e-3 : TIGHT, TIGHT);
            double *lists[] = {v, want, vg, vp, vm, ve};
            for (int i = 0; i < 6; i++)
                free(lists[i]);
            DROP(x, out, p, m, ema);
        }
    CHECK_OK(mel_set_compute(MEL_F32, err));
}

// ---- what is refused -----------------------------------------------------------------------------------------------

static mel_tensor *x2, *y2, *vec, *ints, *tokens, *picture, *kernel, *slim, *steady, *steady_momentum;

static void setup(void) {
    x2 = random_tensor(MEL_F32, SHAPE(40, 6));
    y2 = random_tensor(MEL_BF16, SHAPE(40, 6));
    vec = random_tensor(MEL_BF16, SHAPE(6));
    ints = random_tensor(MEL_I64, SHAPE(40));
    CHECK_OK(mel_tensor_fill(ints, 2, err));
    tokens = random_tensor(MEL_F32, SHAPE(2, 5, 3, 8));
    picture = random_tensor(MEL_BF16, SHAPE(2, 5, 5, 4));
    kernel = random_tensor(MEL_F32, SHAPE(4, 4, 3, 3));
    slim = random_tensor(MEL_F32, SHAPE(4, 1, 3, 3));
    steady = random_tensor(MEL_F32, SHAPE(40, 6));
    steady_momentum = random_tensor(MEL_F32, SHAPE(40, 6));
}

static void refusals(void) {
    const int64_t one[] = {1, 1}, none[] = {0, 0};
    mel_tensor *out = steady;
    double d;
    CHECK_FAILS(
        mel_train_matmul(x2, false, tokens, false, NULL, MEL_F32, MEL_SAME, &out, err), MEL_EINVAL, "does not fit");
    CHECK_FAILS(mel_train_matmul(x2, false, ints, false, NULL, MEL_F32, MEL_SAME, &out, err), MEL_EINVAL, "not i64");
    CHECK_FAILS(mel_train_matmul(x2, true, x2, false, NULL, MEL_F16, MEL_SAME, &out, err), MEL_EINVAL, "not f16");
    CHECK_FAILS(mel_train_conv(picture, kernel, NULL, none, one, one, 1, MEL_F32, MEL_SAME, &out, err), MEL_EINVAL,
        "train_conv: x is");
    CHECK_FAILS(mel_train_conv_backward(picture, kernel, picture, one, none, none, 1, MEL_F32, &out, NULL, err),
        MEL_EINVAL, "dy is [2, 5, 5, 4]");
    CHECK_FAILS(mel_sum_to(x2, NULL, SHAPE(7), &out, err), MEL_EINVAL, "does not come from");
    CHECK_FAILS(mel_sum_to(x2, tokens, SHAPE(6), &out, err), MEL_EINVAL, "does not stretch");
    CHECK_FAILS(mel_scatter_add(x2, ints, 2, &out, err), MEL_EINVAL, "id 2 at 0 is outside 0..1");
    CHECK_FAILS(mel_scatter_add(x2, vec, 2, &out, err), MEL_EINVAL, "scatter_add: dy is [40, 6]");
    CHECK_FAILS(mel_activate_backward((mel_act)77, x2, y2, &out, err), MEL_EINVAL, "unknown activation 77");
    CHECK_FAILS(
        mel_activate_backward(MEL_ACT_SILU, x2, tokens, &out, err), MEL_EINVAL, "x is [40, 6], dy is [2, 5, 3, 8]");
    CHECK_FAILS(mel_norm_backward(
                    MEL_NORM_RMS, tokens, tokens, NULL, NULL, 0, picture, NULL, &out, NULL, NULL, NULL, NULL, err),
        MEL_EINVAL, "is not of the form");
    CHECK_FAILS(mel_norm_backward(MEL_NORM_RMS, x2, y2, NULL, NULL, 0, NULL, NULL, &out, NULL, NULL, &out, NULL, err),
        MEL_EINVAL, "norm_backward: x is");
    CHECK_FAILS(mel_group_norm_backward(x2, y2, 4, NULL, 0, &out, NULL, NULL, err), MEL_EINVAL, "4 groups");
    CHECK_FAILS(mel_softmax_backward(x2, tokens, &out, err), MEL_EINVAL, "y is [40, 6]");
    CHECK_FAILS(
        mel_attention_backward(tokens, picture, picture, tokens, 1, NULL, NULL, false, &out, NULL, NULL, NULL, err),
        MEL_EINVAL, "k is [2, 5, 5, 4]");
    CHECK_FAILS(mel_attention_backward(tokens, tokens, tokens, tokens, 1, x2, NULL, false, &out, NULL, NULL, NULL, err),
        MEL_EINVAL, "bias is f32 [40, 6]");
    CHECK_FAILS(mel_mse(x2, tokens, NULL, &d, &out, err), MEL_EINVAL, "the target is");
    CHECK_FAILS(mel_cross_entropy(x2, vec, 0, &d, &out, err), MEL_EINVAL, "labels are bf16");
    const mel_adamw bad = {.step = 0}, fine = {.step = 1, .lr = 1, .eps = 1};
    CHECK_FAILS(mel_adamw_step(&bad, x2, x2, x2, x2, NULL, err), MEL_EINVAL, "step 0");
    CHECK_FAILS(mel_adamw_step(&fine, y2, y2, x2, x2, NULL, err), MEL_EINVAL, "the parameter is bf16");
    CHECK_FAILS(mel_adamw_step(&fine, x2, x2, tokens, x2, NULL, err), MEL_EINVAL, "m is [2, 5, 3, 8]");
    const mel_muon slow = {.momentum = 0.9}, wild = {.momentum = 1};
    CHECK_FAILS(mel_muon_step(&wild, x2, x2, x2, NULL, err), MEL_EINVAL, "momentum 1");
    CHECK_FAILS(mel_muon_step(&slow, x2, x2, y2, NULL, err), MEL_EINVAL, "m is bf16");
    CHECK_FAILS(mel_muon_step(&slow, x2, tokens, x2, NULL, err), MEL_EINVAL, "the gradient is [2, 5, 3, 8]");
    CHECK_FAILS(mel_orthogonal(tokens, MEL_F32, &out, err), MEL_EINVAL, "x is [2, 5, 3, 8]");
    CHECK_FAILS(mel_orthogonal(x2, MEL_F16, &out, err), MEL_EINVAL, "not f16");
    CHECK(out == steady);
    mel_cancel();
    CHECK_FAILS(mel_sum_to(x2, NULL, SHAPE(6), &out, err), MEL_ECANCELED, "cancel");
    CHECK(mel_adamw_step(&fine, steady, x2, x2, x2, NULL, NULL) == MEL_OK); // a step is whole
    mel_cancel_clear();
}

// ---- each allocation fails in turn
// -------------------------------------------------------------------------------------

typedef mel_status (*call_fn)(mel_tensor **out, mel_error *err);
#define CALL(name, ...)                                                                                                \
    static mel_status name(mel_tensor **out, mel_error *err) {                                                         \
        return __VA_ARGS__;                                                                                            \
    }
static const int64_t ones[] = {1, 1};
CALL(call_matmul, mel_train_matmul(y2, true, x2, false, vec, MEL_F32, MEL_BF16, out, err))
CALL(call_conv, mel_train_conv(picture, kernel, NULL, ones, ones, ones, 1, MEL_F32, MEL_SAME, out, err))
CALL(call_conv_backward,
    mel_train_conv_backward(picture, kernel, picture, ones, ones, ones, 1, MEL_F32, &out[0], &out[1], err))
CALL(call_depthwise,
    mel_train_conv_backward(picture, slim, picture, ones, ones, ones, 4, MEL_F32, &out[0], &out[1], err))
CALL(call_sum, mel_sum_to(x2, y2, SHAPE(6), out, err))
CALL(call_scatter, mel_scatter_add(y2, ints, 4, out, err))
CALL(call_act, mel_activate_backward(MEL_ACT_SILU, x2, y2, out, err))
CALL(call_norm, mel_norm_backward(
                    MEL_NORM_LAYER, x2, y2, vec, vec, 1e-6, vec, vec, &out[0], &out[1], &out[2], &out[3], &out[4], err))
CALL(call_group, mel_group_norm_backward(y2, x2, 2, vec, 1e-6, &out[0], &out[1], &out[2], err))
CALL(call_softmax, mel_softmax_backward(x2, y2, out, err))
CALL(call_attention,
    mel_attention_backward(tokens, tokens, tokens, tokens, 1, NULL, NULL, true, &out[0], &out[1], &out[2], NULL, err))
static double value;
CALL(call_mse, mel_mse(y2, x2, vec, &value, out, err))
CALL(call_orthogonal, mel_orthogonal(y2, MEL_F32, out, err))
static mel_status call_muon(mel_tensor **out, mel_error *err) {
    static const mel_muon o = {.lr = 0, .momentum = 0.9};
    (void)out;
    return mel_muon_step(&o, steady, y2, steady_momentum, NULL, err);
}
CALL(call_entropy, mel_cross_entropy(y2, ints, -1, &value, out, err))

static void allocations(void) {
    static const struct {
        const char *name;
        call_fn fn;
    } calls[] = {{"matmul", call_matmul}, {"conv", call_conv}, {"conv backward", call_conv_backward},
        {"depthwise", call_depthwise}, {"sum", call_sum}, {"scatter", call_scatter}, {"act", call_act},
        {"norm", call_norm}, {"group norm", call_group}, {"softmax", call_softmax}, {"attention", call_attention},
        {"mse", call_mse}, {"cross entropy", call_entropy}, {"orthogonal", call_orthogonal}, {"muon", call_muon}};
    for (size_t c = 0; c < sizeof calls / sizeof *calls; c++) {
        mel_error error;
        int64_t live = mel_mem_live();
        int n = 1;
        for (;; n++) {
            mel_tensor *out[5] = {NULL};
            mel_mem_fail_nth(n);
            mel_status s = calls[c].fn(out, &error);
            mel_mem_fail_nth(0);
            bool any = false;
            for (int i = 0; i < 5; i++) {
                any = any || out[i];
                if (s == MEL_OK) mel_tensor_unref(out[i]);
            }
            if (s == MEL_OK) break;
            if (s != MEL_ENOMEM || any || mel_mem_live() != live || n > 200) {
                fprintf(stderr, "%s, allocation %d: status %d, '%s', %lld bytes kept\n", calls[c].name, n, s,
                    error.message, (long long)(mel_mem_live() - live));
                CHECK(0);
                break;
            }
        }
        CHECK(n >= 3 && mel_mem_live() == live);
    }
}

int main(void) {
    setup();
    RUN(sums_to);
    RUN(scatters);
    RUN(products);
    RUN(convolutions);
    RUN(attentions);
    RUN(norms);
    RUN(losses);
    RUN(muons);
    RUN(refusals);
    RUN(allocations);
    static const mel_isa lesser[] = {MEL_ISA_AVX2, MEL_ISA_PLAIN};
    for (int i = 0; i < 2; i++) {
        mel_set_isa(lesser[i]);
        RUN(sums_to);
        RUN(attentions);
        RUN(norms);
        RUN(losses);
    }
    DROP(x2, y2, vec, ints, tokens, picture, kernel, slim, steady, steady_momentum);
    return CHECK_DONE();
}
