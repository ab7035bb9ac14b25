// The 8-bit kernels against their naive twin: random shapes, guard bytes.
#include "check.h"

#include <kernels/gemm_s8.h>
#include <melies/base.h>

typedef struct tested {
    const char *name;
    const gemm_s8_kernels *k;
    mel_isa needs;
} tested;
static const tested tables[] = {{"ref", &gemm_s8_kernels_ref, MEL_ISA_PLAIN},
    {"avx512vnni", &gemm_s8_kernels_avx512, MEL_ISA_AVX512_BF16}, {"amx", &gemm_s8_kernels_amx, MEL_ISA_AMX}};
static const tested *now;

static uint32_t state = 7;

static uint32_t next(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void products(void) {
    for (int round = 0; round < 60; round++) {
        int64_t m = 1 + next() % 100, n = S8_PANEL * (1 + next() % 3), k = 4 * (1 + next() % 40), lda = k + next() % 9;
        uint8_t *a = malloc((size_t)(m * lda));
        int8_t *b = malloc((size_t)(n * k));
        int32_t *want = malloc((size_t)(m * n + 2) * 4), *got = malloc((size_t)(m * n + 2) * 4);
        for (int64_t i = 0; i < m * lda; i++)
            a[i] = (uint8_t)next();
        for (int64_t i = 0; i < n * k; i++)
            b[i] = (int8_t)(next() % 255 - 127);
        for (int64_t i = 0; i < m * n + 2; i++)
            want[i] = got[i] = (int32_t)next();
        bool add = round % 2;
        gemm_s8_kernels_ref.product(m, n, k, a, lda, b, want + 1, n, add);
        now->k->product(m, n, k, a, lda, b, got + 1, n, add);
        CHECK(!memcmp(want, got, (size_t)(m * n + 2) * 4));
        free(a);
        free(b);
        free(want);
        free(got);
    }
}

static void rows(void) {
    for (int n = 0; n < 150; n++) {
        float x[160], y[160], z[160], scales[160], bias[160];
        uint8_t p[160], q[160];
        int32_t c[160], sums[160];
        for (int i = 0; i < 160; i++) {
            x[i] = (float)((int)(next() % 2001) - 1000) / 77.0f;
            p[i] = q[i] = (uint8_t)next();
            c[i] = (int32_t)next() - (1 << 23);
            sums[i] = (int32_t)(next() % 20000) - 10000;
            scales[i] = 0.001f + (float)(next() % 1000) / 1e5f;
            bias[i] = x[i];
            y[i] = z[i] = -1;
        }
        if (n == 7) memset(x, 0, sizeof x);
        CHECK(gemm_s8_kernels_ref.quantize(x, n, p) == now->k->quantize(x, n, q));
        CHECK(!memcmp(p, q, sizeof p));
        gemm_s8_kernels_ref.finish(c, n, sums, 0.7f, scales, n % 2 ? bias : NULL, y);
        now->k->finish(c, n, sums, 0.7f, scales, n % 2 ? bias : NULL, z);
        for (int i = 0; i < 160; i++)
            CHECK_NEAR(y[i], z[i], 1e-5 * fabs(y[i]) + 1e-6);
    }
}

static void rotations(void) {
    enum {
        N = 1024
    };
    float x[N], y[N], z[N];
    for (int64_t block = 16; block <= N; block *= 2) {
        double before = 0, after = 0;
        for (int i = 0; i < N; i++) {
            x[i] = y[i] = z[i] = (float)((int)(next() % 2001) - 1000) / 77.0f;
            before += (double)x[i] * x[i];
        }
        gemm_s8_kernels_ref.rotate(y, N, block);
        now->k->rotate(z, N, block);
        CHECK(!memcmp(y, z, sizeof y));
        for (int i = 0; i < N; i++)
            after += (double)y[i] * y[i];
        CHECK_NEAR(after, before, 1e-5 * before);
        float all = 0; // the first row of a Hadamard matrix is ones
        for (int i = 0; i < block; i++)
            all += x[i];
        CHECK_NEAR(y[0], all / sqrt((double)block), 1e-3);
        gemm_s8_kernels_ref.rotate(y, N, block); // it is its own inverse
        for (int i = 0; i < N; i++)
            CHECK_NEAR(y[i], x[i], 1e-4);
    }
}

static void speed(void) {
    enum {
        M = 192,
        N = 256,
        K = 1536
    };
    uint8_t *a = calloc(M * K, 1);
    int8_t *b = calloc(N * K, 1);
    int32_t *c = calloc(M * N, 4);
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        double t = mel_seconds();
        now->k->product(M, N, K, a, K, b, c, N, false);
        t = mel_seconds() - t;
        best = t < best ? t : best;
    }
    printf("  %-10s product %dx%dx%d: %.0f GOP/s on one core\n", now->name, M, N, K, 2.0 * M * N * K / best / 1e9);
    free(a);
    free(b);
    free(c);
}

int main(void) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (mel_cpu_isa() < tables[i].needs) continue;
        now = &tables[i];
        printf("-- %s\n", now->name);
        RUN(products);
        RUN(rows);
        RUN(rotations);
        RUN(speed);
    }
    return CHECK_DONE();
}
