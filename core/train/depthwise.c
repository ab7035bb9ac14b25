// The weight's gradient of a depthwise convolution over pictures: each sample in one pass, of whose rows only those
// that a kernel spans are there at a time. Samples have sums of their own, which are added in order: the same bits for
// any number of threads.
#include "train/depthwise.h"
#include "train/train.h"

#include <omp.h>
#include <string.h>

enum {
    LANES = 16, // channels of a vector
    TAPS = 8    // of the kernel in one pass over a row
};

typedef struct job {
    const mel_conv_geometry *g;
    const char *src, *dst;
    int64_t channels; // rounded up to vectors
    int64_t width;    // of a row of src with its border
    int64_t count;    // floats of a sample's sums: [kernel][channels]
    float *sums;      // [n][count]
} job;

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

// `pixels` pixels as floats [pixels][channels].
static void load(const job *j, const char *from, int64_t pixels, float *to) {
    const int64_t c = j->g->ic, dtype = (int64_t)j->g->operand, size = mel_dtype_size(j->g->operand);
    if (c == j->channels) {
        mel_rows()->load((int)dtype, from, to, pixels * c);
        return;
    }
    for (int64_t i = 0; i < pixels; i++)
        mel_rows()->load((int)dtype, from + i * c * size, to + i * j->channels, c);
}

// rows: [kernel's height][width][channels], zeros in the border; line: [out's width][channels].
static void sample(const job *j, int64_t n, float *rows, float *line) {
    const mel_conv_geometry *g = j->g;
    const int64_t size = mel_dtype_size(g->operand), c = j->channels, row = j->width * c;
    const char *src = j->src + n * g->in[0] * g->in[1] * g->ic * size;
    const char *dst = j->dst + n * g->out[0] * g->out[1] * g->ic * size;
    float *sums = j->sums + n * j->count;
    int64_t next = 0; // row of src with its border
    for (int64_t y = 0; y < g->out[0]; y++) {
        load(j, dst + y * g->out[1] * g->ic * size, g->out[1], line);
        for (; next < y * g->stride[0] + g->kernel[0]; next++) {
            float *to = rows + next % g->kernel[0] * row;
            int64_t from = next - g->before[0];
            if (from < 0 || from >= g->in[0])
                memset(to, 0, (size_t)row * 4);
            else
                load(j, src + from * g->in[1] * g->ic * size, g->in[1], to + g->before[1] * c);
        }
        for (int64_t ky = 0; ky < g->kernel[0]; ky++)
            for (int64_t kx = 0; kx < g->kernel[1]; kx += TAPS) {
                const float *x = rows + (y * g->stride[0] + ky) % g->kernel[0] * row + kx * c;
                const int64_t taps = g->kernel[1] - kx < TAPS ? g->kernel[1] - kx : TAPS;
                float *to = sums + (ky * g->kernel[1] + kx) * c;
                for (int64_t at = 0; at < c; at += LANES)
                    mel_train_rows()->depthwise(x + at, line + at, g->out[1], g->stride[1] * c, c, (int)taps, to + at);
            }
    }
}

bool mel_depthwise_fits(const mel_conv_geometry *g) {
    return g->spatial == 2 && g->groups == g->ic && g->oc == g->ic;
}

mel_status mel_depthwise_weights(
    const mel_conv_geometry *g, const void *src, const void *dst, float *weights, mel_error *err) {
    const int64_t taps = g->kernel[0] * g->kernel[1];
    job j = {.g = g, .src = src, .dst = dst, .channels = round_up(g->ic, LANES)};
    j.width = (g->out[1] - 1) * g->stride[1] + g->kernel[1];
    // A stride may leave pixels on the right unread, or the kernel reach beyond them.
    if (j.width < g->before[1] + g->in[1]) j.width = g->before[1] + g->in[1];
    j.count = taps * j.channels;
    const int64_t rows = g->kernel[0] * j.width * j.channels, each = rows + g->out[1] * j.channels;
    int threads = (double)(g->n * g->out[0] * g->out[1]) * (double)j.count >= 1 << 20 ? mel_threads() : 1;
    if (threads > g->n) threads = (int)g->n;
    j.sums = mel_alloc_zero((size_t)(g->n * j.count) * 4, err);
    float *room = j.sums ? mel_alloc_zero((size_t)(threads * each) * 4, err) : NULL;
    if (!room) {
        mel_free(j.sums);
        return MEL_ENOMEM;
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *mine = room + omp_get_thread_num() * each;
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < g->n; n++) {
            memset(mine, 0, (size_t)rows * 4);
            sample(&j, n, mine, mine + rows);
        }
    }
    for (int64_t n = 1; n < g->n; n++)
        mel_train_rows()->accumulate(j.sums, j.sums + n * j.count, NULL, j.count);
    for (int64_t c = 0; c < g->ic; c++)
        for (int64_t t = 0; t < taps; t++)
            weights[c * taps + t] = j.sums[t * j.channels + c];
    mel_free(room);
    mel_free(j.sums);
    return MEL_OK;
}
