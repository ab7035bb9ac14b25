// FFmpeg's filters between frames: a buffer source, the filters of the string, a conversion to RGB, a buffer sink.
#include "media_internal.h"

#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <melies/filter.h>
#include <stdio.h>
#include <string.h>

struct mel_filter_graph {
    AVFilterGraph *graph;
    AVFilterContext *source, *sink;
    AVFrame *frame;
    int width, height;
    int64_t pushed;
    bool ended;
};

// Filters that open files or addresses by themselves.
static bool reads_elsewhere(const char *filters) {
    static const char *const names[] = {"movie", "amovie", "frei0r", "ladspa", "lv2", "zmq", "azmq", "sendcmd",
        "asendcmd", "metadata", "ametadata", "subtitles", "ass", "drawtext", "lut3d", "lut1d", "dnn_processing",
        "removelogo"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n = strlen(names[i]);
        for (const char *p = filters; (p = strstr(p, names[i])); p += n) {
            char before = p == filters ? ',' : p[-1], after = p[n];
            if (strchr(",;] \t\n", before) && (after == '\0' || strchr("=,;[@ \t\n", after))) return true;
        }
    }
    return false;
}

static mel_status fail(mel_error *err, const char *filters, int ret) {
    char name[400];
    snprintf(name, sizeof name, "filter '%s'", filters);
    mel_status status = media_fail_av(err, name, "is refused", ret);
    if (status == MEL_ENOMEM) return status;
    if (err) err->status = MEL_EINVAL;
    return MEL_EINVAL;
}

static int build(mel_filter_graph *g, const char *filters, int fps_num, int fps_den) {
    char args[160];
    snprintf(args, sizeof args, "video_size=%dx%d:pix_fmt=%d:time_base=%d/%d:frame_rate=%d/%d:pixel_aspect=1/1",
        g->width, g->height, (int)AV_PIX_FMT_RGB24, fps_den, fps_num, fps_num, fps_den);
    int ret = avfilter_graph_create_filter(&g->source, avfilter_get_by_name("buffer"), "in", args, NULL, g->graph);
    if (ret < 0) return ret;
    AVFilterContext *format = NULL;
    ret = avfilter_graph_create_filter(&g->sink, avfilter_get_by_name("buffersink"), "out", NULL, NULL, g->graph);
    if (ret >= 0)
        ret = avfilter_graph_create_filter(
            &format, avfilter_get_by_name("format"), "rgb", "pix_fmts=rgb24", NULL, g->graph);
    if (ret >= 0) ret = avfilter_link(format, 0, g->sink, 0);
    if (ret < 0) return ret;
    AVFilterInOut *from = avfilter_inout_alloc(), *to = avfilter_inout_alloc();
    if (!from || !to) {
        avfilter_inout_free(&from);
        avfilter_inout_free(&to);
        return AVERROR(ENOMEM);
    }
    *from = (AVFilterInOut){.name = av_strdup("in"), .filter_ctx = g->source};
    *to = (AVFilterInOut){.name = av_strdup("out"), .filter_ctx = format};
    ret = avfilter_graph_parse_ptr(g->graph, filters, &to, &from, NULL);
    avfilter_inout_free(&from);
    avfilter_inout_free(&to);
    return ret < 0 ? ret : avfilter_graph_config(g->graph, NULL);
}

mel_status mel_filter_graph_open(const char *filters, int32_t width, int32_t height, int32_t fps_num, int32_t fps_den,
    mel_filter_graph **out, mel_error *err) {
    if (!filters || !*filters || !out) return mel_fail(err, MEL_EINVAL, "filter: no string of filters");
    if (strlen(filters) > 4000) return mel_fail(err, MEL_EINVAL, "filter: a string of more than 4000 bytes");
    if (width < 1 || height < 1 || width > MEDIA_MAX_SIDE || height > MEDIA_MAX_SIDE || fps_num < 1 || fps_den < 1)
        return mel_fail(err, MEL_EINVAL, "filter: frames of %dx%d at %d/%d a second", width, height, fps_num, fps_den);
    if (reads_elsewhere(filters))
        return mel_fail(
            err, MEL_EINVAL, "filter '%.300s': filters that open files or addresses are not allowed", filters);
    mel_filter_graph *g = mel_alloc_zero(sizeof *g, err);
    if (!g) return MEL_ENOMEM;
    media_log_begin();
    g->width = width;
    g->height = height;
    g->graph = avfilter_graph_alloc();
    g->frame = av_frame_alloc();
    int ret = AVERROR(ENOMEM);
    if (g->graph && g->frame) {
        g->graph->nb_threads = mel_threads() < 8 ? mel_threads() : 8;
        ret = build(g, filters, fps_num, fps_den);
    }
    if (ret < 0) {
        mel_status status = fail(err, filters, ret);
        mel_filter_graph_close(g);
        return status;
    }
    *out = g;
    return MEL_OK;
}

void mel_filter_graph_close(mel_filter_graph *g) {
    if (!g) return;
    avfilter_graph_free(&g->graph);
    av_frame_free(&g->frame);
    mel_free(g);
}

void mel_filter_graph_size(
    const mel_filter_graph *g, int32_t *width, int32_t *height, int32_t *fps_num, int32_t *fps_den) {
    *width = av_buffersink_get_w(g->sink);
    *height = av_buffersink_get_h(g->sink);
    AVRational rate = av_buffersink_get_frame_rate(g->sink);
    bool constant = rate.num > 0 && rate.den > 0;
    *fps_num = constant ? rate.num : 0;
    *fps_den = constant ? rate.den : 1;
}

mel_status mel_filter_graph_push(mel_filter_graph *g, const mel_tensor *frame, mel_error *err) {
    mel_status status = mel_check_cancel(err);
    if (status != MEL_OK) return status;
    if (g->ended) return mel_fail(err, MEL_EINVAL, "filter: a frame after the end of the stream");
    media_log_begin();
    if (!frame) {
        g->ended = true;
        int ret = av_buffersrc_close(g->source, g->pushed, AV_BUFFERSRC_FLAG_PUSH);
        return ret < 0 ? media_fail_av(err, "filter", "cannot end", ret) : MEL_OK;
    }
    char shape[128];
    const int64_t *size = mel_tensor_shape(frame);
    mel_dtype dtype = mel_tensor_dtype(frame);
    if (mel_tensor_ndim(frame) != 3 || size[0] != g->height || size[1] != g->width || size[2] != 3 ||
        (dtype != MEL_U8 && dtype != MEL_F32))
        return mel_fail(err, MEL_EINVAL, "filter: the frame is %s %s; u8 or f32 [%d, %d, 3] is wanted",
            mel_dtype_name(dtype), mel_tensor_shape_text(frame, shape, sizeof shape), g->height, g->width);
    mel_tensor *dense = NULL;
    status = mel_tensor_contiguous(frame, &dense, err);
    if (status != MEL_OK) return status;
    AVFrame *picture = media_new_frame(AV_PIX_FMT_RGB24, g->width, g->height);
    if (!picture) {
        mel_tensor_unref(dense);
        return mel_fail(err, MEL_ENOMEM, "filter: no memory for a frame of %dx%d", g->width, g->height);
    }
    media_fill_frame(picture, dense);
    mel_tensor_unref(dense);
    picture->pts = g->pushed++;
    int ret = av_buffersrc_add_frame(g->source, picture);
    av_frame_free(&picture);
    return ret < 0 ? media_fail_av(err, "filter", "does not take the frame", ret) : MEL_OK;
}

mel_status mel_filter_graph_pull(mel_filter_graph *g, mel_tensor **out, mel_error *err) {
    mel_status status = mel_check_cancel(err);
    if (status != MEL_OK) return status;
    media_log_begin();
    int ret = av_buffersink_get_frame(g->sink, g->frame);
    if (ret == AVERROR(EAGAIN) || ret == AVERROR_EOF) {
        *out = NULL;
        return MEL_OK;
    }
    if (ret < 0) return media_fail_av(err, "filter", "failed", ret);
    int64_t shape[3] = {g->frame->height, g->frame->width, 3};
    mel_tensor *frame = NULL;
    status = mel_tensor_create(MEL_U8, 3, shape, &frame, err);
    if (status == MEL_OK) {
        media_copy_turned(
            g->frame->data[0], g->frame->linesize[0], g->frame->width, g->frame->height, 0, mel_tensor_data(frame));
        *out = frame;
    }
    av_frame_unref(g->frame);
    return status;
}
