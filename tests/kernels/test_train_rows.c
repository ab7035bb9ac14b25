// Every kernel of training of every instruction set this processor has, against the naive twin in double: random
// lengths, starts off the vector boundary, guard bytes. Times are printed, never asserted.
#include "kernels/guard.h"
#include "kernels/rows.h"
#include "kernels/train.h"

typedef struct tested {
    const char *name;
    const train_kernels *k;
    mel_isa needs;
} tested;
static const tested tables[] = {
    {"avx2", &train_kernels_avx2, MEL_ISA_AVX2}, {"avx512", &train_kernels_avx512, MEL_ISA_AVX512}};
static const train_kernels *const ref = &train_kernels_ref;
static const tested *now;

enum {
    ROUNDS = 80,
    MOST = 24 // rows of values in one round
};

typedef struct values {
    guarded g[MOST];
    int count;
    int64_t n;
} values;

static float *some(values *v, float size) {
    guarded *g = &v->g[v->count++];
    *g = guarded_new((size_t)v->n * 4, 4 * (size_t)random_below(16));
    float *p = g->p;
    for (int64_t i = 0; i < v->n; i++)
        p[i] = random_float(size);
    return p;
}
static float *copy(values *v, const float *from) {
    float *p = some(v, 1);
    if (v->n) memcpy(p, from, (size_t)v->n * 4);
    return p;
}
static void done(values *v) {
    for (int i = 0; i < v->count; i++)
        CHECK(guarded_end(&v->g[i]));
    v->count = 0;
}

static int64_t any_length(void) {
    return random_below(10) ? random_below(301) : 2000 + random_below(2000);
}

static void close_rows(const char *what, int op, const float *got, const float *want, double tolerance, int64_t n) {
    check_count++;
    for (int64_t i = 0; i < n; i++) {
        if (fabs((double)got[i] - want[i]) <= tolerance * (1 + fabs((double)want[i]))) continue;
        check_failures++;
        fprintf(stderr, "%s %s %d: n %lld, at %lld: %.9g, wanted %.9g\n", now->name, what, op, (long long)n,
            (long long)i, got[i], want[i]);
        return;
    }
}

static void slopes(void) {
    for (int act = K_NONE; act <= K_SIGMOID; act++)
        for (int round = 0; round < ROUNDS; round++) {
            values v = {.n = any_length()};
            float *x = some(&v, round % 4 ? 4 : 60), *dy = some(&v, 2), *want = copy(&v, dy);
            now->k->act_grad(act, x, dy, v.n);
            ref->act_grad(act, x, want, v.n);
            close_rows("act_grad", act, dy, want, 2e-5, v.n);
            done(&v);
        }
    // Far out every slope is finite.
    static const float far[] = {1e4f, -1e4f, 1e30f, -1e30f, 88.5f, -88.5f, 200, -200};
    for (int act = K_SILU; act <= K_SIGMOID; act++) {
        float dy[8] = {1, 1, 1, 1, 1, 1, 1, 1}, want[8] = {1, 1, 1, 1, 1, 1, 1, 1}, x[8];
        // Beyond 1e4 GELU's cube leaves float32.
        for (int i = 0; i < 8; i++)
            x[i] = act == K_GELU_TANH && fabsf(far[i]) > 1e4f ? 10 * (far[i] > 0 ? 1.0f : -1.0f) : far[i];
        now->k->act_grad(act, x, dy, 8);
        ref->act_grad(act, x, want, 8);
        close_rows("far act_grad", act, dy, want, 1e-4, 8);
    }
}

static void sums(void) {
    for (int round = 0; round < ROUNDS; round++) {
        values v = {.n = any_length()};
        float *a = some(&v, 2), *b = some(&v, 2), *sum = some(&v, 2), *want = copy(&v, sum);
        CHECK_NEAR(now->k->dot(a, b, v.n), ref->dot(a, b, v.n), 1e-5 * (double)(v.n + 1));
        const float *second = round % 2 ? b : NULL;
        now->k->accumulate(sum, a, second, v.n);
        ref->accumulate(want, a, second, v.n);
        close_rows("accumulate", round % 2, sum, want, 1e-6, v.n);
        float *y = copy(&v, a), *dy = some(&v, 1), *dz = copy(&v, dy);
        row_kernels_ref.softmax(y, v.n);
        now->k->softmax_grad(y, dy, v.n);
        ref->softmax_grad(y, dz, v.n);
        close_rows("softmax_grad", 0, dy, dz, 1e-5, v.n);
        done(&v);
    }
}

static void norms(void) {
    for (int kind = K_NORM_LAYER; kind <= K_NORM_L2; kind++)
        for (int round = 0; round < ROUNDS; round++) {
            values v = {.n = 1 + any_length()};
            norm_row row = {.kind = kind, .eps = 1e-5f, .x = some(&v, 2), .dy = some(&v, 2), .dx = some(&v, 0)};
            int has = (int)random_below(32);
            if (has & 1) row.weight = some(&v, 2);
            if (has & 2) row.bias = some(&v, 2);
            if (has & 4) row.scale = some(&v, 1);
            if (has & 8) row.dweight = some(&v, 1), row.dbias = some(&v, 1);
            if (has & 16) row.dscale = some(&v, 1), row.dshift = some(&v, 1);
            norm_row want = row;
            want.dx = copy(&v, row.dx);
            if (has & 8) want.dweight = copy(&v, row.dweight), want.dbias = copy(&v, row.dbias);
            if (has & 16) want.dscale = copy(&v, row.dscale), want.dshift = copy(&v, row.dshift);
            now->k->norm_grad(&row, v.n);
            ref->norm_grad(&want, v.n);
            // A row of one value has no variance: its factor is 1 / sqrt(eps).
            double tolerance = v.n < 4 ? 2e-3 : 2e-5;
            close_rows("norm dx", kind, row.dx, want.dx, tolerance, v.n);
            if (has & 8) close_rows("norm dweight", kind, row.dweight, want.dweight, tolerance, v.n);
            if (has & 8) close_rows("norm dbias", kind, row.dbias, want.dbias, tolerance, v.n);
            if (has & 16) close_rows("norm dscale", kind, row.dscale, want.dscale, tolerance, v.n);
            if (has & 16) close_rows("norm dshift", kind, row.dshift, want.dshift, tolerance, v.n);
            done(&v);
        }
}

static void steps(void) {
    for (int round = 0; round < ROUNDS; round++) {
        values v = {.n = any_length()};
        float *p[2], *m[2], *s[2], *e[2] = {NULL, NULL}, *g = some(&v, 2);
        p[0] = some(&v, 1), m[0] = some(&v, 1), s[0] = some(&v, 1);
        for (int64_t i = 0; i < v.n; i++)
            s[0][i] = fabsf(s[0][i]);
        p[1] = copy(&v, p[0]), m[1] = copy(&v, m[0]), s[1] = copy(&v, s[0]);
        if (round % 2) e[0] = some(&v, 1), e[1] = copy(&v, e[0]);
        adamw_step step = {.rate = 0.01f,
            .decay = 0.001f,
            .beta1 = 0.9f,
            .beta2 = 0.99f,
            .eps = 1e-3f,
            .correction = 3,
            .grad_scale = 0.5f,
            .ema_rest = 0.05f};
        now->k->adamw(&step, p[0], g, m[0], s[0], e[0], v.n);
        ref->adamw(&step, p[1], g, m[1], s[1], e[1], v.n);
        close_rows("adamw p", 0, p[0], p[1], 2e-6, v.n);
        close_rows("adamw m", 0, m[0], m[1], 2e-6, v.n);
        close_rows("adamw v", 0, s[0], s[1], 2e-6, v.n);
        if (e[0]) close_rows("adamw ema", 0, e[0], e[1], 2e-6, v.n);
        done(&v);
    }
}

static void transposes(void) {
    for (int round = 0; round < ROUNDS; round++) {
        int64_t rows = 1 + random_below(40), columns = 1 + random_below(70), lds = columns + random_below(5);
        int64_t ldd = rows + random_below(5);
        guarded src = guarded_new((size_t)(rows * lds) * 4, 4), dst = guarded_new((size_t)(columns * ldd) * 2, 2);
        uint16_t *want = malloc((size_t)(columns * ldd) * 2), *got = dst.p;
        for (int64_t i = 0; i < rows * lds; i++)
            ((float *)src.p)[i] = i % 17 ? random_float(3) : NAN;
        memset(got, 0, (size_t)(columns * ldd) * 2);
        memset(want, 0, (size_t)(columns * ldd) * 2);
        now->k->transpose_bf16(src.p, rows, columns, lds, got, ldd);
        ref->transpose_bf16(src.p, rows, columns, lds, want, ldd);
        CHECK(memcmp(got, want, (size_t)(columns * ldd) * 2) == 0);
        free(want);
        CHECK(guarded_end(&src));
        CHECK(guarded_end(&dst));
        guarded words = guarded_new((size_t)(rows * lds) * 4, 4), turned = guarded_new((size_t)(columns * ldd) * 4, 4);
        uint32_t *back = malloc((size_t)(columns * ldd) * 4);
        for (int64_t i = 0; i < rows * lds; i++)
            ((uint32_t *)words.p)[i] = (uint32_t)random_below(1 << 30);
        memset(turned.p, 0, (size_t)(columns * ldd) * 4);
        memset(back, 0, (size_t)(columns * ldd) * 4);
        now->k->transpose32(words.p, rows, columns, lds, turned.p, ldd);
        ref->transpose32(words.p, rows, columns, lds, back, ldd);
        CHECK(memcmp(turned.p, back, (size_t)(columns * ldd) * 4) == 0);
        free(back);
        CHECK(guarded_end(&words));
        CHECK(guarded_end(&turned));
    }
}

static void depthwises(void) {
    for (int round = 0; round < ROUNDS; round++) {
        int64_t count = random_below(30), step = 16 + random_below(40), step_x = step * (1 + random_below(2));
        int taps = 1 + (int)random_below(8);
        values v = {.n = (count * 2 + 10) * step};
        float *x = some(&v, 2), *dy = some(&v, 2), *sum = some(&v, 1), *want = copy(&v, sum);
        now->k->depthwise(x, dy, count, step_x, step, taps, sum);
        ref->depthwise(x, dy, count, step_x, step, taps, want);
        close_rows("depthwise", taps, sum, want, 2e-5, v.n);
        done(&v);
    }
}

static void times(void) {
    values v = {.n = 4096};
    float *x = some(&v, 3), *dy = some(&v, 1), *dx = some(&v, 1), *w = some(&v, 1), *m = some(&v, 1), *s = some(&v, 0);
    norm_row row = {.kind = K_NORM_LAYER, .eps = 1e-5f, .x = x, .dy = dy, .dx = dx, .weight = w, .dweight = m};
    adamw_step step = {.rate = 0, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1, .correction = 1};
    const train_kernels *both[] = {now->k, ref};
    for (int i = 0; i < 2; i++) {
        double act, norm, adam;
        TIME(act, both[i]->act_grad(K_GELU_TANH, x, dy, v.n));
        TIME(norm, both[i]->norm_grad(&row, v.n));
        TIME(adam, both[i]->adamw(&step, w, x, m, s, NULL, v.n));
        printf("  %-6s 4096 values: gelu %.2f us, layer norm %.2f us, adamw %.2f us\n", i ? "ref" : now->name,
            act * 1e6, norm * 1e6, adam * 1e6);
    }
    done(&v);
}

int main(void) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        now = &tables[i];
        if (mel_cpu_isa() < now->needs) continue;
        RUN(slopes);
        RUN(sums);
        RUN(norms);
        RUN(steps);
        RUN(transposes);
        RUN(depthwises);
        times();
    }
    return CHECK_DONE();
}
