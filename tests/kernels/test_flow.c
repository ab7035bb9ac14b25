// Optical flow: rows of both instruction sets against each other with guard bytes, end-point errors on motion that is
// known, and the naive twin's beside them.
#include "guard.h"

#include <kernels/flow.h>
#include <melies/video.h>

// A texture that is defined at every real place: waves of many directions. 0..255.
static double texture(double x, double y) {
    double sum = 0;
    for (int i = 0; i < 9; i++) {
        double angle = 0.7 * i + 0.3, k = 0.09 + 0.055 * i;
        sum += sin(k * (cos(angle) * x + sin(angle) * y) + 1.7 * i * i) / (1 + 0.25 * i);
    }
    return 127 + 24 * sum;
}

// Where (x, y) of the first frame lies in the second: p = (m0 x + m1 y + m2, m3 x + m4 y + m5) about the centre.
typedef struct motion {
    const char *name;
    double m[6];
} motion;

static void forward(const double *m, double c, double x, double y, double *u, double *v) {
    double dx = x - c, dy = y - c;
    *u = m[0] * dx + m[1] * dy + m[2] - dx;
    *v = m[3] * dx + m[4] * dy + m[5] - dy;
}

// Two grey frames n x n as f32 RGB tensors in 0..1, the second one darker by `dark` of 255.
static void make(int n, const double *m, double dark, mel_tensor **a, mel_tensor **b) {
    int64_t shape[3] = {n, n, 3};
    CHECK_OK(mel_tensor_create(MEL_F32, 3, shape, a, err));
    CHECK_OK(mel_tensor_create(MEL_F32, 3, shape, b, err));
    float *pa = mel_tensor_data(*a), *pb = mel_tensor_data(*b);
    double c = (n - 1) / 2.0, det = m[0] * m[4] - m[1] * m[3];
    for (int y = 0; y < n; y++)
        for (int x = 0; x < n; x++) {
            double dx = x - c - m[2], dy = y - c - m[5];
            double sx = (m[4] * dx - m[1] * dy) / det + c, sy = (m[0] * dy - m[3] * dx) / det + c;
            for (int k = 0; k < 3; k++) {
                *pa++ = (float)(texture(x, y) / 255);
                *pb++ = (float)((texture(sx, sy) - dark) / 255);
            }
        }
}

// Mean distance to the truth over pixels whose way stays `margin` inside.
static double end_point_error(const float *flow, int n, const double *m, int margin) {
    double sum = 0, count = 0, c = (n - 1) / 2.0;
    for (int y = 0; y < n; y++)
        for (int x = 0; x < n; x++) {
            double u, v;
            forward(m, c, x, y, &u, &v);
            if (x < margin || y < margin || x >= n - margin || y >= n - margin) continue;
            if (x + u < 0 || y + v < 0 || x + u > n - 1 || y + v > n - 1) continue;
            sum += hypot(flow[2 * (y * n + x)] - u, flow[2 * (y * n + x) + 1] - v);
            count++;
        }
    return sum / count;
}

static const motion motions[] = {
    {"still", {1, 0, 0, 0, 1, 0}},
    {"translation (2.3, -1.6)", {1, 0, 2.3, 0, 1, -1.6}},
    {"translation (9.5, 6.25)", {1, 0, 9.5, 0, 1, 6.25}},
    {"rotation by 4 degrees", {0.99756405, -0.06975647, 0, 0.06975647, 0.99756405, 0}},
    {"zoom by 6 percent", {1.06, 0, 0, 0, 1.06, 0}},
};

static void known_motion(void) {
    int n = 160;
    for (size_t i = 0; i < sizeof motions / sizeof *motions; i++)
        for (int dark = 0; dark < 2; dark++) {
            mel_tensor *a, *b, *flow = NULL, *rough = NULL;
            make(n, motions[i].m, dark ? 12 : 0, &a, &b);
            CHECK_OK(mel_video_flow(a, b, NULL, &flow, err));
            mel_flow_options half = {.finest = 2};
            CHECK_OK(mel_video_flow(a, b, &half, &rough, err));
            double e = end_point_error(mel_tensor_data(flow), n, motions[i].m, 4);
            double r = end_point_error(mel_tensor_data(rough), n, motions[i].m, 4);
            printf("     %-26s %-7s end-point error %.3f px, from half the size %.3f px\n", motions[i].name,
                dark ? "darker" : "", e, r);
            CHECK(e < 0.12);
            CHECK(r < 0.2);
            mel_tensor_unref(flow);
            mel_tensor_unref(rough);
            mel_tensor_unref(a);
            mel_tensor_unref(b);
        }
}

static void beside_the_twin(void) {
    enum {
        N = 48
    };
    static float ga[N * N], gb[N * N], u[N * N], v[N * N], naive[N * N * 2];
    for (int i = 1; i < 5; i += 2) {
        mel_tensor *a, *b, *flow = NULL;
        make(N, motions[i].m, 0, &a, &b);
        for (int k = 0; k < N * N; k++) {
            ga[k] = 255 * ((float *)mel_tensor_data(a))[3 * k];
            gb[k] = 255 * ((float *)mel_tensor_data(b))[3 * k];
        }
        flow_reference(ga, gb, N, N, 4, u, v);
        for (int k = 0; k < N * N; k++) {
            naive[2 * k] = u[k];
            naive[2 * k + 1] = v[k];
        }
        CHECK_OK(mel_video_flow(a, b, NULL, &flow, err));
        double e = end_point_error(mel_tensor_data(flow), N, motions[i].m, 8);
        double r = end_point_error(naive, N, motions[i].m, 8);
        printf("     %-26s end-point error %.3f px, the twin's %.3f px\n", motions[i].name, e, r);
        CHECK(r < 0.3);
        CHECK(e < fmax(r, 0.1) + 0.05);
        mel_tensor_unref(flow);
        mel_tensor_unref(a);
        mel_tensor_unref(b);
    }
}

static void same_for_any_threads(void) {
    mel_tensor *a, *b, *first = NULL;
    make(300, motions[3].m, 5, &a, &b);
    for (int threads = 1; threads <= 5; threads += 2) {
        mel_tensor *flow = NULL;
        CHECK_OK(mel_set_threads(threads, err));
        CHECK_OK(mel_video_flow(a, b, NULL, &flow, err));
        if (first) CHECK(!memcmp(mel_tensor_data(first), mel_tensor_data(flow), (size_t)mel_tensor_bytes(flow)));
        if (!first) first = mel_tensor_ref(flow);
        mel_tensor_unref(flow);
    }
    CHECK_OK(mel_set_threads(0, err));
    mel_tensor_unref(first);
    mel_tensor_unref(a);
    mel_tensor_unref(b);
}

static bool near(const float *p, const float *q, int64_t n, double tolerance) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(p[i] - q[i]) <= tolerance * (1 + fabs(p[i])))) return false;
    return true;
}

// Two planes of a texture, their motion a little off the truth, and outputs between guard bytes.
static void rows_agree(void) {
    if (mel_cpu_isa() < MEL_ISA_AVX2) return;
    const flow_kernels *k[2] = {&flow_kernels_plain, &flow_kernels_avx2};
    for (int round = 0; round < 20; round++) {
        int64_t w = 8 + random_below(60), h = 8 + random_below(40), stride = w + 2 * FLOW_PAD, nx = flow_patches(w);
        size_t plane_bytes = sizeof(float) * (size_t)(stride * (h + 2 * FLOW_PAD)),
               field = sizeof(float) * (size_t)(w * h);
        guarded ga = guarded_new(plane_bytes, 4), gb = guarded_new(plane_bytes, 8), guess = guarded_new(2 * field, 4);
        float *pa = ga.p, *pb = gb.p, *gu = guess.p, *gv = gu + w * h;
        for (int64_t y = 0; y < h + 2 * FLOW_PAD; y++)
            for (int64_t x = 0; x < stride; x++) {
                pa[y * stride + x] = (float)texture((double)x, (double)y);
                pb[y * stride + x] = (float)texture((double)x - 1.4, (double)y + 0.8);
            }
        for (int64_t i = 0; i < w * h; i++) {
            gu[i] = 1.4f + random_float(round == 0 ? 500 : 1);
            gv[i] = -0.8f + random_float(round == 0 ? 500 : 1);
        }
        flow_plane a = {pa + FLOW_PAD * stride + FLOW_PAD, w, h, stride}, b = a;
        b.p = pb + FLOW_PAD * stride + FLOW_PAD;
        int64_t y = random_below(h), j = random_below(flow_patches(h));
        guarded m[2], u[2], d[2], s[2], n[2];
        for (int i = 0; i < 2; i++) {
            m[i] = guarded_new(sizeof(flow_match) * (size_t)(nx * flow_patches(h)), 4);
            u[i] = guarded_new(sizeof(float) * (size_t)(3 * w), 4);
            s[i] = guarded_new(5 * field, 4);
            n[i] = guarded_new(2 * field, 4);
            d[i] = guarded_new(sizeof(float) * (size_t)(2 * w), 4);
            flow_match *matches = m[i].p;
            for (int64_t p = 0; p < flow_patches(h); p++)
                k[i]->search(&a, &b, gu, gv, p, 12, matches + p * nx);
            float *row = u[i].p, *f = s[i].p;
            // The same matches for both, so that what follows can be compared closely.
            k[i]->densify(&a, &b, m[0].p, y, row, row + w, row + 2 * w);
            flow_system system = {f, f + w * h, f + 2 * w * h, f + 3 * w * h, f + 4 * w * h, gu, gv, w, h, 0.3f};
            for (int64_t p = 0; p < h; p++)
                k[i]->linearise(&a, &b, &system, p);
            float *next = n[i].p;
            for (int64_t p = 0; p < h; p++)
                k[i]->relax(&system, gu, gv, p, next, next + w * h);
            k[i]->warp(gu, w, h, 1, gu, 0, d[i].p); // any numbers do for a flow
        }
        const flow_match *p = (flow_match *)m[0].p + j * nx, *q = (flow_match *)m[1].p + j * nx;
        if (round > 0)
            for (int64_t i = 0; i < nx; i++)
                CHECK_NEAR(hypot(p[i].u - q[i].u, p[i].v - q[i].v), 0, 0.1);
        CHECK(near(u[0].p, u[1].p, 3 * w, 1e-3));
        CHECK(near(s[0].p, s[1].p, 5 * w * h, 5e-3));
        CHECK(near(n[0].p, n[1].p, 2 * w * h, 5e-3));
        for (int i = 0; i < 2; i++)
            CHECK(guarded_end(&m[i]) && guarded_end(&u[i]) && guarded_end(&s[i]) && guarded_end(&n[i]) &&
                  guarded_end(&d[i]));
        CHECK(guarded_end(&ga) && guarded_end(&gb) && guarded_end(&guess));
    }
}

static void times(void) {
    mel_tensor *a, *b;
    make(256, motions[1].m, 0, &a, &b);
    for (int isa = 0; isa < 2; isa++) {
        double best = INFINITY;
        mel_set_isa(isa ? MEL_ISA_AMX : MEL_ISA_PLAIN);
        for (int i = 0; i < 3; i++) {
            mel_tensor *flow = NULL;
            double start = mel_seconds();
            CHECK_OK(mel_video_flow(a, b, NULL, &flow, err));
            best = fmin(best, mel_seconds() - start);
            mel_tensor_unref(flow);
        }
        printf("     256x256, %s: %.1f ms\n", isa ? "vectors" : "plain", 1e3 * best);
    }
    mel_tensor_unref(a);
    mel_tensor_unref(b);
}

int main(void) {
    RUN(known_motion);
    RUN(beside_the_twin);
    RUN(same_for_any_threads);
    RUN(rows_agree);
    RUN(times);
    return CHECK_DONE();
}
