// Encoding through FFmpeg into one file: MP4, WebM, WebP, and GIF for gif.c.
#include "media_internal.h"

#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct media_encoder {
    const media_target *target;
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream; // owned by format
    AVPacket *packet;
    int64_t frames;
    bool header;
};

const AVCodec *media_find_encoder(const char *codec) {
    // In the order of preference. libwebp, not libwebp_anim: the latter keeps the whole clip until the end.
    static const char *const names[][4] = {{"h264", "libx264", NULL}, {"vp9", "libvpx-vp9", NULL},
        {"av1", "libsvtav1", "libaom-av1", NULL}, {"gif", "gif", NULL}, {"webp", "libwebp", NULL},
        {"png", "png", NULL}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(codec, names[i][0]) != 0) continue;
        for (int k = 1; k < 4 && names[i][k]; k++) {
            const AVCodec *found = avcodec_find_encoder_by_name(names[i][k]);
            if (found) return found;
        }
    }
    return NULL;
}

int media_encoder_format(const media_encoder *encoder) {
    return encoder->codec->pix_fmt;
}

// Options of the encoder, as its own names.
static void choose_options(const media_target *target, AVCodecContext *codec, AVDictionary **dict) {
    const mel_video_write_options *o = &target->options;
    const char *encoder = codec->codec->name;
    if (strcmp(encoder, "gif") == 0) return;
    if (strcmp(encoder, "libwebp") == 0) {
        av_dict_set_int(dict, "quality", o->quality, 0);
        return;
    }
    codec->bit_rate = o->bitrate;
    if (o->bitrate == 0) av_dict_set_int(dict, "crf", o->crf, 0);
    if (strcmp(encoder, "libvpx-vp9") == 0) {
        av_dict_set(dict, "cpu-used", o->preset, 0);
        av_dict_set(dict, "deadline", "good", 0);
        av_dict_set(dict, "row-mt", "1", 0);
    } else if (strcmp(encoder, "libaom-av1") == 0) {
        av_dict_set_int(dict, "cpu-used", FFMIN(8, atoi(o->preset)), 0);
        av_dict_set(dict, "row-mt", "1", 0);
    } else {
        av_dict_set(dict, "preset", o->preset, 0);
    }
    // SVT-AV1 writes to stderr, past FFmpeg's log, unless told otherwise: 0 leaves fatal errors.
    if (strcmp(encoder, "libsvtav1") == 0) setenv("SVT_LOG", "0", 0);
}

static int open_codec(media_encoder *e, const AVCodec *which) {
    const media_target *target = e->target;
    AVCodecContext *codec = e->codec = avcodec_alloc_context3(which);
    if (!codec) return AVERROR(ENOMEM);
    bool gif = strcmp(which->name, "gif") == 0, webp = strcmp(which->name, "libwebp") == 0;
    codec->width = target->width;
    codec->height = target->height;
    codec->framerate = (AVRational){target->options.fps_num, target->options.fps_den};
    codec->time_base = av_inv_q(codec->framerate);
    codec->sample_aspect_ratio = (AVRational){1, 1};
    codec->thread_count = target->options.threads;
    codec->pix_fmt = gif ? AV_PIX_FMT_PAL8 : webp ? AV_PIX_FMT_BGRA : AV_PIX_FMT_YUV420P;
    if (codec->pix_fmt == AV_PIX_FMT_YUV420P) {
        codec->color_range = AVCOL_RANGE_MPEG;
        codec->colorspace = AVCOL_SPC_BT709;
        codec->color_primaries = AVCOL_PRI_BT709;
        codec->color_trc = AVCOL_TRC_BT709;
        codec->chroma_sample_location = AVCHROMA_LOC_LEFT;
    }
    if (e->format->oformat->flags & AVFMT_GLOBALHEADER) codec->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    AVDictionary *dict = NULL;
    choose_options(target, codec, &dict);
    int ret = avcodec_open2(codec, which, &dict);
    av_dict_free(&dict);
    return ret;
}

static int open_muxer(media_encoder *e) {
    const media_target *target = e->target;
    const char *format = target->options.format;
    e->stream = avformat_new_stream(e->format, NULL);
    if (!e->stream) return AVERROR(ENOMEM);
    int ret = avcodec_parameters_from_context(e->stream->codecpar, e->codec);
    if (ret < 0) return ret;
    e->stream->time_base = e->codec->time_base;
    e->stream->avg_frame_rate = e->codec->framerate;
    AVDictionary *dict = NULL;
    if (strcmp(format, "mp4") == 0) av_dict_set(&dict, "movflags", "+faststart+use_metadata_tags", 0);
    if (strcmp(format, "webp") == 0) av_dict_set_int(&dict, "loop", target->options.loop, 0);
    // The GIF muxer counts repeats: -1 none, 0 for ever.
    if (strcmp(format, "gif") == 0)
        av_dict_set_int(&dict, "loop",
            target->options.loop == 0   ? 0
            : target->options.loop == 1 ? -1
                                        : target->options.loop - 1,
            0);
    if (strcmp(format, "mp4") == 0 || strcmp(format, "webm") == 0) av_dict_copy(&e->format->metadata, target->tags, 0);
    ret = avio_open2(&e->format->pb, e->format->url, AVIO_FLAG_WRITE, NULL, NULL);
    if (ret >= 0) ret = avformat_write_header(e->format, &dict);
    av_dict_free(&dict);
    if (ret >= 0) e->header = true;
    return ret < 0 ? ret : 0;
}

mel_status media_encoder_open(const media_target *target, media_encoder **out, mel_error *err) {
    media_log_begin();
    const AVCodec *which = media_find_encoder(target->options.codec);
    if (!which)
        return mel_fail(
            err, MEL_EUNSUPPORTED, "%s: this FFmpeg has no encoder for %s", target->path, target->options.codec);
    // SVT-AV1 takes sides from 64 pixels on.
    bool small = target->width < 64 || target->height < 64;
    const AVCodec *other =
        small && strcmp(which->name, "libsvtav1") == 0 ? avcodec_find_encoder_by_name("libaom-av1") : NULL;
    if (other) which = other;
    media_encoder *e = mel_alloc_zero(sizeof *e, err);
    if (!e) return MEL_ENOMEM;
    e->target = target;
    char url[PATH_MAX + 8];
    snprintf(url, sizeof url, "file:%s", target->temp);
    const char *what = "cannot be written";
    int ret = avformat_alloc_output_context2(&e->format, NULL, target->options.format, url);
    if (ret >= 0 && !(e->packet = av_packet_alloc())) ret = AVERROR(ENOMEM);
    if (ret >= 0 && (ret = open_codec(e, which)) < 0) what = "the encoder refuses these options";
    if (ret >= 0) ret = open_muxer(e);
    if (ret < 0) {
        mel_status status = media_fail_av(err, target->path, what, ret);
        media_encoder_free(e);
        return status;
    }
    *out = e;
    return MEL_OK;
}

// Moves finished packets into the file. Write errors of the buffered file show up in pb->error.
static int drain(media_encoder *e) {
    for (;;) {
        int ret = avcodec_receive_packet(e->codec, e->packet);
        if (ret == AVERROR(EAGAIN) || ret == AVERROR_EOF) return 0;
        if (ret < 0) return ret;
        if (e->packet->duration == 0) e->packet->duration = 1;
        av_packet_rescale_ts(e->packet, e->codec->time_base, e->stream->time_base);
        e->packet->stream_index = e->stream->index;
        ret = av_interleaved_write_frame(e->format, e->packet);
        if (ret >= 0 && e->format->pb->error < 0) ret = e->format->pb->error;
        if (ret < 0) return ret;
    }
}

mel_status media_encoder_write(media_encoder *e, AVFrame *frame, mel_error *err) {
    media_log_begin();
    frame->pts = e->frames++;
    frame->pict_type = AV_PICTURE_TYPE_NONE;
    frame->pkt_duration = 1;
    int ret = avcodec_send_frame(e->codec, frame);
    if (ret >= 0) ret = drain(e);
    return ret < 0 ? media_fail_av(err, e->target->path, "cannot be written", ret) : MEL_OK;
}

mel_status media_encoder_finish(media_encoder *e, mel_error *err) {
    media_log_begin();
    int ret = avcodec_send_frame(e->codec, NULL);
    if (ret >= 0) ret = drain(e);
    if (ret >= 0) {
        e->header = false; // the trailer is written once, whether that works or not
        ret = av_write_trailer(e->format);
    }
    if (ret >= 0) {
        avio_flush(e->format->pb);
        ret = e->format->pb->error;
    }
    int closed = avio_closep(&e->format->pb);
    if (ret >= 0) ret = closed;
    return ret < 0 ? media_fail_av(err, e->target->path, "cannot be written", ret) : MEL_OK;
}

void media_encoder_free(media_encoder *e) {
    if (!e) return;
    avcodec_free_context(&e->codec);
    av_packet_free(&e->packet);
    if (e->format) {
        // An unfinished muxer keeps private buffers that only its trailer or its deinit frees.
        avio_closep(&e->format->pb);
        avformat_free_context(e->format);
    }
    mel_free(e);
}

// ---- the sink: RGB24 to what the encoder takes ------------------------------------------------------

typedef struct stream_state {
    const media_target *target;
    media_encoder *encoder;
    struct SwsContext *sws;
} stream_state;

static void stream_free(void *opaque) {
    stream_state *s = opaque;
    sws_freeContext(s->sws);
    media_encoder_free(s->encoder);
    mel_free(s);
}

static mel_status stream_open(const media_target *target, void **state, mel_error *err) {
    stream_state *s = mel_alloc_zero(sizeof *s, err);
    if (!s) return MEL_ENOMEM;
    s->target = target;
    mel_status status = media_encoder_open(target, &s->encoder, err);
    if (status == MEL_OK) {
        s->sws = sws_getContext(target->width, target->height, AV_PIX_FMT_RGB24, target->width, target->height,
            media_encoder_format(s->encoder), SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP, NULL, NULL, NULL);
        if (!s->sws) status = mel_fail(err, MEL_EINTERNAL, "%s: no conversion from RGB", target->path);
    }
    if (status != MEL_OK) {
        stream_free(s);
        return status;
    }
    const int *matrix = sws_getCoefficients(SWS_CS_ITU709);
    if (media_encoder_format(s->encoder) == AV_PIX_FMT_YUV420P)
        sws_setColorspaceDetails(s->sws, matrix, 1, matrix, 0, 0, 1 << 16, 1 << 16);
    *state = s;
    return MEL_OK;
}

static mel_status stream_write(void *opaque, const AVFrame *rgb, mel_error *err) {
    stream_state *s = opaque;
    // A new one each time: the encoder may keep the last ones for its look-ahead.
    AVFrame *frame = media_new_frame(media_encoder_format(s->encoder), rgb->width, rgb->height);
    if (!frame) return mel_fail(err, MEL_ENOMEM, "%s: no memory for a frame", s->target->path);
    sws_scale(s->sws, (const uint8_t *const *)rgb->data, rgb->linesize, 0, rgb->height, frame->data, frame->linesize);
    if (frame->format == AV_PIX_FMT_YUV420P) {
        frame->color_range = AVCOL_RANGE_MPEG;
        frame->colorspace = AVCOL_SPC_BT709;
        frame->color_primaries = AVCOL_PRI_BT709;
        frame->color_trc = AVCOL_TRC_BT709;
    }
    mel_status status = media_encoder_write(s->encoder, frame, err);
    av_frame_free(&frame);
    return status;
}

static mel_status stream_finish(void *opaque, mel_error *err) {
    stream_state *s = opaque;
    mel_status status = media_encoder_finish(s->encoder, err);
    if (status == MEL_OK && strcmp(s->target->options.format, "webp") == 0)
        status = media_append_tags(MEDIA_TAGS_WEBP, s->target->temp, s->target->tags, s->target->width,
            s->target->height, s->target->path, err);
    return status;
}

const media_sink media_stream_sink = {stream_open, stream_write, stream_finish, stream_free, NULL, NULL};
