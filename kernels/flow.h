// Row kernels of dense optical flow and of what stands on it. Dense inverse search: Kroeger, Timofte, Dai, Van Gool,
// "Fast Optical Flow using Dense Inverse Search" (ECCV 2016); refinement by a linearised robust energy, solved by
// Jacobi steps.
//
// A plane is grey, 0..255, with FLOW_PAD pixels of repeated border on every side: `p` points at pixel (0, 0), rows are
// `stride` floats apart. Flow is two dense planes u and v [h, w] in pixels: b(x + u, y + v) looks like a(x, y).
// Every function writes one row (of pixels, or of patches) and reads only what other calls of the same step do not
// write, so that rows may be made in any order by any number of threads with the same bits.
#ifndef MELIES_KERNELS_FLOW_H
#define MELIES_KERNELS_FLOW_H

#include <stdint.h>

enum {
    FLOW_PAD = 16,
    FLOW_PATCH = 8, // side of a patch
    FLOW_STEP = 4   // between patches
};

typedef struct flow_plane {
    float *p;
    int64_t w, h, stride;
} flow_plane;

// Patches along a side of n >= FLOW_PATCH pixels; patch i begins at min(i * FLOW_STEP, n - FLOW_PATCH).
static inline int64_t flow_patches(int64_t n) {
    return (n - FLOW_PATCH + FLOW_STEP - 1) / FLOW_STEP + 1;
}
static inline int64_t flow_patch_at(int64_t i, int64_t n) {
    int64_t at = i * FLOW_STEP;
    return at < n - FLOW_PATCH ? at : n - FLOW_PATCH;
}

// What was found for a patch: its motion, and mean(b) - mean(a) over it.
typedef struct flow_match {
    float u, v, offset;
} flow_match;

// The linearised energy at one place of u, v: planes [h, w]. ix, iy, it: gradients and difference; d: weight of the
// data term; s: weight of smoothness of the pixel; bu, bv: the flow it is linearised at.
typedef struct flow_system {
    float *ix, *iy, *it, *d, *s;
    const float *bu, *bv;
    int64_t w, h;
    float alpha;
} flow_system;

typedef struct flow_kernels {
    // Row y of dst (half of src's size, rounded up): means of 2 x 2 after a [1 3 3 1] / 8 filter.
    void (*halve)(const flow_plane *src, const flow_plane *dst, int64_t y);
    // Patch row j: from the motion of `guess` planes [h, w] (NULL: none) at the patch and around it, by at most
    // `iterations` steps of inverse search. out: flow_patches(w) matches.
    void (*search)(const flow_plane *a, const flow_plane *b, const float *gu, const float *gv, int64_t j,
        int iterations, flow_match *out);
    // Pixel row y: mean of the motions of the patches over a pixel, weighted by 1 / max(1, |b - a - offset|). weight:
    // scratch of w floats.
    void (*densify)(const flow_plane *a, const flow_plane *b, const flow_match *matches, int64_t y, float *weight,
        float *u, float *v);
    // Pixel row y of the system at (s->bu, s->bv).
    void (*linearise)(const flow_plane *a, const flow_plane *b, const flow_system *s, int64_t y);
    // Pixel row y of one Jacobi step from (u, v) to (nu, nv).
    void (*relax)(const flow_system *s, const float *u, const float *v, int64_t y, float *nu, float *nv);
    // Row y of dst = src moved: dst(x, y) = src(x + flow(x, y)), bilinear, clamped at the border. src [h, w, channels]
    // dense; flow [h, w, 2] dense; row: the w * channels floats of the row.
    void (*warp)(const float *src, int64_t w, int64_t h, int64_t channels, const float *flow, int64_t y, float *row);
} flow_kernels;

extern const flow_kernels flow_kernels_plain, flow_kernels_avx2;

// The naive twin: for each pixel the displacement within +-radius whose window of 9 x 9 differs least (means removed),
// then Lucas-Kanade steps with clamped bilinear reads. a, b: dense [h, w].
void flow_reference(const float *a, const float *b, int64_t w, int64_t h, int radius, float *u, float *v);

#endif
