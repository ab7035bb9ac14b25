// Moving pixels along flow: warp, the forward-backward check, frames between two others, affine views, blur.
#include "video/video.h"

#include <math.h>
#include <string.h>

mel_status video_floats(
    const mel_tensor *x, int rank, int64_t last, const char *what, const char *name, mel_tensor **out, mel_error *err) {
    char shape[128];
    if (!x) return mel_fail(err, MEL_EINVAL, "%s: no %s", what, name);
    bool fits =
        x->ndim == rank && (last == 0 || x->shape[rank - 1] == last) && (mel_is_float(x->dtype) || x->dtype == MEL_U8);
    for (int i = 0; i < 2 && fits; i++)
        fits = x->shape[i] >= 1 && x->shape[i] <= 32768;
    if (!fits)
        return mel_fail(err, MEL_EINVAL, "%s: %s is %s %s; [H, W, %s] of floats or u8 is wanted", what, name,
            mel_dtype_name(x->dtype), mel_tensor_shape_text(x, shape, sizeof shape),
            last == 2   ? "2"
            : last == 3 ? "3"
                        : "C");
    mel_tensor *floats = NULL;
    mel_status status = mel_tensor_cast(x, MEL_F32, &floats, err);
    if (status == MEL_OK) status = mel_tensor_contiguous(floats, out, err);
    mel_tensor_unref(floats);
    return status;
}

mel_status video_floats_like(const mel_tensor *x, const mel_tensor *like, int64_t last, const char *what,
    const char *name, mel_tensor **out, mel_error *err) {
    mel_tensor *floats = NULL;
    mel_status status = video_floats(x, 3, last, what, name, &floats, err);
    if (status != MEL_OK) return status;
    if (x->shape[0] != like->shape[0] || x->shape[1] != like->shape[1]) {
        char a[128], b[128];
        mel_tensor_unref(floats);
        return mel_fail(err, MEL_EINVAL, "%s: %s is %s beside %s; one height and width is wanted", what, name,
            mel_tensor_shape_text(x, a, sizeof a), mel_tensor_shape_text(like, b, sizeof b));
    }
    *out = floats;
    return MEL_OK;
}

mel_status mel_video_warp(const mel_tensor *frame, const mel_tensor *flow, mel_tensor **out, mel_error *err) {
    mel_tensor *f = NULL, *m = NULL, *result = NULL;
    mel_status status = mel_check_cancel(err);
    if (status == MEL_OK) status = video_floats(frame, 3, 0, "warp", "frame", &f, err);
    if (status == MEL_OK) status = video_floats_like(flow, f, 2, "warp", "flow", &m, err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, 3, f->shape, &result, err);
    if (status == MEL_OK) {
        int64_t h = f->shape[0], w = f->shape[1], c = f->shape[2];
        const flow_kernels *k = video_kernels();
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (h * w >= VIDEO_PARALLEL_FROM)
        for (int64_t y = 0; y < h; y++)
            k->warp((const float *)f->data, w, h, c, (const float *)m->data, y, (float *)result->data + y * w * c);
        *out = result;
    }
    mel_tensor_unref(f);
    mel_tensor_unref(m);
    return status;
}

mel_status mel_video_consistent(const mel_tensor *forward, const mel_tensor *backward, double relative, double absolute,
    mel_tensor **out, mel_error *err) {
    mel_tensor *f = NULL, *b = NULL, *moved = NULL, *result = NULL;
    mel_status status = video_floats(forward, 3, 2, "consistent", "forward", &f, err);
    if (status == MEL_OK) status = video_floats_like(backward, f, 2, "consistent", "backward", &b, err);
    if (status == MEL_OK) status = mel_video_warp(b, f, &moved, err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, 2, f->shape, &result, err);
    if (status == MEL_OK) {
        int64_t h = f->shape[0], w = f->shape[1];
        const float *p = (const float *)f->data, *q = (const float *)moved->data;
        float *to = (float *)result->data;
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++, p += 2, q += 2) {
                double px = (double)x + p[0], py = (double)y + p[1], ex = (double)p[0] + q[0], ey = (double)p[1] + q[1];
                double size = (double)p[0] * p[0] + (double)p[1] * p[1] + (double)q[0] * q[0] + (double)q[1] * q[1];
                bool inside = px >= 0 && py >= 0 && px <= (double)(w - 1) && py <= (double)(h - 1);
                *to++ = inside && ex * ex + ey * ey <= relative * size + absolute ? 1.0f : 0.0f;
            }
        *out = result;
    }
    mel_tensor_unref(f);
    mel_tensor_unref(b);
    mel_tensor_unref(moved);
    return status;
}

// ---- between two frames ---------------------------------------------------------------------------

// Carries flow to where it is at time `at` of its way: sum[4 i ...] gathers weight, u, v of what lands on pixel i,
// in four pixels around the landing place. sure [h, w]: what may be believed weighs more. One thread: order matters.
static void splat(const float *flow, const float *sure, int64_t w, int64_t h, float at, float sign, float *sum) {
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            int64_t i = y * w + x;
            float u = flow[2 * i], v = flow[2 * i + 1], px = (float)x + at * u, py = (float)y + at * v;
            if (!(px > -1 && py > -1 && px < (float)w && py < (float)h)) continue;
            int64_t x0 = (int64_t)floorf(px), y0 = (int64_t)floorf(py);
            float ax = px - (float)x0, ay = py - (float)y0, base = sure[i] > 0 ? 1.0f : 1e-3f;
            for (int k = 0; k < 4; k++) {
                int64_t qx = x0 + (k & 1), qy = y0 + (k >> 1);
                if (qx < 0 || qy < 0 || qx >= w || qy >= h) continue;
                float weight = base * (k & 1 ? ax : 1 - ax) * (k >> 1 ? ay : 1 - ay);
                float *s = sum + (qy * w + qx) * 3;
                s[0] += weight;
                s[1] += weight * sign * u;
                s[2] += weight * sign * v;
            }
        }
}

static void mix_row(const float *const in[6], const float *sum, int64_t w, int64_t h, float at, int64_t y, float *out) {
    const float *a = in[0], *b = in[1], *fa = in[2], *fb = in[3], *sure_a = in[4], *sure_b = in[5];
    for (int64_t x = 0; x < w; x++, out += 3) {
        int64_t i = y * w + x;
        const float *s = sum + 3 * i;
        float u, v;
        if (s[0] > 1e-4f) {
            u = s[1] / s[0];
            v = s[2] / s[0];
        } else { // nothing landed here: the motions at this place, as Jiang et al. (CVPR 2018) mix them
            u = (1 - at) * fa[2 * i] - at * fb[2 * i];
            v = (1 - at) * fa[2 * i + 1] - at * fb[2 * i + 1];
        }
        float pixel[2][3], weight[2], inside[2];
        for (int side = 0; side < 2; side++) {
            float t = side ? 1 - at : -at, px = (float)x + t * u, py = (float)y + t * v;
            inside[side] = px >= -0.5f && py >= -0.5f && px <= (float)w - 0.5f && py <= (float)h - 0.5f ? 1.0f : 1e-3f;
            px = px > 0 ? (px < (float)(w - 1) ? px : (float)(w - 1)) : 0;
            py = py > 0 ? (py < (float)(h - 1) ? py : (float)(h - 1)) : 0;
            int64_t x0 = (int64_t)px, y0 = (int64_t)py, x1 = x0 + 1 < w ? x0 + 1 : x0, y1 = y0 + 1 < h ? y0 + 1 : y0;
            float ax = px - (float)x0, ay = py - (float)y0;
            const float *p = side ? b : a, *sure = side ? sure_b : sure_a;
            for (int c = 0; c < 3; c++) {
                float top = p[(y0 * w + x0) * 3 + c] * (1 - ax) + p[(y0 * w + x1) * 3 + c] * ax;
                float low = p[(y1 * w + x0) * 3 + c] * (1 - ax) + p[(y1 * w + x1) * 3 + c] * ax;
                pixel[side][c] = top + ay * (low - top);
            }
            float top = sure[y0 * w + x0] * (1 - ax) + sure[y0 * w + x1] * ax;
            float low = sure[y1 * w + x0] * (1 - ax) + sure[y1 * w + x1] * ax;
            weight[side] = top + ay * (low - top);
        }
        // A place that only one side shows: that side's flow finds no way back (it is unsure there), while the other
        // side's is sure of what lies over it. Where they agree in colour nothing hangs on the weights.
        float wa = (1 - at) * inside[0], wb = at * inside[1];
        float apart = 0;
        for (int c = 0; c < 3; c++)
            apart += fabsf(pixel[0][c] - pixel[1][c]);
        if (apart > 0.06f) {
            float sway = weight[0] - weight[1];
            if (sway < -0.5f) wb *= 0.05f;
            if (sway > 0.5f) wa *= 0.05f;
        }
        float total = wa + wb;
        for (int c = 0; c < 3; c++)
            out[c] = total > 0 ? (wa * pixel[0][c] + wb * pixel[1][c]) / total : pixel[at > 0.5f][c];
    }
}

// Frames as f32 in 0..1.
static mel_status unit_floats(
    const mel_tensor *x, const mel_tensor *like, const char *name, mel_tensor **out, mel_error *err) {
    mel_tensor *f = NULL;
    mel_status status = like ? video_floats_like(x, like, 3, "between", name, &f, err)
                             : video_floats(x, 3, 3, "between", name, &f, err);
    if (status != MEL_OK) return status;
    if (x->dtype == MEL_U8) { // the cast made it a tensor of its own
        float *p = (float *)f->data;
        for (int64_t i = 0, n = mel_tensor_numel(f); i < n; i++)
            p[i] /= 255.0f;
    }
    *out = f;
    return MEL_OK;
}

mel_status mel_video_between(const mel_tensor *a, const mel_tensor *b, const mel_tensor *forward,
    const mel_tensor *backward, double at, mel_tensor **out, mel_error *err) {
    if (!(at >= 0 && at <= 1)) return mel_fail(err, MEL_EINVAL, "between: at is %g; it goes from 0 to 1", at);
    mel_tensor *t[6] = {0}, *result = NULL;
    float *sum = NULL;
    mel_status status = unit_floats(a, NULL, "a", &t[0], err);
    if (status == MEL_OK) status = unit_floats(b, t[0], "b", &t[1], err);
    if (status == MEL_OK) status = video_floats_like(forward, t[0], 2, "between", "forward", &t[2], err);
    if (status == MEL_OK) status = video_floats_like(backward, t[0], 2, "between", "backward", &t[3], err);
    if (status == MEL_OK) status = mel_video_consistent(t[2], t[3], 0.01, 0.5, &t[4], err);
    if (status == MEL_OK) status = mel_video_consistent(t[3], t[2], 0.01, 0.5, &t[5], err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, 3, t[0]->shape, &result, err);
    if (status == MEL_OK) {
        int64_t h = t[0]->shape[0], w = t[0]->shape[1];
        sum = mel_alloc_zero(sizeof(float) * (size_t)(3 * h * w), err);
        if (!sum) {
            status = MEL_ENOMEM;
        } else {
            const float *in[6];
            for (int i = 0; i < 6; i++)
                in[i] = (const float *)t[i]->data;
            splat(in[2], in[4], w, h, (float)at, 1, sum);
            splat(in[3], in[5], w, h, (float)(1 - at), -1, sum);
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (h * w >= VIDEO_PARALLEL_FROM)
            for (int64_t y = 0; y < h; y++)
                mix_row(in, sum, w, h, (float)at, y, (float *)result->data + y * w * 3);
            *out = result;
            result = NULL;
        }
    }
    for (int i = 0; i < 6; i++)
        mel_tensor_unref(t[i]);
    mel_tensor_unref(result);
    mel_free(sum);
    return status;
}

// ---- views and blur ---------------------------------------------------------------------------------

mel_status mel_video_affine_flow(int64_t height, int64_t width, const double *m, mel_tensor **out, mel_error *err) {
    if (!m || height < 1 || width < 1 || height > 32768 || width > 32768)
        return mel_fail(err, MEL_EINVAL, "affine_flow: a frame of %lld x %lld", (long long)width, (long long)height);
    for (int i = 0; i < 6; i++)
        if (!isfinite(m[i])) return mel_fail(err, MEL_EINVAL, "affine_flow: entry %d of the map is %g", i + 1, m[i]);
    mel_tensor *flow = NULL;
    int64_t shape[3] = {height, width, 2};
    mel_status status = mel_tensor_create(MEL_F32, 3, shape, &flow, err);
    if (status != MEL_OK) return status;
    float *p = (float *)flow->data;
    double cx = (double)(width - 1) / 2, cy = (double)(height - 1) / 2;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            double dx = (double)x - cx, dy = (double)y - cy;
            *p++ = (float)(m[0] * dx + m[1] * dy + m[2] - dx);
            *p++ = (float)(m[3] * dx + m[4] * dy + m[5] - dy);
        }
    *out = flow;
    return MEL_OK;
}

mel_status mel_video_blur(const mel_tensor *frame, double sigma, mel_tensor **out, mel_error *err) {
    if (!(sigma > 0 && sigma <= 512)) return mel_fail(err, MEL_EINVAL, "blur: sigma is %g; it goes up to 512", sigma);
    mel_tensor *f = NULL, *half = NULL, *result = NULL;
    int reach = (int)ceil(3 * sigma);
    float *taps = NULL;
    mel_status status = video_floats(frame, 3, 0, "blur", "frame", &f, err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, 3, f->shape, &half, err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, 3, f->shape, &result, err);
    if (status == MEL_OK && !(taps = mel_alloc(sizeof(float) * (size_t)(2 * reach + 1), err))) status = MEL_ENOMEM;
    if (status == MEL_OK) {
        double total = 0;
        for (int i = -reach; i <= reach; i++)
            total += exp(-0.5 * i * i / (sigma * sigma));
        for (int i = -reach; i <= reach; i++)
            taps[i + reach] = (float)(exp(-0.5 * i * i / (sigma * sigma)) / total);
        int64_t h = f->shape[0], w = f->shape[1], c = f->shape[2], row = w * c;
        const float *from = (const float *)f->data;
        float *mid = (float *)half->data, *to = (float *)result->data;
        bool wide = h * w >= VIDEO_PARALLEL_FROM;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (wide)
        for (int64_t y = 0; y < h; y++) {
            float *line = mid + y * row;
            memset(line, 0, sizeof(float) * (size_t)row);
            for (int i = -reach; i <= reach; i++) {
                int64_t q = y + i < 0 ? 0 : y + i >= h ? h - 1 : y + i;
                for (int64_t x = 0; x < row; x++)
                    line[x] += taps[i + reach] * from[q * row + x];
            }
        }
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (wide)
        for (int64_t y = 0; y < h; y++) {
            float *line = to + y * row;
            memset(line, 0, sizeof(float) * (size_t)row);
            for (int i = -reach; i <= reach; i++) {
                int64_t first = i < 0 ? -i : 0, last = i > 0 ? w - i : w; // where x + i lies in the row
                first = first < w ? first : w;
                last = last > 0 ? last : 0;
                const float *source = mid + y * row;
                float k = taps[i + reach];
                for (int64_t x = 0; x < first; x++)
                    for (int64_t j = 0; j < c; j++)
                        line[x * c + j] += k * source[j];
                for (int64_t x = first * c; x < last * c; x++)
                    line[x] += k * source[x + i * c];
                for (int64_t x = last > first ? last : first; x < w; x++)
                    for (int64_t j = 0; j < c; j++)
                        line[x * c + j] += k * source[(w - 1) * c + j];
            }
        }
        *out = result;
        result = NULL;
    }
    mel_tensor_unref(f);
    mel_tensor_unref(half);
    mel_tensor_unref(result);
    mel_free(taps);
    return status;
}
