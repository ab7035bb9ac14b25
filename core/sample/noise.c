// Counter-based noise. Element e of a stream is lane e % 4 of the Philox block with counter (e / 4, stream) and
// key seed, so it depends on (seed, stream, e) alone.
#include "sample/philox.h"

#include <math.h>
#include <melies/sample.h>

enum {
    CHUNK = 4096 // elements between looks at the cancel flag; also what one thread takes at a time
};

typedef void (*fill_fn)(uint64_t seed, uint64_t stream, uint64_t first, int64_t count, float *out);

static void block_at(uint64_t seed, uint64_t stream, uint64_t block, uint32_t out[4]) {
    uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    philox4x32_10(counter, key, out);
}

// Box and Muller 1958: lanes (0, 1) and (2, 3) give a radius and an angle each, and so two normals.
static void normals_of_block(const uint32_t lanes[4], float out[4]) {
    const double unit = 0x1p-32, two_pi = 6.283185307179586477;
    for (int pair = 0; pair < 2; pair++) {
        double radius = sqrt(-2.0 * log((lanes[2 * pair] + 0.5) * unit));
        double angle = two_pi * ((lanes[2 * pair + 1] + 0.5) * unit);
        out[2 * pair] = (float)(radius * cos(angle));
        out[2 * pair + 1] = (float)(radius * sin(angle));
    }
}

static void uniforms_of_block(const uint32_t lanes[4], float out[4]) {
    for (int i = 0; i < 4; i++)
        out[i] = (float)(lanes[i] >> 8) * 0x1p-24f;
}

static void fill(uint64_t seed, uint64_t stream, uint64_t first, int64_t count, float *out,
    void (*of_block)(const uint32_t lanes[4], float out[4])) {
    uint32_t lanes[4];
    float values[4];
    int64_t done = 0;
    while (done < count) {
        uint64_t element = first + (uint64_t)done;
        block_at(seed, stream, element / 4, lanes);
        of_block(lanes, values);
        for (int lane = (int)(element % 4); lane < 4 && done < count; lane++)
            out[done++] = values[lane];
    }
}

static void fill_normal(uint64_t seed, uint64_t stream, uint64_t first, int64_t count, float *out) {
    fill(seed, stream, first, count, out, normals_of_block);
}

static void fill_uniform(uint64_t seed, uint64_t stream, uint64_t first, int64_t count, float *out) {
    fill(seed, stream, first, count, out, uniforms_of_block);
}

static mel_status make(fill_fn fn, uint64_t seed, uint64_t stream, uint64_t offset, int ndim, const int64_t *shape,
    mel_tensor **out, mel_error *err) {
    mel_tensor *t = NULL;
    mel_status status = mel_tensor_create(MEL_F32, ndim, shape, &t, err);
    if (status != MEL_OK) return status;
    float *data = mel_tensor_data(t);
    int64_t count = mel_tensor_numel(t), chunks = (count + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(dynamic) num_threads(mel_threads()) if (chunks > 4)
    for (int64_t c = 0; c < chunks; c++) {
        if (mel_canceled()) continue;
        int64_t first = c * CHUNK, left = count - first;
        fn(seed, stream, offset + (uint64_t)first, left < CHUNK ? left : CHUNK, data + first);
    }
    status = mel_check_cancel(err);
    if (status != MEL_OK) {
        mel_tensor_unref(t);
        return status;
    }
    *out = t;
    return MEL_OK;
}

mel_status mel_noise_normal(
    uint64_t seed, uint64_t stream, uint64_t offset, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    return make(fill_normal, seed, stream, offset, ndim, shape, out, err);
}

mel_status mel_noise_uniform(
    uint64_t seed, uint64_t stream, uint64_t offset, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    return make(fill_uniform, seed, stream, offset, ndim, shape, out, err);
}
