// Lab values of known colours, warps, the forward-backward check, frames between, blur, FFmpeg's filters; wrong input,
// and every allocation failing.
#include "check.h"

#include <melies/filter.h>
#include <melies/video.h>

static mel_tensor *tensor(mel_dtype dtype, int64_t h, int64_t w, int64_t c) {
    int64_t shape[3] = {h, w, c};
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_zeros(dtype, 3, shape, &t, err));
    return t;
}

// A bright disc on a ground with waves; its centre at (cx, cy).
static mel_tensor *disc(int64_t h, int64_t w, double cx, double cy) {
    mel_tensor *t = tensor(MEL_F32, h, w, 3);
    float *p = mel_tensor_data(t);
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++)
            for (int c = 0; c < 3; c++) {
                double dx = (double)x - cx, dy = (double)y - cy, d = hypot(dx, dy);
                double ground = 0.3 + 0.1 * sin(0.5 * (double)x) * cos(0.4 * (double)y);
                double ball = 0.75 + 0.15 * sin(0.6 * dx + c) * cos(0.5 * dy);
                double edge = fmin(1, fmax(0, 12.5 - d));
                *p++ = (float)(edge * ball + (1 - edge) * ground);
            }
    return t;
}

static double apart(const mel_tensor *a, const mel_tensor *b) {
    const float *p = mel_tensor_data(a), *q = mel_tensor_data(b);
    double sum = 0;
    int64_t n = mel_tensor_numel(a);
    for (int64_t i = 0; i < n; i++)
        sum += fabs((double)p[i] - q[i]);
    return sum / (double)n;
}

static void lab(void) {
    // sRGB 8 bit and its Lab values under D65.
    static const double known[][6] = {{255, 255, 255, 100, 0, 0}, {0, 0, 0, 0, 0, 0}, {255, 0, 0, 53.24, 80.09, 67.20},
        {0, 255, 0, 87.73, -86.18, 83.18}, {0, 0, 255, 32.30, 79.19, -107.86}, {119, 119, 119, 50.03, 0, 0}};
    int64_t n = sizeof known / sizeof *known;
    mel_tensor *rgb = tensor(MEL_U8, 1, n, 3), *out = NULL, *back = NULL;
    uint8_t *p = mel_tensor_data(rgb);
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            p[3 * i + c] = (uint8_t)known[i][c];
    CHECK_OK(mel_video_to_lab(rgb, &out, err));
    const float *q = mel_tensor_data(out);
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            CHECK_NEAR(q[3 * i + c], known[i][3 + c], 0.03);
    CHECK_OK(mel_video_from_lab(out, &back, err));
    const float *r = mel_tensor_data(back);
    for (int64_t i = 0; i < 3 * n; i++)
        CHECK_NEAR(r[i], p[i] / 255.0, 2e-4);
    mel_tensor_unref(rgb);
    mel_tensor_unref(out);
    mel_tensor_unref(back);
}

static void warps(void) {
    mel_tensor *a = disc(40, 56, 20, 20), *b = disc(40, 56, 23, 18), *flow = tensor(MEL_F32, 40, 56, 2), *out = NULL;
    CHECK_OK(mel_video_warp(a, flow, &out, err));
    CHECK_NEAR(apart(a, out), 0, 0);
    mel_tensor_unref(out);
    float *f = mel_tensor_data(flow);
    for (int64_t i = 0; i < 40 * 56; i++)
        f[2 * i] = NAN, f[2 * i + 1] = i % 2 ? INFINITY : -1e30f;
    CHECK_OK(mel_video_warp(a, flow, &out, err)); // never outside
    mel_tensor_unref(out);
    mel_tensor_unref(flow);

    mel_tensor *there = NULL, *back = NULL, *mask = NULL;
    CHECK_OK(mel_video_flow(a, b, NULL, &there, err));
    CHECK_OK(mel_video_flow(b, a, NULL, &back, err));
    CHECK_OK(mel_video_warp(b, there, &out, err));
    CHECK(apart(a, out) < 0.3 * apart(a, b));
    CHECK_OK(mel_video_consistent(there, back, 0.01, 0.5, &mask, err));
    const float *m = mel_tensor_data(mask);
    double sure = 0;
    for (int64_t i = 0; i < 40 * 56; i++)
        sure += m[i];
    CHECK(sure > 0.6 * 40 * 56);
    CHECK(m[20 * 56 + 20] == 1);
    mel_tensor_unref(mask);
    mel_tensor_unref(out);

    // The disc half way, beside a plain mean of the frames.
    mel_tensor *truth = disc(40, 56, 21.5, 19), *middle = NULL;
    CHECK_OK(mel_video_between(a, b, there, back, 0.5, &middle, err));
    double moved = apart(truth, middle), mixed = 0;
    const float *p = mel_tensor_data(a), *q = mel_tensor_data(b), *t = mel_tensor_data(truth);
    for (int64_t i = 0; i < 40 * 56 * 3; i++)
        mixed += fabs(0.5 * (p[i] + q[i]) - t[i]) / (40 * 56 * 3);
    printf("     half way: off by %.4f, the mean of both by %.4f\n", moved, mixed);
    CHECK(moved < 0.4 * mixed);
    mel_tensor_unref(middle);
    CHECK_OK(mel_video_between(a, b, there, back, 0, &middle, err));
    CHECK(apart(a, middle) < 0.01);
    CHECK_FAILS(mel_video_between(a, b, there, back, 1.5, &out, err), MEL_EINVAL, "at is 1.5");
    mel_tensor_unref(middle);
    mel_tensor_unref(truth);
    mel_tensor_unref(there);
    mel_tensor_unref(back);
    mel_tensor_unref(a);
    mel_tensor_unref(b);
}

static void views_and_blur(void) {
    mel_tensor *a = disc(24, 32, 15.5, 11.5), *flow = NULL, *out = NULL;
    double quarter[6] = {0, 1, 0, -1, 0, 0}, still[6] = {1, 0, 2, 0, 1, -1};
    CHECK_OK(mel_video_affine_flow(24, 32, still, &flow, err));
    const float *f = mel_tensor_data(flow);
    CHECK_NEAR(f[0], 2, 1e-6);
    CHECK_NEAR(f[2 * 24 * 32 - 1], -1, 1e-6);
    mel_tensor_unref(flow);
    CHECK_OK(mel_video_affine_flow(24, 32, quarter, &flow, err));
    f = mel_tensor_data(flow);
    CHECK_NEAR(f[0] + 0 - 15.5, 0 - 11.5, 1e-5); // the corner shows what is below the left of the centre
    mel_tensor_unref(flow);
    quarter[0] = NAN;
    CHECK_FAILS(mel_video_affine_flow(24, 32, quarter, &flow, err), MEL_EINVAL, "entry 1");
    CHECK_FAILS(mel_video_affine_flow(0, 32, still, &flow, err), MEL_EINVAL, "32 x 0");

    // One point becomes the Gaussian; the sum stays, also where sigma is wider than the frame.
    mel_tensor *point = tensor(MEL_F32, 41, 43, 1);
    ((float *)mel_tensor_data(point))[20 * 43 + 21] = 1;
    CHECK_OK(mel_video_blur(point, 2, &out, err));
    const float *b = mel_tensor_data(out);
    CHECK_NEAR(b[20 * 43 + 21], 1 / (2 * 3.14159265 * 4), 4e-4);
    CHECK_NEAR(b[20 * 43 + 23] / b[20 * 43 + 21], exp(-0.5), 1e-5);
    double sum = 0;
    for (int i = 0; i < 41 * 43; i++)
        sum += b[i];
    CHECK_NEAR(sum, 1, 1e-4);
    mel_tensor_unref(out);
    mel_tensor *flat = tensor(MEL_U8, 5, 3, 2);
    CHECK_OK(mel_tensor_fill(flat, 9, err));
    CHECK_OK(mel_video_blur(flat, 30, &out, err));
    for (int i = 0; i < 30; i++)
        CHECK_NEAR(((float *)mel_tensor_data(out))[i], 9, 1e-4);
    mel_tensor_unref(out);
    CHECK_FAILS(mel_video_blur(flat, NAN, &out, err), MEL_EINVAL, "sigma is");
    mel_tensor_unref(flat);
    mel_tensor_unref(point);
    mel_tensor_unref(a);
}

static void refused(void) {
    mel_tensor *a = tensor(MEL_F32, 16, 16, 3), *b = tensor(MEL_F32, 16, 17, 3), *tiny = tensor(MEL_U8, 7, 16, 3);
    mel_tensor *words = tensor(MEL_S32, 16, 16, 3), *out = NULL;
    mel_flow_options o = {.iterations = -1};
    CHECK_FAILS(mel_video_flow(a, b, NULL, &out, err), MEL_EINVAL, "a is [16, 16, 3], b is [16, 17, 3]");
    CHECK_FAILS(mel_video_flow(tiny, tiny, NULL, &out, err), MEL_EINVAL, "[7, 16, 3]");
    CHECK_FAILS(mel_video_flow(a, words, NULL, &out, err), MEL_EINVAL, "s32");
    CHECK_FAILS(mel_video_flow(a, a, &o, &out, err), MEL_EINVAL, "iterations -1");
    CHECK_FAILS(mel_video_warp(a, b, &out, err), MEL_EINVAL, "flow is");
    CHECK_FAILS(mel_video_to_lab(NULL, &out, err), MEL_EINVAL, "no tensor");
    CHECK_FAILS(mel_video_from_lab(tiny, &out, err), MEL_EINVAL, "u8");
    CHECK(out == NULL);
    // Not a number is black.
    CHECK_OK(mel_tensor_fill(a, NAN, err));
    CHECK_OK(mel_video_flow(a, a, NULL, &out, err));
    CHECK_NEAR(((float *)mel_tensor_data(out))[77], 0, 1e-6);
    mel_tensor_unref(out);
    mel_tensor_unref(a);
    mel_tensor_unref(b);
    mel_tensor_unref(tiny);
    mel_tensor_unref(words);
}

static void allocations_fail(void) {
    mel_tensor *a = disc(32, 40, 15, 15), *b = disc(32, 40, 17, 15);
    mel_tensor *there = NULL, *back = NULL;
    CHECK_OK(mel_video_flow(a, b, NULL, &there, err));
    CHECK_OK(mel_video_flow(b, a, NULL, &back, err));
    int64_t live = mel_mem_live();
    for (int what = 0; what < 6; what++) {
        mel_status status = MEL_ENOMEM;
        for (int64_t n = 1; status != MEL_OK && n < 200; n++) {
            mel_error err;
            mel_tensor *out = NULL;
            mel_mem_fail_nth(n);
            if (what == 0) status = mel_video_flow(a, b, NULL, &out, &err);
            if (what == 1) status = mel_video_warp(b, there, &out, &err);
            if (what == 2) status = mel_video_consistent(there, back, 0.01, 0.5, &out, &err);
            if (what == 3) status = mel_video_between(a, b, there, back, 0.3, &out, &err);
            if (what == 4) status = mel_video_to_lab(a, &out, &err);
            if (what == 5) status = mel_video_blur(a, 1.5, &out, &err);
            mel_mem_fail_nth(0);
            CHECK(status == MEL_OK || (status == MEL_ENOMEM && !out));
            mel_tensor_unref(out);
            CHECK(mel_mem_live() == live);
        }
        CHECK(status == MEL_OK);
    }
    mel_tensor_unref(there);
    mel_tensor_unref(back);
    mel_tensor_unref(a);
    mel_tensor_unref(b);
}

static void filters(void) {
    mel_tensor *a = disc(32, 48, 20, 16), *out = NULL;
    mel_filter_graph *g = NULL;
    int32_t w, h, num, den;
    CHECK_OK(mel_filter_graph_open("hflip,scale=24:16:flags=area", 48, 32, 24, 1, &g, err));
    mel_filter_graph_size(g, &w, &h, &num, &den);
    CHECK(w == 24 && h == 16 && num == 24 && den == 1);
    int count = 0;
    for (int i = 0; i < 5; i++) {
        CHECK_OK(mel_filter_graph_push(g, i < 4 ? a : NULL, err));
        for (;;) {
            out = NULL;
            CHECK_OK(mel_filter_graph_pull(g, &out, err));
            if (!out) break;
            // The disc was left of the middle and is now right of it.
            const uint8_t *p = mel_tensor_data(out);
            CHECK(p[(8 * 24 + 14) * 3] > p[(8 * 24 + 3) * 3]);
            mel_tensor_unref(out);
            count++;
        }
    }
    CHECK(count == 4);
    CHECK_FAILS(mel_filter_graph_push(g, a, err), MEL_EINVAL, "after the end");
    mel_filter_graph_close(g);

    // A filter that changes the rate: it holds frames back and gives more than it took.
    CHECK_OK(mel_filter_graph_open("fps=48", 48, 32, 24, 1, &g, err));
    mel_filter_graph_size(g, &w, &h, &num, &den);
    CHECK(num == 48 && den == 1);
    count = 0;
    for (int i = 0; i < 5; i++) {
        CHECK_OK(mel_filter_graph_push(g, i < 4 ? a : NULL, err));
        for (out = NULL; mel_filter_graph_pull(g, &out, NULL) == MEL_OK && out; out = NULL, count++)
            mel_tensor_unref(out);
    }
    CHECK(count == 8);
    mel_filter_graph_close(g);
    g = NULL;
    CHECK_FAILS(mel_filter_graph_open("no_such_filter", 48, 32, 24, 1, &g, err), MEL_EINVAL, "no_such_filter");
    CHECK_FAILS(mel_filter_graph_open("scale=-9:banana", 48, 32, 24, 1, &g, err), MEL_EINVAL, "banana");
    CHECK_FAILS(mel_filter_graph_open("split", 48, 32, 24, 1, &g, err), MEL_EINVAL, "split");
    CHECK_FAILS(mel_filter_graph_open("null[x];movie=/etc/passwd[y];[x][y]hstack", 48, 32, 24, 1, &g, err), MEL_EINVAL,
        "not allowed");
    CHECK_FAILS(mel_filter_graph_open("", 48, 32, 24, 1, &g, err), MEL_EINVAL, "no string");
    CHECK_FAILS(mel_filter_graph_open("null", 0, 32, 24, 1, &g, err), MEL_EINVAL, "0x32");
    CHECK(g == NULL);
    CHECK_OK(mel_filter_graph_open("null", 40, 32, 24, 1, &g, err));
    CHECK_FAILS(mel_filter_graph_push(g, a, err), MEL_EINVAL, "[32, 48, 3]");
    mel_filter_graph_close(g);
    mel_tensor_unref(a);
}

int main(void) {
    RUN(lab);
    RUN(warps);
    RUN(views_and_blur);
    RUN(refused);
    RUN(allocations_fail);
    RUN(filters);
    return CHECK_DONE();
}
