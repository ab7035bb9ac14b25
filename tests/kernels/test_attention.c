// Attention's kernels of every instruction set against naive twins: random shapes, guard bytes, and the rate of the
// product (printed, never asserted).
#include "kernels/attention.h"
#include "kernels/guard.h"
#include "kernels/rows.h"

typedef struct tested {
    const char *name;
    const attention_kernels *k;
    mel_isa needs;
} tested;
static const tested tables[] = {{"ref", &attention_kernels_ref, MEL_ISA_PLAIN},
    {"avx2", &attention_kernels_avx2, MEL_ISA_AVX2}, {"avx512", &attention_kernels_avx512, MEL_ISA_AVX512},
    {"avx512bf16", &attention_kernels_avx512bf16, MEL_ISA_AVX512_BF16}, {"amx", &attention_kernels_amx, MEL_ISA_AMX}};
static const tested *now;

static int operand_dtype(void) {
    return now->k->pairs == 2 ? K_BF16 : K_F32;
}
static int64_t operand_size(void) {
    return now->k->pairs == 2 ? 2 : 4;
}

// n floats as operands at p, and back into x with what the operand keeps of them.
static void as_operands(float *x, void *p, int64_t n) {
    row_kernels_ref.store(operand_dtype(), x, p, n);
    row_kernels_ref.load(operand_dtype(), p, x, n);
}

// b [k][n] into panels: each [k / pairs][columns][pairs].
static void pack(const float *b, void *out, int64_t k, int64_t n) {
    const int64_t panel = now->k->panel, pairs = now->k->pairs;
    for (int64_t t = 0; t < k; t++)
        for (int64_t j = 0; j < n; j++) {
            int64_t first = j / panel * panel, columns = n - first < panel ? n - first : panel;
            int64_t at = first * k + (t / pairs * columns + j % panel) * pairs + t % pairs;
            row_kernels_ref.store(operand_dtype(), &b[t * n + j], (char *)out + at * operand_size(), 1);
        }
}

static void fill(float *x, int64_t n, float size) {
    for (int64_t i = 0; i < n; i++)
        x[i] = random_float(size);
}

// c = (add ? c : 0) + a b: 1e-5 of the sum of the terms' sizes. Between rows of c nothing is written.
static void products(void) {
    for (int round = 0; round < 150; round++) {
        const int64_t pairs = now->k->pairs, size = operand_size();
        int64_t m = random_below(80), n = random_below(17) * now->k->width, k = random_below(40) * pairs;
        int64_t lda = k + random_below(5) * pairs, ldc = n + random_below(20);
        bool add = random_below(2);
        guarded a = guarded_new((size_t)(m * lda * size), (size_t)(size * pairs * random_below(8)));
        guarded b = guarded_new((size_t)(k * n * size), (size_t)(size * pairs * random_below(8)));
        guarded c = guarded_new((size_t)(m * ldc) * 4, 4 * (size_t)random_below(16));
        float *fa = malloc((size_t)(m * lda + 1) * 4), *fb = malloc((size_t)(k * n + 1) * 4);
        fill(fa, m * lda, 2);
        fill(fb, k * n, 2);
        as_operands(fa, a.p, m * lda);
        pack(fb, b.p, k, n);
        for (int64_t i = 0; i < k * n; i++) { // what was stored
            char one[4];
            as_operands(&fb[i], one, 1);
        }
        float *got = c.p, *before = malloc((size_t)(m * ldc + 1) * 4);
        fill(got, m * ldc, 1);
        memcpy(before, got, (size_t)(m * ldc) * 4);
        now->k->product(m, n, k, a.p, lda, b.p, got, ldc, add);
        check_count++;
        if (m > 1) { // the same bits however rows are divided
            int64_t cut = 1 + random_below(m - 1);
            float *parts = malloc((size_t)(m * ldc) * 4);
            memcpy(parts, before, (size_t)(m * ldc) * 4);
            now->k->product(cut, n, k, a.p, lda, b.p, parts, ldc, add);
            now->k->product(m - cut, n, k, (char *)a.p + cut * lda * size, lda, b.p, parts + cut * ldc, ldc, add);
            CHECK(!memcmp(parts, got, (size_t)(m * ldc) * 4));
            free(parts);
        }
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < ldc; j++) {
                double want = j >= n || add ? before[i * ldc + j] : 0, terms = 0;
                for (int64_t t = 0; t < k && j < n; t++) {
                    want += (double)fa[i * lda + t] * fb[t * n + j];
                    terms += fabs((double)fa[i * lda + t] * fb[t * n + j]);
                }
                if (fabs(got[i * ldc + j] - want) <= (j < n ? 1e-5 * (1 + terms) : 0)) continue;
                check_failures++;
                fprintf(stderr, "%s product %lld x %lld x %lld at %lld, %lld: %.9g, wanted %.9g\n", now->name,
                    (long long)m, (long long)n, (long long)k, (long long)i, (long long)j, got[i * ldc + j], want);
                i = m;
                break;
            }
        free(fa);
        free(fb);
        free(before);
        CHECK(guarded_end(&a) && guarded_end(&b) && guarded_end(&c));
    }
}

// One row in two blocks with masks: against exp in double. 1e-5 of the result, 1 in 256 where p is bf16.
static void rows(void) {
    for (int round = 0; round < 300; round++) {
        int64_t n = random_below(300);
        float scale = 0.05f + fabsf(random_float(1)), top = round % 3 ? -INFINITY : random_float(4);
        bool with_bias = random_below(2), with_key_bias = random_below(2), nothing = round % 17 == 0;
        guarded s = guarded_new((size_t)n * 4, 4 * (size_t)random_below(16));
        guarded bias = guarded_new((size_t)n * 4, 4 * (size_t)random_below(16));
        guarded key = guarded_new((size_t)n * 4, 4 * (size_t)random_below(16));
        guarded p = guarded_new((size_t)(n * operand_size()), (size_t)(operand_size() * random_below(16)));
        float *fs = s.p, *fb = bias.p, *fk = key.p;
        fill(fs, n, 20);
        fill(fb, n, 3);
        fill(fk, n, 3);
        for (int64_t i = 0; i < n; i++) {
            if (random_below(5) == 0) fk[i] = -INFINITY;
            if (random_below(9) == 0 || nothing) fs[i] = -INFINITY;
        }
        double want_top = top, want_sum = 0, *want = malloc(sizeof(double) * (size_t)(n + 1));
        for (int64_t i = 0; i < n; i++) {
            want[i] = (double)fs[i] * scale + (with_bias ? fb[i] : 0) + (with_key_bias ? fk[i] : 0);
            if (want[i] > want_top) want_top = want[i];
        }
        for (int64_t i = 0; i < n; i++) {
            want[i] = want_top == -INFINITY ? 0 : exp(want[i] - want_top);
            want_sum += want[i];
        }
        float sum = now->k->row(fs, n, scale, with_bias ? fb : NULL, with_key_bias ? fk : NULL, &top, p.p);
        CHECK(want_top == top || fabs(want_top - top) <= 1e-5);
        CHECK_NEAR(sum, want_sum, 4e-5 * (want_sum + 1e-30));
        check_count++;
        for (int64_t i = 0; i < n; i++) {
            float got;
            row_kernels_ref.load(operand_dtype(), (char *)p.p + i * operand_size(), &got, 1);
            // A float score of 20 is 1e-6 off, and so is its exponential.
            if (fabs(got - want[i]) <= (now->k->pairs == 2 ? 1.0 / 256 : 3e-5) * want[i] + 1e-37) continue;
            check_failures++;
            fprintf(stderr, "%s row: n %lld, at %lld: %.9g, wanted %.9g\n", now->name, (long long)n, (long long)i, got,
                want[i]);
            break;
        }
        free(want);
        CHECK(guarded_end(&s) && guarded_end(&bias) && guarded_end(&key) && guarded_end(&p));
    }
}

// Several rows at once against one after another: sums and probabilities as close as those are to exp.
static void many_rows(void) {
    for (int round = 0; round < 200; round++) {
        int64_t m = random_below(6), n = 1 + random_below(280), lds = n + random_below(20), ldp = n + random_below(20);
        guarded s = guarded_new((size_t)(m * lds) * 4, 4 * (size_t)random_below(16));
        guarded p = guarded_new((size_t)(m * ldp * operand_size()), (size_t)(operand_size() * random_below(16)));
        float *fs = s.p, scales[6], top[6], sums[6], *line = malloc((size_t)n * 4);
        char *one = malloc((size_t)n * 4), *mark = malloc((size_t)(m * ldp * operand_size()) + 1);
        fill(fs, m * lds, 20);
        memset(p.p, 0x5a, (size_t)(m * ldp * operand_size()));
        memcpy(mark, p.p, (size_t)(m * ldp * operand_size()));
        for (int64_t i = 0; i < m; i++) {
            scales[i] = 0.05f + fabsf(random_float(1));
            top[i] = round % 3 ? -INFINITY : random_float(4);
        }
        float before[6];
        memcpy(before, top, sizeof before);
        float *copy = malloc((size_t)(m * lds) * 4 + 1);
        memcpy(copy, fs, (size_t)(m * lds) * 4);
        now->k->rows(m, n, fs, lds, scales, top, sums, p.p, ldp);
        check_count++;
        for (int64_t i = 0; i < m; i++) {
            memcpy(line, copy + i * lds, (size_t)n * 4);
            float sum = attention_kernels_ref.row(line, n, scales[i], NULL, NULL, &before[i], one);
            bool fine = fabsf(top[i] - before[i]) <= 1e-5f && fabsf(sums[i] - sum) <= 4e-5f * sum;
            for (int64_t c = 0; c < n && fine; c++) {
                float got, want = ((float *)(void *)one)[c];
                row_kernels_ref.load(operand_dtype(), (char *)p.p + (i * ldp + c) * operand_size(), &got, 1);
                fine = fabsf(got - want) <= (now->k->pairs == 2 ? 1.0f / 256 : 3e-5f) * want + 1e-37f;
            }
            fine = fine && !memcmp((char *)p.p + (i * ldp + n) * operand_size(), mark + (i * ldp + n) * operand_size(),
                               (size_t)((ldp - n) * operand_size()));
            if (fine) continue;
            check_failures++;
            fprintf(stderr, "%s rows: row %lld of %lld, n %lld\n", now->name, (long long)i, (long long)m, (long long)n);
        }
        free(line), free(one), free(mark), free(copy);
        CHECK(guarded_end(&s) && guarded_end(&p));
    }
}

static void times(void) {
    enum {
        M = 96,
        KEYS = 256,
        D = 128
    };
    static float c[M * KEYS], scales[M], top[M], sums[M];
    static char a[M * D * 4], b[D * KEYS * 4], p[M * KEYS * 4];
    double seconds;
    TIME(seconds, now->k->product(M, KEYS, D, a, D, b, c, KEYS, false));
    printf("  %-10s product %d x %d x %d: %.1f GFLOP/s\n", now->name, M, KEYS, D, 2e-9 * M * KEYS * D / seconds);
    for (int64_t i = 0; i < M; i++)
        scales[i] = 1;
    TIME(seconds, now->k->rows(M, KEYS, c, KEYS, scales, top, sums, p, KEYS));
    printf("  %-10s %d rows of %d: %.3f ns a score\n", now->name, M, KEYS, seconds * 1e9 / M / KEYS);
}

int main(void) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        now = &tables[i];
        if (mel_cpu_isa() < now->needs) {
            printf("skip %s: this processor has not got it\n", now->name);
            continue;
        }
        printf("-- %s\n", now->name);
        RUN(products);
        RUN(rows);
        RUN(many_rows);
        times();
    }
    return CHECK_DONE();
}
