// Between u8 and float pixels.
#include "media_internal.h"

#include <string.h>

// round(255 clamp(x, 0, 1)), halves up. NaN fails both comparisons and gives 0.
static inline uint8_t to_u8(float x) {
    float clamped = x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
    return (uint8_t)(255.0f * clamped + 0.5f);
}

AVFrame *media_new_frame(int format, int width, int height) {
    AVFrame *frame = av_frame_alloc();
    if (!frame) return NULL;
    frame->format = format;
    frame->width = width;
    frame->height = height;
    if (av_frame_get_buffer(frame, 64) < 0) av_frame_free(&frame);
    // Encoders and scalers read the ends of rows in whole vectors: what lies past the width gets into the picture's
    // last blocks (libx264 with sides that are no multiple of 16), so it has to be the same in every run.
    for (int i = 0; frame && i < AV_NUM_DATA_POINTERS && frame->buf[i]; i++)
        memset(frame->buf[i]->data, 0, frame->buf[i]->size);
    return frame;
}

bool media_has_dense_rows(const mel_tensor *pixels) {
    const int64_t *strides = mel_tensor_strides(pixels);
    return strides[2] == 1 && strides[1] == 3;
}

void media_fill_frame(AVFrame *frame, const mel_tensor *pixels) {
    const int64_t *shape = mel_tensor_shape(pixels);
    int h = (int)shape[0], w = (int)shape[1];
    bool floats = mel_tensor_dtype(pixels) == MEL_F32;
    const void *data = mel_tensor_data(pixels);
    int64_t row_stride = mel_tensor_strides(pixels)[0];
    size_t stride = (size_t)w * 3;
    for (int y = 0; y < frame->height; y++) {
        ptrdiff_t from = (ptrdiff_t)((y < h ? y : h - 1) * row_stride);
        uint8_t *row = frame->data[0] + (ptrdiff_t)y * frame->linesize[0];
        if (floats) {
            const float *source = (const float *)data + from;
            for (size_t i = 0; i < stride; i++)
                row[i] = to_u8(source[i]);
        } else {
            memcpy(row, (const uint8_t *)data + from, stride);
        }
        for (int x = w; x < frame->width; x++)
            memcpy(row + x * 3, row + (w - 1) * 3, 3);
    }
}

void media_copy_turned(const uint8_t *from, ptrdiff_t stride, int width, int height, int rotation, uint8_t *out) {
    ptrdiff_t right = 3, down = stride; // steps in the source for one pixel to the right, one down in out
    if (rotation == 90) from += (height - 1) * stride, right = -stride, down = 3;
    if (rotation == 180) from += (height - 1) * stride + (ptrdiff_t)(width - 1) * 3, right = -3, down = -stride;
    if (rotation == 270) from += (ptrdiff_t)(width - 1) * 3, right = stride, down = -3;
    int out_width = rotation % 180 ? height : width, out_height = rotation % 180 ? width : height;
    for (int y = 0; y < out_height; y++, out += (size_t)out_width * 3) {
        const uint8_t *pixel = from + y * down;
        if (right == 3) {
            memcpy(out, pixel, (size_t)out_width * 3);
            continue;
        }
        for (int x = 0; x < out_width; x++, pixel += right)
            memcpy(out + (size_t)x * 3, pixel, 3);
    }
}

static bool is_float(mel_dtype dtype) {
    return dtype == MEL_F32 || dtype == MEL_BF16 || dtype == MEL_F16;
}

mel_status mel_pixels_to_u8(const mel_tensor *x, mel_tensor **out, mel_error *err) {
    if (!x || !out) return mel_fail(err, MEL_EINVAL, "pixels_to_u8: no tensor");
    mel_dtype dtype = mel_tensor_dtype(x);
    if (dtype == MEL_U8) return mel_tensor_contiguous(x, out, err);
    if (!is_float(dtype))
        return mel_fail(err, MEL_EINVAL, "pixels_to_u8: wants floats or u8, got %s", mel_dtype_name(dtype));
    mel_tensor *floats = NULL, *dense = NULL, *result = NULL;
    mel_status status = mel_tensor_cast(x, MEL_F32, &floats, err);
    if (status == MEL_OK) status = mel_tensor_contiguous(floats, &dense, err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_U8, mel_tensor_ndim(x), mel_tensor_shape(x), &result, err);
    if (status == MEL_OK) {
        const float *from = mel_tensor_data(dense);
        uint8_t *to = mel_tensor_data(result);
        int64_t count = mel_tensor_numel(result);
        for (int64_t i = 0; i < count; i++)
            to[i] = to_u8(from[i]);
        *out = result;
    }
    mel_tensor_unref(dense);
    mel_tensor_unref(floats);
    return status;
}

mel_status mel_pixels_to_f32(const mel_tensor *x, mel_tensor **out, mel_error *err) {
    if (!x || !out) return mel_fail(err, MEL_EINVAL, "pixels_to_f32: no tensor");
    mel_dtype dtype = mel_tensor_dtype(x);
    mel_tensor *dense = NULL, *result = NULL;
    if (is_float(dtype)) {
        mel_status status = mel_tensor_cast(x, MEL_F32, &dense, err);
        if (status == MEL_OK) status = mel_tensor_contiguous(dense, out, err);
        mel_tensor_unref(dense);
        return status;
    }
    if (dtype != MEL_U8)
        return mel_fail(err, MEL_EINVAL, "pixels_to_f32: wants u8 or floats, got %s", mel_dtype_name(dtype));
    mel_status status = mel_tensor_contiguous(x, &dense, err);
    if (status == MEL_OK) status = mel_tensor_create(MEL_F32, mel_tensor_ndim(x), mel_tensor_shape(x), &result, err);
    if (status == MEL_OK) {
        const uint8_t *from = mel_tensor_data(dense);
        float *to = mel_tensor_data(result);
        int64_t count = mel_tensor_numel(result);
        for (int64_t i = 0; i < count; i++)
            to[i] = (float)from[i] / 255.0f;
        *out = result;
    }
    mel_tensor_unref(dense);
    return status;
}
