// Contact sheets: frames in rows, a label under each.
#include "font.h"
#include "media_internal.h"

#include <libswscale/swscale.h>
#include <math.h>
#include <string.h>

enum {
    GROUND = 24, // grey levels
    INK = 230,
    GLYPH_WIDTH = 6, // with the space after it
    GLYPH_HEIGHT = 7
};

typedef struct sheet_plan {
    int columns, rows, gap, cell_width, cell_height, label_scale, label_height;
    int64_t width, height;
} sheet_plan;

// The size of a frame on the sheet.
static void scaled_size(const mel_tensor *frame, double scale, int64_t *width, int64_t *height) {
    const int64_t *shape = mel_tensor_shape(frame);
    *height = llround(fmax(1, (double)shape[0] * scale));
    *width = llround(fmax(1, (double)shape[1] * scale));
}

static mel_status check_frame(const mel_tensor *frame, int index, mel_error *err) {
    char text[128];
    if (!frame) return mel_fail(err, MEL_EINVAL, "contact_sheet: frame %d is missing", index + 1);
    const int64_t *shape = mel_tensor_shape(frame);
    if (mel_tensor_ndim(frame) != 3 || shape[2] != 3 || shape[0] < 1 || shape[1] < 1 || shape[0] > MEDIA_MAX_SIDE ||
        shape[1] > MEDIA_MAX_SIDE)
        return mel_fail(err, MEL_EINVAL, "contact_sheet: frame %d is %s, wanted [H, W, 3]", index + 1,
            mel_tensor_shape_text(frame, text, sizeof text));
    return MEL_OK;
}

static mel_status make_plan(
    int count, const mel_tensor *const *frames, const mel_contact_sheet_options *o, sheet_plan *plan, mel_error *err) {
    double scale = o->scale == 0 ? 1 : o->scale;
    if (!(scale > 0 && scale <= 64))
        return mel_fail(err, MEL_EINVAL, "contact_sheet: scale is %g; it goes up to 64", scale);
    if (o->columns < 0 || o->gap < 0 || o->gap > 1024 || o->label_scale < 0 || o->label_scale > 8)
        return mel_fail(err, MEL_EINVAL, "contact_sheet: columns %d, gap %d, label_scale %d is out of range",
            o->columns, o->gap, o->label_scale);
    int64_t cell_width = 1, cell_height = 1;
    for (int i = 0; i < count; i++) {
        mel_status status = check_frame(frames[i], i, err);
        if (status != MEL_OK) return status;
        int64_t width, height;
        scaled_size(frames[i], scale, &width, &height);
        cell_width = FFMAX(cell_width, width);
        cell_height = FFMAX(cell_height, height);
    }
    plan->columns = o->columns ? FFMIN(o->columns, count) : (int)ceil(sqrt(count));
    plan->rows = (count - 1) / plan->columns + 1;
    plan->gap = o->gap_set ? o->gap : 8;
    plan->label_scale = o->label_scale ? o->label_scale : (int)FFMAX(1, FFMIN(4, cell_width / 96));
    plan->label_height = o->labels ? (GLYPH_HEIGHT + 4) * plan->label_scale : 0;
    plan->width = plan->gap + plan->columns * (cell_width + plan->gap);
    plan->height = plan->gap + plan->rows * (cell_height + plan->label_height + plan->gap);
    if (plan->width > MEDIA_MAX_SIDE || plan->height > MEDIA_MAX_SIDE)
        return mel_fail(err, MEL_EINVAL, "contact_sheet: %d frames make %lldx%lld pixels; at most %d a side", count,
            (long long)plan->width, (long long)plan->height, MEDIA_MAX_SIDE);
    plan->cell_width = (int)cell_width;
    plan->cell_height = (int)cell_height;
    return MEL_OK;
}

// Resized copy: whole factors repeat pixels, so that small frames stay sharp; others average areas.
static mel_status resize(const AVFrame *source, AVFrame *out, mel_error *err) {
    bool whole = out->width % source->width == 0 && out->height % source->height == 0;
    struct SwsContext *sws = sws_getContext(source->width, source->height, AV_PIX_FMT_RGB24, out->width, out->height,
        AV_PIX_FMT_RGB24, whole ? SWS_POINT : SWS_AREA | SWS_ACCURATE_RND, NULL, NULL, NULL);
    if (!sws) return mel_fail(err, MEL_ENOMEM, "contact_sheet: no memory to resize");
    sws_scale(sws, (const uint8_t *const *)source->data, source->linesize, 0, source->height, out->data, out->linesize);
    sws_freeContext(sws);
    return MEL_OK;
}

// Frame, resized to width x height, with its upper left corner at (left, top) of the sheet.
static mel_status paste(const mel_tensor *frame, int64_t width, int64_t height, mel_tensor *sheet, int64_t left,
    int64_t top, mel_error *err) {
    mel_tensor *bytes = NULL;
    mel_status status = mel_pixels_to_u8(frame, &bytes, err);
    if (status != MEL_OK) return status;
    const int64_t *shape = mel_tensor_shape(bytes);
    AVFrame *source = media_new_frame(AV_PIX_FMT_RGB24, (int)shape[1], (int)shape[0]);
    AVFrame *scaled = media_new_frame(AV_PIX_FMT_RGB24, (int)width, (int)height);
    if (!source || !scaled) status = mel_fail(err, MEL_ENOMEM, "contact_sheet: no memory for a frame");
    const AVFrame *shown = source;
    if (status == MEL_OK) media_fill_frame(source, bytes);
    if (status == MEL_OK && (width != shape[1] || height != shape[0])) {
        status = resize(source, scaled, err);
        shown = scaled;
    }
    if (status == MEL_OK) {
        int64_t stride = mel_tensor_shape(sheet)[1] * 3;
        uint8_t *to = (uint8_t *)mel_tensor_data(sheet) + top * stride + left * 3;
        for (int64_t y = 0; y < height; y++)
            memcpy(to + y * stride, shown->data[0] + y * shown->linesize[0], (size_t)width * 3);
    }
    av_frame_free(&source);
    av_frame_free(&scaled);
    mel_tensor_unref(bytes);
    return status;
}

// Letters that do not fit into room pixels are left away. Text beyond ASCII: one ? a character.
static void draw_text(mel_tensor *sheet, const char *text, int scale, int64_t left, int64_t top, int64_t room) {
    int64_t stride = mel_tensor_shape(sheet)[1] * 3;
    uint8_t *data = mel_tensor_data(sheet);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if ((c & 0xc0) == 0x80) continue; // a later byte of a UTF-8 character
        if (c < 32 || c > 126) c = '?';
        if (room < (GLYPH_WIDTH - 1) * scale) return;
        for (int y = 0; y < GLYPH_HEIGHT * scale; y++)
            for (int x = 0; x < (GLYPH_WIDTH - 1) * scale; x++)
                if (media_font[c - 32][y / scale] >> (4 - x / scale) & 1)
                    memset(data + (top + y) * stride + (left + x) * 3, INK, 3);
        left += GLYPH_WIDTH * scale;
        room -= GLYPH_WIDTH * scale;
    }
}

// From a label to the next one in its row, or to the row's end.
static int64_t label_room(const sheet_plan *plan, const char *const *labels, int count, int index) {
    int end = index + 1, row_end = (index / plan->columns + 1) * plan->columns;
    while (end < row_end && (end >= count || !labels[end]))
        end++;
    return (int64_t)(end - index) * (plan->cell_width + plan->gap) - plan->gap;
}

mel_status mel_contact_sheet(int32_t count, const mel_tensor *const *frames, const mel_contact_sheet_options *options,
    mel_tensor **out, mel_error *err) {
    static const mel_contact_sheet_options defaults = {0};
    if (count < 1 || count > 65536 || !frames || !out)
        return mel_fail(err, MEL_EINVAL, "contact_sheet: %d frames", count);
    if (!options) options = &defaults;
    sheet_plan plan = {0};
    mel_status status = make_plan(count, frames, options, &plan, err);
    if (status != MEL_OK) return status;
    mel_tensor *sheet = NULL;
    status = mel_tensor_create(MEL_U8, 3, (int64_t[]){plan.height, plan.width, 3}, &sheet, err);
    if (status != MEL_OK) return status;
    memset(mel_tensor_data(sheet), GROUND, (size_t)mel_tensor_bytes(sheet));
    for (int i = 0; i < count && status == MEL_OK; i++) {
        int64_t width, height;
        scaled_size(frames[i], options->scale == 0 ? 1 : options->scale, &width, &height);
        int64_t left = plan.gap + (int64_t)(i % plan.columns) * (plan.cell_width + plan.gap);
        int64_t top = plan.gap + (int64_t)(i / plan.columns) * (plan.cell_height + plan.label_height + plan.gap);
        status = mel_check_cancel(err);
        if (status == MEL_OK)
            status = paste(frames[i], width, height, sheet, left + (plan.cell_width - width) / 2,
                top + (plan.cell_height - height) / 2, err);
        if (options->labels && options->labels[i])
            draw_text(sheet, options->labels[i], plan.label_scale, left, top + plan.cell_height + 3 * plan.label_scale,
                label_room(&plan, options->labels, count, i));
    }
    if (status == MEL_OK)
        *out = sheet;
    else
        mel_tensor_unref(sheet);
    return status;
}
