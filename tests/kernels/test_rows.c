// Every row kernel of every instruction set this processor has, against the naive twin: random lengths, starts off
// the vector boundary, guard bytes, special values. Times are printed, never asserted.
#include "kernels/guard.h"
#include "kernels/rows.h"

#include <float.h>

typedef struct tested {
    const char *name;
    const row_kernels *k;
    mel_isa needs;
} tested;
static const tested tables[] = {
    {"avx2", &row_kernels_avx2, MEL_ISA_AVX2}, {"avx512", &row_kernels_avx512, MEL_ISA_AVX512}};
static const row_kernels *const ref = &row_kernels_ref;
static const tested *now; // the table under test
#define FAST (now->k)

static const float specials[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, 1.5f, 2.5f, -2.5f, 127.5f, -128.5f, 255.5f, 300.0f,
    -300.0f, 65504.0f, 65519.9f, 65520.0f, -65520.0f, 6.1e-5f, 5.9e-8f, 3e-8f, 1e-40f, -1e-40f, FLT_MIN, FLT_MAX,
    -FLT_MAX, 1e30f, -1e30f, 88.0f, -88.0f, 89.0f, -104.0f, 7.9f, -7.91f, 3.9f, -4.1f, 20.0f, -20.0f, 2147483648.0f,
    -2147483904.0f, 9.3e18f, INFINITY, -INFINITY, NAN, -NAN};
enum {
    SPECIALS = sizeof specials / sizeof *specials,
    ROUNDS = 60
};

// Mostly 0..300, now and then some thousands.
static int64_t any_length(void) {
    return random_below(10) ? random_below(301) : 2000 + random_below(4000);
}
static size_t any_offset(size_t element) {
    return element * (size_t)random_below(64 / (int64_t)element);
}

typedef struct values {
    guarded g;
    float *p;
} values;

// n floats in [-size, size); with_specials: every fourth is a special one.
static values some(int64_t n, float size, bool with_specials) {
    values v = {.g = guarded_new((size_t)n * 4, any_offset(4))};
    v.p = v.g.p;
    for (int64_t i = 0; i < n; i++)
        v.p[i] = with_specials && random_below(4) == 0 ? specials[random_below(SPECIALS)] : random_float(size);
    return v;
}
static values copy_of(const values *from, int64_t n) {
    values v = {.g = guarded_new((size_t)n * 4, any_offset(4))};
    v.p = v.g.p;
    if (n) memcpy(v.p, from->p, (size_t)n * 4);
    return v;
}

static bool close_to(float got, float want, double tolerance) {
    if (want != want) return got != got;
    return got == want || fabs((double)got - want) <= tolerance;
}
// At most one report a row: a broken kernel is wrong everywhere.
static void row_close(
    const char *what, int op, const float *got, const float *want, const double *tolerance, int64_t n) {
    check_count++;
    for (int64_t i = 0; i < n; i++) {
        if (close_to(got[i], want[i], tolerance[i])) continue;
        check_failures++;
        fprintf(stderr, "%s %s %d: n %lld, at %lld: %.9g, wanted %.9g within %g\n", now->name, what, op, (long long)n,
            (long long)i, got[i], want[i], tolerance[i]);
        return;
    }
}
static double *tolerances(int64_t n) {
    return calloc((size_t)n + 1, sizeof(double));
}

static const int64_t sizes[] = {4, 2, 2, 1, 1, 4, 8};

// Exact but for the payload of a NaN.
static void loads(void) {
    for (int dtype = K_F32; dtype <= K_I64; dtype++)
        for (int round = 0; round < ROUNDS; round++) {
            int64_t n = any_length();
            size_t bytes = (size_t)(n * sizes[dtype]);
            guarded src = guarded_new(bytes, any_offset((size_t)sizes[dtype]));
            for (size_t i = 0; i < bytes; i++)
                ((unsigned char *)src.p)[i] = (unsigned char)random_bits();
            values a = some(n, 1, false), b = some(n, 1, false);
            double *exact = tolerances(n);
            ref->load(dtype, src.p, a.p, n);
            FAST->load(dtype, src.p, b.p, n);
            row_close("load", dtype, b.p, a.p, exact, n);
            free(exact);
            CHECK(guarded_end(&src) && guarded_end(&a.g) && guarded_end(&b.g));
        }
}

static bool nan_at(int dtype, const void *p, int64_t i) {
    if (dtype > K_F16) return false;
    float f;
    ref->load(dtype, (const char *)p + i * sizes[dtype], &f, 1);
    return f != f;
}

static void stores(void) {
    static const float ranges[] = {1, 200, 1e5f, 1e-5f, 3e9f};
    for (int dtype = K_F32; dtype <= K_I64; dtype++)
        for (int round = 0; round < ROUNDS; round++) {
            int64_t n = any_length();
            size_t bytes = (size_t)(n * sizes[dtype]), element = (size_t)sizes[dtype];
            values x = some(n, ranges[round % 5], true);
            guarded a = guarded_new(bytes, any_offset(element)), b = guarded_new(bytes, any_offset(element));
            ref->store(dtype, x.p, a.p, n);
            FAST->store(dtype, x.p, b.p, n);
            check_count++;
            for (int64_t i = 0; i < n; i++) {
                const char *pa = (const char *)a.p + i * sizes[dtype], *pb = (const char *)b.p + i * sizes[dtype];
                if (!memcmp(pa, pb, element) || (nan_at(dtype, a.p, i) && nan_at(dtype, b.p, i))) continue;
                check_failures++;
                fprintf(stderr, "%s store %d: %.9g differs\n", now->name, dtype, x.p[i]);
                break;
            }
            CHECK(guarded_end(&x.g) && guarded_end(&a) && guarded_end(&b));
        }
}

// Every bf16 and f16 value goes through load and store unchanged.
static void half_round_trip(void) {
    enum {
        ALL = 65536
    };
    static uint16_t in[ALL], out[ALL];
    static float wide[ALL];
    for (int i = 0; i < ALL; i++)
        in[i] = (uint16_t)i;
    for (int dtype = K_BF16; dtype <= K_F16; dtype++) {
        FAST->load(dtype, in, wide, ALL);
        FAST->store(dtype, wide, out, ALL);
        int wrong = 0;
        for (int i = 0; i < ALL; i++)
            wrong += in[i] != out[i] && wide[i] == wide[i];
        CHECK(wrong == 0);
    }
}

// 2e-6 of the input up to 20 (1 + tanh cancels left of zero), 4e-6 of the result.
static void activations(void) {
    for (int act = K_NONE; act <= K_SIGMOID; act++)
        for (int round = 0; round < ROUNDS; round++) {
            int64_t n = any_length();
            values x = some(n, round % 2 ? 6 : 40, round % 3 == 0), a = copy_of(&x, n), b = copy_of(&x, n);
            double *t = tolerances(n);
            ref->act(act, a.p, n);
            FAST->act(act, b.p, n);
            for (int64_t i = 0; i < n; i++) {
                t[i] = 2e-6 * fmin(fmax(1, fabs(x.p[i])), 20) + 4e-6 * fabs(a.p[i]);
                // The limit at -inf is nobody's: x * sigmoid(x) is inf * 0.
                if (x.p[i] == -INFINITY && act >= K_SILU && act <= K_QUICK_GELU) a.p[i] = b.p[i] = 0;
            }
            row_close("act", act, b.p, a.p, t, n);
            free(t);
            CHECK(guarded_end(&x.g) && guarded_end(&a.g) && guarded_end(&b.g));
        }
}

// 2e-6 of the result; exp may flush results under FLT_MIN to 0.
static void unaries(void) {
    for (int op = K_NEG; op <= K_RECIP; op++)
        for (int round = 0; round < ROUNDS; round++) {
            int64_t n = any_length();
            values x = some(n, round % 2 ? 3 : 90, round % 3 == 0), a = copy_of(&x, n), b = copy_of(&x, n);
            double *t = tolerances(n);
            ref->unary(op, a.p, n);
            FAST->unary(op, b.p, n);
            for (int64_t i = 0; i < n; i++)
                t[i] = op == K_EXP ? FLT_MIN + 2e-6 * fabs(a.p[i]) : 2e-7 * fabs(a.p[i]);
            row_close("unary", op, b.p, a.p, t, n);
            free(t);
            CHECK(guarded_end(&x.g) && guarded_end(&a.g) && guarded_end(&b.g));
        }
}

// The same bits, also where the output is an operand.
static void binaries(void) {
    for (int op = K_ADD; op <= K_POW; op++)
        for (int round = 0; round < ROUNDS; round++) {
            int64_t n = any_length();
            int step_a = (int)random_below(4) != 0, step_b = (int)random_below(4) != 0;
            values x = some(n > 0 ? n : 1, 5, round % 2), y = some(n > 0 ? n : 1, 5, round % 2);
            values a = some(n, 1, false), b = some(n, 1, false);
            double *exact = tolerances(n);
            ref->binary(op, x.p, step_a, y.p, step_b, a.p, n);
            FAST->binary(op, x.p, step_a, y.p, step_b, b.p, n);
            row_close("binary", op, b.p, a.p, exact, n);
            values in = step_a ? x : y; // a dense operand, written over
            if (step_a || step_b) {
                FAST->binary(op, x.p, step_a, y.p, step_b, in.p, n);
                row_close("binary in place", op, in.p, a.p, exact, n);
            }
            free(exact);
            CHECK(guarded_end(&x.g) && guarded_end(&y.g) && guarded_end(&a.g) && guarded_end(&b.g));
        }
}

// 3e-7 of the terms: products may be fused or associated differently.
static void axpys(void) {
    for (int round = 0; round < 6 * ROUNDS; round++) {
        int64_t n = any_length();
        int step_x = (int)random_below(3) != 0, step_g = (int)random_below(2);
        bool gated = random_below(2);
        float alpha = random_float(2);
        values x = some(n > 0 ? n : 1, 5, false), g = some(n > 0 ? n : 1, 2, false), y = some(n, 5, false);
        if (round % 4 == 0 && n > 2) x.p[n / 2] = NAN, x.p[n / 3] = INFINITY, y.p[0] = -INFINITY;
        values a = copy_of(&y, n), b = copy_of(&y, n);
        double *t = tolerances(n);
        ref->axpy(a.p, alpha, x.p, step_x, gated ? g.p : NULL, step_g, n);
        FAST->axpy(b.p, alpha, x.p, step_x, gated ? g.p : NULL, step_g, n);
        for (int64_t i = 0; i < n; i++)
            t[i] = 3e-7 * (fabs(y.p[i]) + fabs(alpha * x.p[i * step_x]) * (gated ? fabs(g.p[i * step_g]) : 1));
        row_close("axpy", (int)gated, b.p, a.p, t, n);
        free(t);
        CHECK(guarded_end(&x.g) && guarded_end(&g.g) && guarded_end(&y.g) && guarded_end(&a.g) && guarded_end(&b.g));
    }
}

// Sums: 16 float lanes against a double, 1e-5 of the sum of sizes. Maximum: exact.
static void reductions(void) {
    for (int round = 0; round < 4 * ROUNDS; round++) {
        int64_t n = any_length();
        values x = some(n, 10, false);
        if (n && round % 5 == 1) x.p[random_below(n)] = INFINITY;
        if (n && round % 5 == 2) x.p[random_below(n)] = -INFINITY;
        double size = 0;
        for (int64_t i = 0; i < n; i++)
            size += isfinite(x.p[i]) ? fabs(x.p[i]) : 0;
        CHECK(close_to(FAST->sum(x.p, n), ref->sum(x.p, n), 1e-5 * size));
        CHECK(close_to(FAST->sumsq(x.p, n), ref->sumsq(x.p, n), 1e-4 * size));
        if (n) CHECK(FAST->max(x.p, n) == ref->max(x.p, n));
        if (n && round % 5 == 3) {
            x.p[random_below(n)] = NAN;
            CHECK(isnan(FAST->sum(x.p, n)) && isnan(FAST->sumsq(x.p, n)));
        }
        CHECK(guarded_end(&x.g));
    }
    float none[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    CHECK(FAST->max(none, 4) == -INFINITY && FAST->sum(none, 0) == 0);
}

// 5e-5 with |weight|, |scale| up to 2 (float sums); a mean of 100 as well.
static void norms(void) {
    for (int round = 0; round < 4 * ROUNDS; round++) {
        int64_t n = any_length();
        values x = some(n, round % 7 == 1 ? 1e-3f : 4, false);
        if (round % 7 == 0)
            for (int64_t i = 0; i < n; i++)
                x.p[i] += 100;
        if (round % 11 == 0)
            for (int64_t i = 0; i < n; i++)
                x.p[i] = 0;
        values w = some(n, 2, false), b = some(n, 2, false), sc = some(n, 2, false), sh = some(n, 2, false);
        values p = some(n, 1, false), q = copy_of(&x, n);
        const float *vw = random_below(2) ? w.p : NULL, *vb = random_below(2) ? b.p : NULL;
        const float *vs = random_below(2) ? sc.p : NULL, *vh = random_below(2) ? sh.p : NULL;
        double *t = tolerances(n);
        // A mean of 100 costs two digits of the difference.
        for (int64_t i = 0; i < n; i++)
            t[i] = round % 7 == 0 ? 5e-4 : 5e-5;
        ref->layer_norm(x.p, p.p, n, 1e-5f, vw, vb, vs, vh);
        FAST->layer_norm(q.p, q.p, n, 1e-5f, vw, vb, vs, vh); // in place
        row_close("layer_norm", round, q.p, p.p, t, n);
        ref->rms_norm(x.p, p.p, n, 1e-6f, vw, vs, vh);
        FAST->rms_norm(x.p, q.p, n, 1e-6f, vw, vs, vh);
        row_close("rms_norm", round, q.p, p.p, t, n);
        ref->l2_norm(x.p, p.p, n, vw);
        FAST->l2_norm(x.p, q.p, n, vw);
        row_close("l2_norm", round, q.p, p.p, t, n);
        free(t);
        values *all[] = {&x, &w, &b, &sc, &sh, &p, &q};
        for (int i = 0; i < 7; i++)
            CHECK(guarded_end(&all[i]->g));
    }
}

// 1e-5 of the result.
static void softmaxes(void) {
    for (int round = 0; round < 4 * ROUNDS; round++) {
        int64_t n = any_length();
        values x = some(n, round % 2 ? 5 : 200, false);
        for (int64_t i = 0; i < n; i++)
            if (round % 3 == 0 && random_below(3) == 0)
                x.p[i] = -INFINITY;
            else if (round % 13 == 0)
                x.p[i] = -INFINITY;
        values a = copy_of(&x, n), b = copy_of(&x, n);
        double *t = tolerances(n);
        ref->softmax(a.p, n);
        FAST->softmax(b.p, n);
        for (int64_t i = 0; i < n; i++)
            t[i] = FLT_MIN + 1e-5 * a.p[i];
        row_close("softmax", round, b.p, a.p, t, n);
        free(t);
        CHECK(guarded_end(&x.g) && guarded_end(&a.g) && guarded_end(&b.g));
    }
}

// 3e-7 of the terms.
static void ropes(void) {
    for (int round = 0; round < 4 * ROUNDS; round++) {
        int64_t n = any_length() / 2 * 2;
        values x = some(n, 5, false), c = some(n / 2, 1, false), s = some(n / 2, 1, false);
        values a = copy_of(&x, n), b = copy_of(&x, n);
        double *t = tolerances(n);
        ref->rope(a.p, c.p, s.p, n, round % 2);
        FAST->rope(b.p, c.p, s.p, n, round % 2);
        for (int64_t i = 0; i < n; i++)
            t[i] = 3e-7 * 10;
        row_close("rope", round % 2, b.p, a.p, t, n);
        free(t);
        CHECK(guarded_end(&x.g) && guarded_end(&c.g) && guarded_end(&s.g) && guarded_end(&a.g) && guarded_end(&b.g));
    }
}

// ---- times --------------------------------------------------------------------------------------------

enum {
    N = 4096
};
static float tx[N], ty[N], tz[N], tw[N];
static char tbytes[N * 8];

static void refill(void) {
    for (int i = 0; i < N; i++) {
        tx[i] = 0.5f + fabsf(random_float(0.4f));
        ty[i] = random_float(1);
        tz[i] = random_float(1);
        tw[i] = random_float(1);
    }
}

#define SHOW(what, op, call)                                                                                           \
    do {                                                                                                               \
        refill();                                                                                                      \
        const row_kernels *k = ref;                                                                                    \
        double slow, fast;                                                                                             \
        TIME(slow, call);                                                                                              \
        refill();                                                                                                      \
        k = FAST;                                                                                                      \
        TIME(fast, call);                                                                                              \
        printf("  %-7s %-12s %2d  %7.3f ns an element, %6.1f times the twin\n", now->name, what, op, fast * 1e9 / N,   \
            slow / fast);                                                                                              \
    } while (0)

static void times(void) {
    for (int d = K_F32; d <= K_I64; d++) {
        memset(tbytes, 0, sizeof tbytes);
        SHOW("load", d, k->load(d, tbytes, ty, N));
        SHOW("store", d, k->store(d, ty, tbytes, N));
    }
    for (int op = K_SILU; op <= K_SIGMOID; op++)
        SHOW("act", op, (memcpy(ty, tx, sizeof ty), k->act(op, ty, N)));
    for (int op = K_NEG; op <= K_RECIP; op++)
        SHOW("unary", op, (memcpy(ty, tx, sizeof ty), k->unary(op, ty, N)));
    for (int op = K_ADD; op <= K_POW; op++)
        SHOW("binary", op, k->binary(op, tx, 1, tz, 1, ty, N));
    volatile float kept;
    SHOW("axpy", 0, k->axpy(ty, 1e-3f, tx, 1, NULL, 0, N));
    SHOW("axpy gate", 0, k->axpy(ty, 1e-3f, tx, 1, tz, 1, N));
    SHOW("sum", 0, kept = k->sum(tx, N));
    SHOW("sumsq", 0, kept = k->sumsq(tx, N));
    SHOW("max", 0, kept = k->max(tx, N));
    (void)kept;
    SHOW("layer_norm", 0, k->layer_norm(tx, ty, N, 1e-5f, tz, tw, tz, tw));
    SHOW("rms_norm", 0, k->rms_norm(tx, ty, N, 1e-5f, tz, tw, tz));
    SHOW("l2_norm", 0, k->l2_norm(tx, ty, N, tz));
    SHOW("softmax", 0, (memcpy(ty, tx, sizeof ty), k->softmax(ty, N)));
    SHOW("rope", 0, k->rope(ty, tz, tw, N, false));
    SHOW("rope pairs", 1, k->rope(ty, tz, tw, N, true));
}

int main(void) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        now = &tables[i];
        if (mel_cpu_isa() < now->needs) {
            printf("skip %s: this processor has not got it\n", now->name);
            continue;
        }
        printf("-- %s\n", now->name);
        RUN(loads);
        RUN(stores);
        RUN(half_round_trip);
        RUN(activations);
        RUN(unaries);
        RUN(binaries);
        RUN(axpys);
        RUN(reductions);
        RUN(norms);
        RUN(softmaxes);
        RUN(ropes);
        times();
    }
    return CHECK_DONE();
}
