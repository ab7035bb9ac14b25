// Optical flow: pyramids of both frames, and on each level from the coarsest on search, densify, refine.
#include "video/video.h"

#include <math.h>
#include <string.h>

enum {
    MAX_LEVELS = 12,
    COARSEST = 24, // pixels of the short side below which no further level is made
    RELAXATIONS = 12,
    FLOW_PARALLEL_FROM = 65536 // pixels: a step over fewer is over before all threads have begun
};

const flow_kernels *video_kernels(void) {
    return mel_cpu_isa() >= MEL_ISA_AVX2 ? &flow_kernels_avx2 : &flow_kernels_plain;
}

// ---- planes -------------------------------------------------------------------------------------

static float *plane_create(int64_t w, int64_t h, flow_plane *out, mel_error *err) {
    int64_t stride = w + 2 * FLOW_PAD;
    float *block = mel_alloc(sizeof(float) * (size_t)(stride * (h + 2 * FLOW_PAD)), err);
    if (block) *out = (flow_plane){block + FLOW_PAD * stride + FLOW_PAD, w, h, stride};
    return block;
}

static void plane_free(flow_plane *plane) {
    if (plane->p) mel_free(plane->p - FLOW_PAD * plane->stride - FLOW_PAD);
    plane->p = NULL;
}

static void plane_border(const flow_plane *plane) {
    for (int64_t y = 0; y < plane->h; y++) {
        float *row = plane->p + y * plane->stride;
        for (int x = 1; x <= FLOW_PAD; x++) {
            row[-x] = row[0];
            row[plane->w - 1 + x] = row[plane->w - 1];
        }
    }
    const float *top = plane->p - FLOW_PAD, *low = top + (plane->h - 1) * plane->stride;
    for (int y = 1; y <= FLOW_PAD; y++) {
        memcpy(plane->p - FLOW_PAD - y * plane->stride, top, sizeof(float) * (size_t)plane->stride);
        memcpy(plane->p - FLOW_PAD + (plane->h - 1 + y) * plane->stride, low, sizeof(float) * (size_t)plane->stride);
    }
}

// Rec. 601 luma in 0..255.
static void plane_grey(const mel_tensor *frame, const flow_plane *out) {
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (out->w * out->h >= VIDEO_PARALLEL_FROM)
    for (int64_t y = 0; y < out->h; y++) {
        float *row = out->p + y * out->stride;
        if (frame->dtype == MEL_U8) {
            const uint8_t *p = (const uint8_t *)frame->data + y * out->w * 3;
            for (int64_t x = 0; x < out->w; x++, p += 3)
                row[x] = 0.299f * p[0] + 0.587f * p[1] + 0.114f * p[2];
        } else {
            const float *p = (const float *)frame->data + y * out->w * 3;
            for (int64_t x = 0; x < out->w; x++, p += 3) {
                float grey = 76.245f * p[0] + 149.685f * p[1] + 29.07f * p[2];
                row[x] = grey > 0 ? (grey < 255 ? grey : 255) : 0; // NaN gives 0
            }
        }
    }
}

static double plane_mean(const flow_plane *plane) {
    double sum = 0;
    for (int64_t y = 0; y < plane->h; y++)
        for (int64_t x = 0; x < plane->w; x++)
            sum += plane->p[y * plane->stride + x];
    return sum / ((double)plane->w * (double)plane->h);
}

// ---- one level ------------------------------------------------------------------------------------

typedef struct level {
    flow_plane a, b;
    float *block; // every field below, at the finest level's size, shared by all levels
    float *u, *v, *nu, *nv, *bu, *bv, *ix, *iy, *it, *d, *s;
    flow_match *matches;
} level;

// Flow of the coarser level on this one's pixels: bilinear, doubled.
static void enlarge(const float *from, int64_t fw, int64_t fh, float *to, int64_t w, int64_t h, float scale) {
    float sx = (float)fw / (float)w, sy = (float)fh / (float)h;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (w * h >= VIDEO_PARALLEL_FROM)
    for (int64_t y = 0; y < h; y++) {
        float py = ((float)y + 0.5f) * sy - 0.5f;
        py = py < 0 ? 0 : py;
        int64_t y0 = (int64_t)py, y1 = y0 + 1 < fh ? y0 + 1 : y0;
        float ay = py - (float)y0;
        for (int64_t x = 0; x < w; x++) {
            float px = ((float)x + 0.5f) * sx - 0.5f;
            px = px < 0 ? 0 : px;
            int64_t x0 = (int64_t)px, x1 = x0 + 1 < fw ? x0 + 1 : x0;
            float ax = px - (float)x0;
            float top = from[y0 * fw + x0] * (1 - ax) + from[y0 * fw + x1] * ax;
            float low = from[y1 * fw + x0] * (1 - ax) + from[y1 * fw + x1] * ax;
            to[y * w + x] = scale * (top + ay * (low - top));
        }
    }
}

static void swap(float **a, float **b) {
    float *t = *a;
    *a = *b;
    *b = t;
}

// From the guess in l->u, l->v (where `guessed`) to this level's flow in l->u, l->v.
static void solve(const flow_kernels *k, level *l, bool guessed, int iterations, int refine, float alpha) {
    int64_t w = l->a.w, h = l->a.h, nx = flow_patches(w), ny = flow_patches(h);
    bool wide = w * h >= FLOW_PARALLEL_FROM;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (wide)
    for (int64_t j = 0; j < ny; j++)
        k->search(&l->a, &l->b, guessed ? l->u : NULL, l->v, j, iterations, l->matches + j * nx);
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (wide)
    for (int64_t y = 0; y < h; y++)
        k->densify(&l->a, &l->b, l->matches, y, l->d + y * w, l->u + y * w, l->v + y * w);
    for (int outer = 0; outer < refine; outer++) {
        memcpy(l->bu, l->u, sizeof(float) * (size_t)(w * h));
        memcpy(l->bv, l->v, sizeof(float) * (size_t)(w * h));
        flow_system s = {l->ix, l->iy, l->it, l->d, l->s, l->bu, l->bv, w, h, alpha};
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (wide)
        for (int64_t y = 0; y < h; y++)
            k->linearise(&l->a, &l->b, &s, y);
        for (int step = 0; step < RELAXATIONS; step++) {
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (wide)
            for (int64_t y = 0; y < h; y++)
                k->relax(&s, l->u, l->v, y, l->nu, l->nv);
            swap(&l->u, &l->nu);
            swap(&l->v, &l->nv);
        }
    }
}

// ---- all levels -------------------------------------------------------------------------------------

typedef struct pyramid {
    flow_plane a[MAX_LEVELS], b[MAX_LEVELS];
    int levels;
} pyramid;

static mel_status pyramid_create(const mel_tensor *a, const mel_tensor *b, pyramid *p, mel_error *err) {
    const flow_kernels *k = video_kernels();
    int64_t w = a->shape[1], h = a->shape[0];
    for (int i = 0; i < MAX_LEVELS; i++) {
        if (i > 0) {
            w = (w + 1) / 2;
            h = (h + 1) / 2;
            if (w < FLOW_PATCH || h < FLOW_PATCH || (w < h ? w : h) * 2 < COARSEST) break;
        }
        if (!plane_create(w, h, &p->a[i], err) || !plane_create(w, h, &p->b[i], err)) return MEL_ENOMEM;
        if (i == 0) {
            plane_grey(a, &p->a[0]);
            plane_grey(b, &p->b[0]);
            float shift = (float)(plane_mean(&p->a[0]) - plane_mean(&p->b[0]));
            for (int64_t y = 0; y < h; y++)
                for (int64_t x = 0; x < w; x++)
                    p->b[0].p[y * p->b[0].stride + x] += shift;
        } else {
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (w * h >= VIDEO_PARALLEL_FROM)
            for (int64_t y = 0; y < h; y++) {
                k->halve(&p->a[i - 1], &p->a[i], y);
                k->halve(&p->b[i - 1], &p->b[i], y);
            }
        }
        plane_border(&p->a[i]);
        plane_border(&p->b[i]);
        p->levels = i + 1;
    }
    return MEL_OK;
}

static mel_status level_create(int64_t w, int64_t h, level *l, mel_error *err) {
    int64_t n = w * h;
    l->block = mel_alloc(sizeof(float) * (size_t)(n * 11), err);
    l->matches = mel_alloc(sizeof(flow_match) * (size_t)(flow_patches(w) * flow_patches(h)), err);
    if (!l->block || !l->matches) return MEL_ENOMEM;
    float **fields[] = {&l->u, &l->v, &l->nu, &l->nv, &l->bu, &l->bv, &l->ix, &l->iy, &l->it, &l->d, &l->s};
    for (int i = 0; i < 11; i++)
        *fields[i] = l->block + i * n;
    return MEL_OK;
}

static mel_status run(const mel_tensor *a, const mel_tensor *b, const mel_flow_options *o, pyramid *p, level *l,
    mel_tensor **out, mel_error *err) {
    mel_status status = pyramid_create(a, b, p, err);
    if (status != MEL_OK) return status;
    int finest = o->finest < p->levels ? o->finest : p->levels - 1;
    status = level_create(p->a[finest].w, p->a[finest].h, l, err);
    for (int i = p->levels - 1; i >= finest && status == MEL_OK; i--) {
        bool guessed = i < p->levels - 1;
        l->a = p->a[i];
        l->b = p->b[i];
        if (guessed) {
            const flow_plane *c = &p->a[i + 1];
            enlarge(l->u, c->w, c->h, l->nu, l->a.w, l->a.h, 2);
            enlarge(l->v, c->w, c->h, l->nv, l->a.w, l->a.h, 2);
            swap(&l->u, &l->nu);
            swap(&l->v, &l->nv);
        }
        solve(video_kernels(), l, guessed, o->iterations, o->refine, (float)o->smoothness);
        status = mel_check_cancel(err);
    }
    int64_t h = a->shape[0], w = a->shape[1], shape[3] = {h, w, 2};
    mel_tensor *flow = NULL;
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, 3, shape, &flow, err);
    float *full = NULL;
    if (status == MEL_OK && !(full = mel_alloc(sizeof(float) * (size_t)(2 * h * w), err))) status = MEL_ENOMEM;
    if (status == MEL_OK) {
        float scale = ldexpf(1.0f, finest);
        enlarge(l->u, p->a[finest].w, p->a[finest].h, full, w, h, scale);
        enlarge(l->v, p->a[finest].w, p->a[finest].h, full + h * w, w, h, scale);
        float *to = (float *)flow->data;
        for (int64_t i = 0; i < h * w; i++) {
            to[2 * i] = full[i];
            to[2 * i + 1] = full[h * w + i];
        }
        *out = flow;
        flow = NULL;
    }
    mel_free(full);
    mel_tensor_unref(flow);
    return status;
}

static mel_status check_frame(const mel_tensor *x, const char *name, mel_tensor **out, mel_error *err) {
    char shape[128];
    if (!x) return mel_fail(err, MEL_EINVAL, "flow: no frame %s", name);
    if (x->ndim != 3 || x->shape[2] != 3 || x->shape[0] < FLOW_PATCH || x->shape[1] < FLOW_PATCH ||
        x->shape[0] > 32768 || x->shape[1] > 32768)
        return mel_fail(err, MEL_EINVAL, "flow: %s is %s; frames are [H, W, 3] with sides of 8 to 32768", name,
            mel_tensor_shape_text(x, shape, sizeof shape));
    if (x->dtype == MEL_U8) return mel_tensor_contiguous(x, out, err);
    return video_floats(x, 3, 3, "flow", name, out, err);
}

mel_status mel_video_flow(
    const mel_tensor *a, const mel_tensor *b, const mel_flow_options *options, mel_tensor **out, mel_error *err) {
    mel_flow_options o = options ? *options : (mel_flow_options){0};
    if (!out) return mel_fail(err, MEL_EINVAL, "flow: no place for the result");
    if (o.finest < 0 || o.finest > MAX_LEVELS || o.iterations < 0 || o.iterations > 256 || o.refine < -1 ||
        o.refine > 64 || !(o.smoothness >= 0 && o.smoothness <= 1e6))
        return mel_fail(err, MEL_EINVAL,
            "flow: finest %d (0..12), iterations %d (0..256), refine %d (-1..64), smoothness %g (0..1e6)", o.finest,
            o.iterations, o.refine, o.smoothness);
    mel_tensor *fa = NULL, *fb = NULL;
    pyramid p = {0};
    level l = {0};
    mel_status status = check_frame(a, "a", &fa, err);
    if (status == MEL_OK) status = check_frame(b, "b", &fb, err);
    if (status == MEL_OK && (a->shape[0] != b->shape[0] || a->shape[1] != b->shape[1])) {
        char sa[128], sb[128];
        status = mel_fail(err, MEL_EINVAL, "flow: a is %s, b is %s; one size is wanted",
            mel_tensor_shape_text(a, sa, sizeof sa), mel_tensor_shape_text(b, sb, sizeof sb));
    }
    if (status == MEL_OK) {
        int64_t side = a->shape[0] < a->shape[1] ? a->shape[0] : a->shape[1];
        o.finest = o.finest > 0 ? o.finest - 1 : side < 256 ? 0 : 1;
        if (o.iterations == 0) o.iterations = 12;
        o.refine = o.refine == 0 ? 2 : o.refine < 0 ? 0 : o.refine;
        if (o.smoothness == 0) o.smoothness = 1;
        status = run(fa, fb, &o, &p, &l, out, err);
    }
    for (int i = 0; i < MAX_LEVELS; i++) {
        plane_free(&p.a[i]);
        plane_free(&p.b[i]);
    }
    mel_free(l.block);
    mel_free(l.matches);
    mel_tensor_unref(fa);
    mel_tensor_unref(fb);
    return status;
}
