// 8-bit attention's kernels of every instruction set against naive twins, with guard bytes; and the rate of the scores
// (printed, never asserted).
#include "kernels/attention_s8.h"
#include "kernels/guard.h"

typedef struct tested {
    const char *name;
    const attention_s8_kernels *k;
    mel_isa needs;
} tested;
static const tested tables[] = {{"ref", &attention_s8_kernels_ref, MEL_ISA_PLAIN},
    {"avx2", &attention_s8_kernels_avx2, MEL_ISA_AVX2},
    {"avx512vnni", &attention_s8_kernels_avx512, MEL_ISA_AVX512_BF16}, {"amx", &attention_s8_kernels_amx, MEL_ISA_AMX}};
static const tested *now;

static int8_t *panel_at(void *keys, int64_t p, int64_t k) {
    return (int8_t *)keys + p * (SCORES_HEAD + SCORES_PANEL * k);
}

// Panels of random keys, -127 to 127; the largest of all values where `full`.
static void fill_keys(void *keys, int64_t panels, int64_t k, bool full) {
    for (int64_t p = 0; p < panels; p++) {
        int8_t *panel = panel_at(keys, p, k), *values = panel + SCORES_HEAD;
        float *scales = (float *)(void *)panel;
        for (int64_t j = 0; j < SCORES_PANEL; j++) {
            scales[j] = 0.5f + random_float(0.4f);
            int sum = 0;
            for (int64_t t = 0; t < k; t++) {
                int value = full ? (random_below(2) ? 127 : -127) : (int)random_below(255) - 127;
                values[(t / 4 * SCORES_PANEL + j) * 4 + t % 4] = (int8_t)value;
                sum += value;
            }
            scales[SCORES_PANEL + j] = -128.0f * (float)sum * scales[j];
        }
    }
}

static void scores(void) {
    for (int round = 0; round < 150; round++) {
        int64_t m = random_below(120), panels = random_below(4), k = 4 * random_below(40);
        int64_t ldq = k + random_below(9), lds = panels * SCORES_PANEL + random_below(20);
        bool full = round % 5 == 0;
        guarded q = guarded_new((size_t)(m * ldq), (size_t)random_below(16));
        guarded keys = guarded_new((size_t)(panels * (SCORES_HEAD + SCORES_PANEL * k)), 4 * (size_t)random_below(16));
        guarded s = guarded_new((size_t)(m * lds) * 4, 4 * (size_t)random_below(16));
        uint8_t *values = q.p;
        float *got = s.p;
        for (int64_t i = 0; i < m * ldq; i++)
            values[i] = (uint8_t)(full ? (random_below(2) ? 255 : 1) : 1 + random_below(255));
        for (int64_t i = 0; i < m * lds; i++)
            got[i] = 77;
        fill_keys(keys.p, panels, k, full);
        now->k->scores(m, panels, k, values, ldq, keys.p, got, lds);
        check_count++;
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < lds; j++) {
                float want = 77, allowed = 0;
                if (j < panels * SCORES_PANEL) {
                    const int8_t *panel = panel_at(keys.p, j / SCORES_PANEL, k);
                    const int64_t column = j % SCORES_PANEL;
                    int64_t sum = 0;
                    for (int64_t t = 0; t < k; t++)
                        sum += (values[i * ldq + t] - 128) *
                               (int64_t)panel[SCORES_HEAD + (t / 4 * SCORES_PANEL + column) * 4 + t % 4];
                    want = (float)sum * ((const float *)(const void *)panel)[column];
                    allowed = 1e-6f * 128 * 128 * (float)k; // of sums that cancel
                }
                if (fabsf(got[i * lds + j] - want) <= allowed) continue;
                check_failures++;
                fprintf(stderr, "%s scores %lld x %lld x %lld at %lld, %lld: %.9g, wanted %.9g\n", now->name,
                    (long long)m, (long long)panels, (long long)k, (long long)i, (long long)j, got[i * lds + j], want);
                i = m;
                break;
            }
        CHECK(guarded_end(&q) && guarded_end(&keys) && guarded_end(&s));
    }
}

// Probabilities against exp in double, one step of 255 off at most where it lies between two; their sums exactly.
static void rows(void) {
    for (int round = 0; round < 200; round++) {
        int64_t m = random_below(6), n = 1 + random_below(280), lds = n + random_below(20), ldp = n + random_below(20);
        guarded s = guarded_new((size_t)(m * lds) * 4, 4 * (size_t)random_below(16));
        guarded p = guarded_new((size_t)(m * ldp), (size_t)random_below(16));
        float *fs = s.p, scales[6], top[6], sums[6];
        uint8_t *got = p.p;
        for (int64_t i = 0; i < m * lds; i++)
            fs[i] = random_float(20);
        for (int64_t i = 0; i < m; i++)
            scales[i] = 0.05f + fabsf(random_float(1));
        memset(got, 0x5a, (size_t)(m * ldp));
        now->k->rows(m, n, fs, lds, scales, top, sums, got, ldp);
        check_count++;
        for (int64_t i = 0; i < m; i++) {
            double high = -INFINITY;
            int64_t sum = 0;
            for (int64_t j = 0; j < n; j++)
                high = fmax(high, (double)fs[i * lds + j] * scales[i]);
            bool fine = fabs(top[i] - high) < 1e-5;
            for (int64_t j = 0; j < n; j++) {
                double want = 255 * exp((double)fs[i * lds + j] * scales[i] - high);
                fine = fine && fabs(got[i * ldp + j] - want) <= 0.53;
                sum += got[i * ldp + j];
            }
            for (int64_t j = n; j < ldp; j++)
                fine = fine && got[i * ldp + j] == 0x5a;
            if (fine && sums[i] == (float)sum) continue;
            check_failures++;
            fprintf(stderr, "%s rows: row %lld of %lld, n %lld\n", now->name, (long long)i, (long long)m, (long long)n);
        }
        CHECK(guarded_end(&s) && guarded_end(&p));
    }
}

static void adding(void) {
    for (int round = 0; round < 120; round++) {
        int64_t m = random_below(14), panels = random_below(3), keys = 4 * (1 + random_below(40));
        int64_t k = 4 * random_below(keys / 4 + 1), first = 4 * random_below((keys - k) / 4 + 1);
        int64_t ldp = k + random_below(9), lda = panels * SCORES_PANEL + random_below(20);
        const int64_t bytes = VALUES_HEAD + SCORES_PANEL * keys;
        guarded p = guarded_new((size_t)(m * ldp), (size_t)random_below(16));
        guarded v = guarded_new((size_t)(panels * bytes), 4 * (size_t)random_below(16));
        guarded acc = guarded_new((size_t)(m * lda) * 4, 4 * (size_t)random_below(16));
        uint8_t *probabilities = p.p;
        int8_t *values = v.p;
        float *got = acc.p, weights[14];
        double *want = malloc(sizeof(double) * (size_t)(m * lda + 1));
        for (int64_t i = 0; i < m * ldp; i++)
            probabilities[i] = (uint8_t)(round % 5 ? random_below(256) : 255);
        for (int64_t i = 0; i < panels * bytes; i++)
            values[i] = (int8_t)(round % 5 ? random_below(255) - 127 : -127);
        for (int64_t c = 0; c < panels * SCORES_PANEL; c++)
            ((float *)(void *)(values + c / SCORES_PANEL * bytes))[c % SCORES_PANEL] = 0.5f + random_float(0.4f);
        for (int64_t i = 0; i < m; i++)
            weights[i] = random_float(1);
        for (int64_t i = 0; i < m * lda; i++)
            want[i] = got[i] = random_float(3);
        for (int64_t i = 0; i < m; i++)
            for (int64_t c = 0; c < panels * SCORES_PANEL; c++) {
                const int8_t *panel = values + c / SCORES_PANEL * bytes;
                const int64_t column = c % SCORES_PANEL;
                for (int64_t t = 0; t < k; t++)
                    want[i * lda + c] += (double)weights[i] * ((const float *)(const void *)panel)[column] *
                                         probabilities[i * ldp + t] *
                                         panel[VALUES_HEAD + ((first + t) / 4 * SCORES_PANEL + column) * 4 + t % 4];
            }
        now->k->add(m, panels, k, probabilities, ldp, values, keys, first, weights, got, lda);
        check_count++;
        for (int64_t i = 0; i < m * lda; i++) {
            if (fabs(got[i] - want[i]) <= 1e-5 + 2e-6 * fabs(want[i])) continue;
            check_failures++;
            fprintf(stderr, "%s add %lld x %lld x %lld: %.9g, wanted %.9g\n", now->name, (long long)m, (long long)k,
                (long long)panels, got[i], want[i]);
            break;
        }
        free(want);
        CHECK(guarded_end(&p) && guarded_end(&v) && guarded_end(&acc));
    }
}

static void times(void) {
    enum {
        M = 96,
        PANELS = 4,
        D = 128
    };
    static float s[M * PANELS * SCORES_PANEL];
    static uint8_t q[M * D];
    static int64_t keys[PANELS * (SCORES_HEAD + SCORES_PANEL * D) / 8];
    double seconds;
    TIME(seconds, now->k->scores(M, PANELS, D, q, D, (int8_t *)keys, s, PANELS * SCORES_PANEL));
    printf("  %-10s %d x %d x %d: %.1f GOP/s\n", now->name, M, PANELS * SCORES_PANEL, D,
        2e-9 * M * PANELS * SCORES_PANEL * D / seconds);
}

int main(void) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        now = &tables[i];
        if (mel_cpu_isa() < now->needs) {
            printf("skip %s: this processor has not got it\n", now->name);
            continue;
        }
        printf("-- %s\n", now->name);
        RUN(scores);
        RUN(rows);
        RUN(adding);
        times();
    }
    return CHECK_DONE();
}
