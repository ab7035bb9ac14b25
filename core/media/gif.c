// GIF with one palette made for the whole clip. While frames come in, a histogram of them grows (bounded: 6 bits a
// channel) and the frames go to a scratch file beside the output; finish makes the palette, reads them back and
// dithers.
#include "media_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <libavutil/opt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct gif_state {
    const media_target *target;
    media_encoder *encoder;
    int scratch; // file of raw RGB24 frames; it has no name any more
    int64_t frames;
    AVFilterGraph *palette_graph, *dither_graph;
    AVFilterContext *palette_in, *palette_out, *dither_in, *dither_palette, *dither_out;
} gif_state;

static void gif_free(void *opaque) {
    gif_state *s = opaque;
    avfilter_graph_free(&s->palette_graph);
    avfilter_graph_free(&s->dither_graph);
    media_encoder_free(s->encoder);
    if (s->scratch >= 0) close(s->scratch);
    mel_free(s);
}

static int add_source(AVFilterGraph *graph, const char *name, int width, int height, AVFilterContext **out) {
    char text[128];
    snprintf(text, sizeof text, "video_size=%dx%d:pix_fmt=%d:time_base=1/100:pixel_aspect=1/1", width, height,
        AV_PIX_FMT_RGB32);
    return avfilter_graph_create_filter(out, avfilter_get_by_name("buffer"), name, text, NULL, graph);
}

static int add_filter(AVFilterGraph *graph, const char *filter, const char *options, AVFilterContext **out) {
    const AVFilter *which = avfilter_get_by_name(filter);
    if (!which) return AVERROR_FILTER_NOT_FOUND;
    return avfilter_graph_create_filter(out, which, filter, options, NULL, graph);
}

static int open_palette_graph(gif_state *s) {
    AVFilterGraph *graph = s->palette_graph = avfilter_graph_alloc();
    AVFilterContext *generator = NULL;
    if (!graph) return AVERROR(ENOMEM);
    graph->nb_threads = 1;
    int ret = add_source(graph, "frames", s->target->width, s->target->height, &s->palette_in);
    if (ret >= 0) ret = add_filter(graph, "palettegen", "stats_mode=full", &generator);
    if (ret >= 0) ret = add_filter(graph, "buffersink", NULL, &s->palette_out);
    if (ret >= 0) ret = avfilter_link(s->palette_in, 0, generator, 0);
    if (ret >= 0) ret = avfilter_link(generator, 0, s->palette_out, 0);
    return ret < 0 ? ret : avfilter_graph_config(graph, NULL);
}

static int open_dither_graph(gif_state *s) {
    AVFilterGraph *graph = s->dither_graph = avfilter_graph_alloc();
    AVFilterContext *dither = NULL;
    if (!graph) return AVERROR(ENOMEM);
    graph->nb_threads = 1;
    int ret = add_source(graph, "frames", s->target->width, s->target->height, &s->dither_in);
    if (ret >= 0) ret = add_source(graph, "palette", 16, 16, &s->dither_palette);
    if (ret >= 0) ret = add_filter(graph, "paletteuse", "dither=bayer:bayer_scale=2:diff_mode=rectangle", &dither);
    if (ret >= 0) ret = add_filter(graph, "buffersink", NULL, &s->dither_out);
    if (ret >= 0) ret = avfilter_link(s->dither_in, 0, dither, 0);
    if (ret >= 0) ret = avfilter_link(s->dither_palette, 0, dither, 1);
    if (ret >= 0) ret = avfilter_link(dither, 0, s->dither_out, 0);
    return ret < 0 ? ret : avfilter_graph_config(graph, NULL);
}

static mel_status open_scratch(gif_state *s, mel_error *err) {
    char name[PATH_MAX];
    mel_status status = media_temp_name(s->target->path, media_next_serial(), name, err);
    if (status != MEL_OK) return status;
    s->scratch = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (s->scratch < 0) return media_fail_errno(err, s->target->path, "its scratch file cannot be made", errno);
    unlink(name);
    return MEL_OK;
}

static mel_status gif_open(const media_target *target, void **state, mel_error *err) {
    gif_state *s = mel_alloc_zero(sizeof *s, err);
    if (!s) return MEL_ENOMEM;
    s->target = target;
    s->scratch = -1;
    media_log_begin();
    mel_status status = open_scratch(s, err);
    if (status == MEL_OK) {
        int ret = open_palette_graph(s);
        if (ret < 0) status = media_fail_av(err, target->path, "no palette filter", ret);
    }
    if (status == MEL_OK) status = media_encoder_open(target, &s->encoder, err);
    if (status != MEL_OK) {
        gif_free(s);
        return status;
    }
    *state = s;
    return MEL_OK;
}

// RGB24 rows to the filters' 32-bit words. mask keeps that many upper bits of each channel, repeated below them.
static void to_words(AVFrame *out, const uint8_t *rgb, ptrdiff_t stride, bool reduce) {
    for (int y = 0; y < out->height; y++) {
        const uint8_t *from = rgb + y * stride;
        uint32_t *to = (uint32_t *)(void *)(out->data[0] + (ptrdiff_t)y * out->linesize[0]);
        for (int x = 0; x < out->width; x++, from += 3) {
            uint32_t word = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 8 | from[2];
            if (reduce) word = (word & 0xfcfcfc) | (word >> 6 & 0x030303);
            to[x] = word | 0xff000000;
        }
    }
}

static mel_status gif_write(void *opaque, const AVFrame *rgb, mel_error *err) {
    gif_state *s = opaque;
    const char *path = s->target->path;
    size_t row = (size_t)rgb->width * 3;
    off_t start = (off_t)(s->frames * rgb->height) * (off_t)row;
    for (int y = 0; y < rgb->height; y++, start += (off_t)row) {
        const uint8_t *from = rgb->data[0] + (ptrdiff_t)y * rgb->linesize[0];
        for (size_t done = 0; done < row;) {
            ssize_t n = pwrite(s->scratch, from + done, row - done, start + (off_t)done);
            if (n <= 0) return media_fail_errno(err, path, "its scratch file cannot be written", n < 0 ? errno : EIO);
            done += (size_t)n;
        }
    }
    media_log_begin();
    AVFrame *frame = media_new_frame(AV_PIX_FMT_RGB32, rgb->width, rgb->height);
    if (!frame) return mel_fail(err, MEL_ENOMEM, "%s: no memory for a frame", path);
    to_words(frame, rgb->data[0], rgb->linesize[0], true);
    frame->pts = s->frames++;
    int ret = av_buffersrc_add_frame_flags(s->palette_in, frame, AV_BUFFERSRC_FLAG_PUSH);
    av_frame_free(&frame);
    return ret < 0 ? media_fail_av(err, path, "its palette cannot be made", ret) : MEL_OK;
}

// Gives the finished palette to the dithering graph.
static int move_palette(gif_state *s) {
    AVFrame *palette = av_frame_alloc();
    if (!palette) return AVERROR(ENOMEM);
    int ret = av_buffersrc_add_frame_flags(s->palette_in, NULL, AV_BUFFERSRC_FLAG_PUSH);
    if (ret >= 0) ret = av_buffersink_get_frame(s->palette_out, palette);
    avfilter_graph_free(&s->palette_graph);
    if (ret >= 0) ret = open_dither_graph(s);
    if (ret >= 0) {
        palette->pts = 0;
        ret = av_buffersrc_add_frame(s->dither_palette, palette);
    }
    if (ret >= 0) ret = av_buffersrc_add_frame(s->dither_palette, NULL);
    av_frame_free(&palette);
    return ret;
}

static mel_status encode_ready(gif_state *s, AVFrame *dithered, mel_error *err) {
    for (;;) {
        int ret = av_buffersink_get_frame(s->dither_out, dithered);
        if (ret == AVERROR(EAGAIN) || ret == AVERROR_EOF) return MEL_OK;
        if (ret < 0) return media_fail_av(err, s->target->path, "cannot be dithered", ret);
        mel_status status = media_encoder_write(s->encoder, dithered, err);
        av_frame_unref(dithered);
        if (status != MEL_OK) return status;
    }
}

static mel_status second_pass(gif_state *s, uint8_t *raw, AVFrame *dithered, mel_error *err) {
    const char *path = s->target->path;
    int w = s->target->width, h = s->target->height;
    size_t size = (size_t)w * (size_t)h * 3;
    int ret = move_palette(s);
    if (ret < 0) return media_fail_av(err, path, "its palette cannot be made", ret);
    mel_status status = MEL_OK;
    for (int64_t i = 0; i < s->frames && status == MEL_OK; i++) {
        status = mel_check_cancel(err);
        if (status != MEL_OK) return status;
        for (size_t have = 0; have < size;) {
            ssize_t n = pread(s->scratch, raw + have, size - have, (off_t)i * (off_t)size + (off_t)have);
            if (n <= 0) return media_fail_errno(err, path, "its scratch file cannot be read", n < 0 ? errno : EIO);
            have += (size_t)n;
        }
        AVFrame *frame = media_new_frame(AV_PIX_FMT_RGB32, w, h);
        if (!frame) return mel_fail(err, MEL_ENOMEM, "%s: no memory for a frame", path);
        to_words(frame, raw, (ptrdiff_t)w * 3, false);
        frame->pts = i;
        ret = av_buffersrc_add_frame_flags(s->dither_in, frame, AV_BUFFERSRC_FLAG_PUSH);
        av_frame_free(&frame);
        if (ret < 0) return media_fail_av(err, path, "cannot be dithered", ret);
        status = encode_ready(s, dithered, err);
    }
    if (status != MEL_OK) return status;
    ret = av_buffersrc_add_frame_flags(s->dither_in, NULL, AV_BUFFERSRC_FLAG_PUSH);
    return ret < 0 ? media_fail_av(err, path, "cannot be dithered", ret) : encode_ready(s, dithered, err);
}

static mel_status gif_finish(void *opaque, mel_error *err) {
    gif_state *s = opaque;
    media_log_begin();
    AVFrame *dithered = av_frame_alloc();
    uint8_t *raw = mel_alloc((size_t)s->target->width * (size_t)s->target->height * 3, err);
    mel_status status = raw ? MEL_OK : MEL_ENOMEM;
    if (raw && !dithered) status = mel_fail(err, MEL_ENOMEM, "%s: no memory for a frame", s->target->path);
    if (status == MEL_OK) status = second_pass(s, raw, dithered, err);
    if (status == MEL_OK) status = media_encoder_finish(s->encoder, err);
    if (status == MEL_OK)
        status = media_append_tags(MEDIA_TAGS_GIF, s->target->temp, s->target->tags, 0, 0, s->target->path, err);
    mel_free(raw);
    av_frame_free(&dithered);
    return status;
}

const media_sink media_gif_sink = {gif_open, gif_write, gif_finish, gif_free, NULL, NULL};
