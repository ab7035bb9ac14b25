// Scores in 8 bits of every instruction set against sums in 64 bits, with guard bytes; and the rate (printed, never
// asserted).
#include "kernels/guard.h"
#include "kernels/scores_s8.h"

typedef struct tested {
    const char *name;
    const scores_s8_kernels *k;
    mel_isa needs;
} tested;
static const tested tables[] = {{"ref", &scores_s8_kernels_ref, MEL_ISA_PLAIN},
    {"avx2", &scores_s8_kernels_avx2, MEL_ISA_AVX2}, {"avx512vnni", &scores_s8_kernels_avx512, MEL_ISA_AVX512_BF16}};
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
        int64_t m = random_below(14), panels = random_below(4), k = 4 * random_below(40);
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
        times();
    }
    return CHECK_DONE();
}
