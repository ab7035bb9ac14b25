// Between sRGB and CIE Lab, D65.
#include "video/video.h"

#include <math.h>

static const float WHITE_X = 0.95047f, WHITE_Z = 1.08883f; // Y is 1

static float to_linear(float c) {
    return c <= 0.04045f ? c / 12.92f : powf((c + 0.055f) / 1.055f, 2.4f);
}

static float from_linear(float c) {
    return c <= 0.0031308f ? 12.92f * c : 1.055f * powf(c, 1.0f / 2.4f) - 0.055f;
}

static float bend(float t) {
    return t > 216.0f / 24389.0f ? cbrtf(t) : (24389.0f / 27.0f * t + 16.0f) / 116.0f;
}

static float unbend(float f) {
    float cube = f * f * f;
    return cube > 216.0f / 24389.0f ? cube : (116.0f * f - 16.0f) * 27.0f / 24389.0f;
}

static float unit(float x) {
    return x > 0 ? (x < 1 ? x : 1) : 0; // NaN gives 0
}

static void lab_of(const float linear[3], float *out) {
    float r = linear[0], g = linear[1], b = linear[2];
    float x = bend((0.4124564f * r + 0.3575761f * g + 0.1804375f * b) / WHITE_X);
    float y = bend(0.2126729f * r + 0.7151522f * g + 0.0721750f * b);
    float z = bend((0.0193339f * r + 0.1191920f * g + 0.9503041f * b) / WHITE_Z);
    out[0] = 116.0f * y - 16.0f;
    out[1] = 500.0f * (x - y);
    out[2] = 200.0f * (y - z);
}

static void rgb_of(const float *lab, float *out) {
    float y = (lab[0] + 16.0f) / 116.0f, x = unbend(y + lab[1] / 500.0f) * WHITE_X;
    float z = unbend(y - lab[2] / 200.0f) * WHITE_Z;
    y = unbend(y);
    out[0] = unit(from_linear(unit(3.2404542f * x - 1.5371385f * y - 0.4985314f * z)));
    out[1] = unit(from_linear(unit(-0.9692660f * x + 1.8760108f * y + 0.0415560f * z)));
    out[2] = unit(from_linear(unit(0.0556434f * x - 0.2040259f * y + 1.0572252f * z)));
}

static mel_status check_pixels(const mel_tensor *x, const char *what, mel_error *err) {
    char shape[128];
    if (!x) return mel_fail(err, MEL_EINVAL, "%s: no tensor", what);
    if (x->ndim < 1 || x->shape[x->ndim - 1] != 3 || !(mel_is_float(x->dtype) || x->dtype == MEL_U8))
        return mel_fail(err, MEL_EINVAL, "%s: %s %s; pixels [..., 3] of floats or u8 are wanted", what,
            mel_dtype_name(x->dtype), mel_tensor_shape_text(x, shape, sizeof shape));
    return mel_check_cancel(err);
}

static mel_status convert(const mel_tensor *in, bool back, mel_tensor **out, mel_error *err) {
    mel_tensor *dense = NULL, *floats = NULL, *result = NULL;
    bool bytes = in->dtype == MEL_U8;
    mel_status status = mel_tensor_contiguous(in, &dense, err);
    if (status == MEL_OK && !bytes) status = mel_tensor_cast(dense, MEL_F32, &floats, err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, in->ndim, in->shape, &result, err);
    if (status == MEL_OK) {
        float table[256];
        for (int i = 0; i < 256; i++)
            table[i] = to_linear((float)i / 255.0f);
        int64_t count = mel_tensor_numel(in) / 3;
        float *to = (float *)result->data;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (count >= VIDEO_PARALLEL_FROM)
        for (int64_t i = 0; i < count; i++) {
            float linear[3];
            if (back) {
                rgb_of((const float *)floats->data + 3 * i, to + 3 * i);
                continue;
            }
            for (int c = 0; c < 3; c++)
                linear[c] = bytes ? table[((const uint8_t *)dense->data)[3 * i + c]]
                                  : to_linear(unit(((const float *)floats->data)[3 * i + c]));
            lab_of(linear, to + 3 * i);
        }
        *out = result;
    }
    mel_tensor_unref(dense);
    mel_tensor_unref(floats);
    return status;
}

mel_status mel_video_to_lab(const mel_tensor *rgb, mel_tensor **out, mel_error *err) {
    mel_status status = check_pixels(rgb, "to_lab", err);
    return status == MEL_OK ? convert(rgb, false, out, err) : status;
}

mel_status mel_video_from_lab(const mel_tensor *lab, mel_tensor **out, mel_error *err) {
    mel_status status = check_pixels(lab, "from_lab", err);
    if (status == MEL_OK && lab->dtype == MEL_U8)
        status = mel_fail(err, MEL_EINVAL, "from_lab: floats are wanted, not u8");
    return status == MEL_OK ? convert(lab, true, out, err) : status;
}
