// The reader: demux, decode one frame ahead, place it in time, convert to RGB.
#include "media_internal.h"

#include <libavutil/display.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct mel_video_reader {
    char path[PATH_MAX];
    mel_video_read_options options;
    mel_video_info info;
    AVDictionary *tags;

    media_webp *webp; // instead of format and codec for an animated WebP
    AVFormatContext *format;
    AVCodecContext *codec;
    int stream;
    AVRational time_base; // of timestamps
    AVRational target;    // frames a second to convert to; 0/1: none
    int64_t origin;       // timestamp of time 0
    int64_t step;         // nominal duration of a frame in ticks, at least 1

    AVPacket *packet;
    AVFrame *hold, *ahead; // the frame on screen, and the one after it
    bool has_hold, has_ahead;
    bool ended;       // no more frames
    bool cut;         // the file is known to end too early
    double stated_s;  // duration of the video that the file claims, 0 where it does not
    int64_t last_pts; // of the newest decoded frame
    int64_t slot;     // number of the next frame out, at the target rate

    struct SwsContext *sws;
    int sws_key[5];
    AVFrame *scaled;
};

static AVStream *stream_of(const mel_video_reader *r) {
    return r->format->streams[r->stream];
}

// ---- opening ----------------------------------------------------------------------------------

static void forget_frames(mel_video_reader *r) {
    av_frame_unref(r->hold);
    av_frame_unref(r->ahead);
    r->has_hold = r->has_ahead = r->ended = false;
    r->last_pts = AV_NOPTS_VALUE;
}

static void close_file(mel_video_reader *r) {
    avcodec_free_context(&r->codec);
    avformat_close_input(&r->format);
    media_webp_close(r->webp);
    r->webp = NULL;
    forget_frames(r);
}

static bool is_still(const char *path, const AVInputFormat *format) {
    if (media_is_pattern(path)) return false;
    size_t n = strlen(format->name);
    return (n > 5 && strcmp(format->name + n - 5, "_pipe") == 0) || strcmp(format->name, "image2") == 0;
}

static mel_status open_decoder(mel_video_reader *r, const AVCodec *decoder, mel_error *err) {
    AVStream *stream = stream_of(r);
    const char *name = avcodec_get_name(stream->codecpar->codec_id);
    if (!decoder) decoder = avcodec_find_decoder(stream->codecpar->codec_id);
    if (!decoder) return mel_fail(err, MEL_EUNSUPPORTED, "%s: this FFmpeg has no decoder for %s", r->path, name);
    r->codec = avcodec_alloc_context3(decoder);
    if (!r->codec) return mel_fail(err, MEL_ENOMEM, "%s: no memory for the decoder", r->path);
    int ret = avcodec_parameters_to_context(r->codec, stream->codecpar);
    int cores = mel_threads();
    r->codec->thread_count = r->options.threads > 0 ? r->options.threads : cores < 8 ? cores : 8;
    r->codec->pkt_timebase = stream->time_base;
    r->codec->max_pixels = (int64_t)MEDIA_MAX_SIDE * MEDIA_MAX_SIDE;
    // A still image that is cut short must not pass for a whole one. (FFmpeg's TIFF decoder refuses good files then.)
    enum AVCodecID id = stream->codecpar->codec_id;
    if (id == AV_CODEC_ID_PNG || id == AV_CODEC_ID_WEBP || id == AV_CODEC_ID_MJPEG)
        r->codec->err_recognition |= AV_EF_EXPLODE | AV_EF_CRCCHECK;
    if (ret >= 0) ret = avcodec_open2(r->codec, decoder, NULL);
    return ret < 0 ? media_fail_av(err, r->path, "cannot be decoded", ret) : MEL_OK;
}

static mel_status open_file(mel_video_reader *r, mel_error *err) {
    if (media_webp_is_animated(r->path)) return media_webp_open(r->path, &r->webp, err);
    media_log_begin();
    AVDictionary *dict = NULL;
    if (media_is_pattern(r->path) && r->options.fps_num > 0) {
        char rate[32];
        snprintf(rate, sizeof rate, "%d/%d", r->options.fps_num, r->options.fps_den);
        av_dict_set(&dict, "framerate", rate, 0);
    }
    mel_status status = media_open_input(r->path, dict, &r->format, err);
    if (status != MEL_OK) return status;
    const AVCodec *decoder = NULL;
    r->stream = av_find_best_stream(r->format, AVMEDIA_TYPE_VIDEO, -1, -1, &decoder, 0);
    if (r->stream == AVERROR_DECODER_NOT_FOUND)
        return mel_fail(err, MEL_EUNSUPPORTED, "%s: no decoder for it", r->path);
    if (r->stream < 0) return mel_fail(err, MEL_EFORMAT, "%s: has no video", r->path);
    for (unsigned i = 0; i < r->format->nb_streams; i++)
        if ((int)i != r->stream) r->format->streams[i]->discard = AVDISCARD_ALL;
    return open_decoder(r, decoder, err);
}

static void merge_tags(mel_video_reader *r, const AVDictionary *tags) {
    bool matroska = strstr(r->format->iformat->name, "matroska") != NULL;
    if (strcmp(r->format->iformat->name, "gif") == 0) return; // its comments are read apart
    const AVDictionaryEntry *tag = NULL;
    while ((tag = av_dict_get(tags, "", tag, AV_DICT_IGNORE_SUFFIX))) {
        char key[128];
        snprintf(key, sizeof key, "%s", tag->key);
        // Matroska's tag names are written in capitals.
        for (char *c = key; matroska && *c; c++)
            if (*c >= 'A' && *c <= 'Z') *c = (char)(*c - 'A' + 'a');
        av_dict_set(&r->tags, key, tag->value, AV_DICT_DONT_OVERWRITE);
    }
}

static int rotation_of(AVStream *stream) {
    size_t size = 0;
    const uint8_t *data = av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
    if (!data || size < 9 * sizeof(int32_t)) return 0;
    double angle = -av_display_rotation_get((const int32_t *)(const void *)data);
    if (!isfinite(angle)) return 0;
    int quarters = (int)lround(angle / 90.0) % 4;
    return (quarters + 4) % 4 * 90;
}

static mel_status fit_size(mel_video_reader *r, mel_error *err) {
    mel_video_info *info = &r->info;
    bool turned = info->rotation % 180 != 0;
    double w = turned ? info->source_height : info->source_width, h = turned ? info->source_width : info->source_height;
    double out_w = r->options.width, out_h = r->options.height;
    if (out_w == 0 && out_h == 0)
        out_w = w, out_h = h;
    else if (out_w == 0)
        out_w = fmax(1, round(out_h * w / h));
    else if (out_h == 0)
        out_h = fmax(1, round(out_w * h / w));
    if (out_w > MEDIA_MAX_SIDE || out_h > MEDIA_MAX_SIDE)
        return mel_fail(err, MEL_EINVAL, "%s: frames of %.0fx%.0f; at most %dx%d", r->path, out_w, out_h,
            MEDIA_MAX_SIDE, MEDIA_MAX_SIDE);
    info->width = (int32_t)out_w;
    info->height = (int32_t)out_h;
    return MEL_OK;
}

// Matroska: the track's own DURATION tag, or the file's duration where there is only this track.
static double stated_duration(const mel_video_reader *r) {
    if (!strstr(r->format->iformat->name, "matroska")) return 0;
    const AVDictionaryEntry *tag = av_dict_get(stream_of(r)->metadata, "DURATION", NULL, 0);
    int hours, minutes;
    double seconds;
    if (tag && sscanf(tag->value, "%d:%d:%lf", &hours, &minutes, &seconds) == 3)
        return hours * 3600.0 + minutes * 60.0 + seconds;
    bool alone = r->format->nb_streams == 1 && r->format->duration_estimation_method == AVFMT_DURATION_FROM_STREAM;
    return alone && r->format->duration > 0 ? (double)r->format->duration / AV_TIME_BASE : 0;
}

// What the file says of its video, into info and the fields about time; the rate, 0/1 where unknown.
static mel_status stream_facts(mel_video_reader *r, AVRational *rate, mel_error *err) {
    AVStream *stream = stream_of(r);
    const AVCodecParameters *par = stream->codecpar;
    mel_video_info *info = &r->info;
    if (par->width < 1 || par->height < 1)
        return mel_fail(
            err, MEL_EFORMAT, r->cut ? "%s: is cut short" : "%s: no size of its frames can be found", r->path);
    info->source_width = par->width;
    info->source_height = par->height;
    info->rotation = rotation_of(stream);
    info->is_image = is_still(r->path, r->format->iformat);
    info->has_audio = av_find_best_stream(r->format, AVMEDIA_TYPE_AUDIO, -1, -1, NULL, 0) >= 0;
    snprintf(info->codec, sizeof info->codec, "%s", avcodec_get_name(par->codec_id));
    const char *pixels = av_get_pix_fmt_name(par->format);
    snprintf(info->pixel_format, sizeof info->pixel_format, "%s", pixels ? pixels : "unknown");
    snprintf(info->container, sizeof info->container, "%s", r->format->iformat->name);
    *rate = stream->avg_frame_rate.num > 0 ? stream->avg_frame_rate : stream->r_frame_rate;
    r->time_base = stream->time_base;
    r->origin = stream->start_time != AV_NOPTS_VALUE ? stream->start_time : 0;
    r->stated_s = stated_duration(r);
    info->duration_s = -1;
    if (stream->duration > 0)
        info->duration_s = (double)stream->duration * av_q2d(r->time_base);
    else if (r->format->duration > 0)
        info->duration_s = (double)r->format->duration / AV_TIME_BASE;
    info->frames = stream->nb_frames > 0 ? stream->nb_frames : -1;
    return MEL_OK;
}

static void webp_facts(mel_video_reader *r, AVRational *rate) {
    mel_video_info *info = &r->info;
    int64_t duration_ms;
    media_webp_facts(r->webp, &info->source_width, &info->source_height, &info->frames, &duration_ms);
    snprintf(info->codec, sizeof info->codec, "webp");
    snprintf(info->container, sizeof info->container, "webp");
    snprintf(info->pixel_format, sizeof info->pixel_format, "rgb24");
    av_reduce(&rate->num, &rate->den, info->frames * 1000, duration_ms > 0 ? duration_ms : 1, 1000000);
    r->time_base = (AVRational){1, 1000};
    info->duration_s = (double)duration_ms / 1000;
}

static mel_status fill_info(mel_video_reader *r, mel_error *err) {
    mel_video_info *info = &r->info;
    AVRational rate = {0, 1};
    mel_status status = MEL_OK;
    if (r->webp)
        webp_facts(r, &rate);
    else
        status = stream_facts(r, &rate, err);
    if (status == MEL_OK) status = fit_size(r, err);
    if (status != MEL_OK) return status;
    if (info->is_image || rate.num <= 0 || rate.den <= 0) rate = (AVRational){0, 1};
    r->step = rate.num ? av_rescale_q(1, av_inv_q(rate), r->time_base) : 1;
    if (r->step < 1) r->step = 1;
    bool convert = r->options.fps_num > 0 && !info->is_image && !media_is_pattern(r->path);
    r->target = convert ? (AVRational){r->options.fps_num, r->options.fps_den} : (AVRational){0, 1};
    AVRational given = convert ? r->target : rate;
    info->source_fps = av_q2d(rate);
    info->fps = av_q2d(given);
    info->fps_num = given.num;
    info->fps_den = given.den;
    if (info->is_image) {
        info->duration_s = -1;
        info->frames = 1;
    }
    if (convert) info->frames = info->duration_s > 0 ? llround(info->duration_s * info->fps) : -1;
    return MEL_OK;
}

static mel_status check_options(const char *path, const mel_video_read_options *o, mel_error *err) {
    if (o->width < 0 || o->height < 0 || o->width > MEDIA_MAX_SIDE || o->height > MEDIA_MAX_SIDE)
        return mel_fail(
            err, MEL_EINVAL, "%s: frames of %dx%d; sides go from 1 to %d", path, o->width, o->height, MEDIA_MAX_SIDE);
    if (o->fps_num == 0 && o->fps_den == 0) return MEL_OK;
    if (o->fps_num <= 0 || o->fps_den <= 0 || o->fps_num > 1000LL * o->fps_den)
        return mel_fail(err, MEL_EINVAL, "%s: fps is %d/%d; it goes up to 1000", path, o->fps_num, o->fps_den);
    return MEL_OK;
}

mel_status mel_video_reader_open(
    const char *path, const mel_video_read_options *options, mel_video_reader **out, mel_error *err) {
    if (!path || !out) return mel_fail(err, MEL_EINVAL, "video_reader: no path");
    if (strlen(path) >= PATH_MAX) return mel_fail(err, MEL_EINVAL, "%.60s...: the path is too long", path);
    mel_status status = options ? check_options(path, options, err) : MEL_OK;
    if (status != MEL_OK) return status;
    mel_video_reader *r = mel_alloc_zero(sizeof *r, err);
    if (!r) return MEL_ENOMEM;
    memcpy(r->path, path, strlen(path) + 1);
    if (options) r->options = *options;
    r->packet = av_packet_alloc();
    r->hold = av_frame_alloc();
    r->ahead = av_frame_alloc();
    r->last_pts = AV_NOPTS_VALUE;
    if (!r->packet || !r->hold || !r->ahead) status = mel_fail(err, MEL_ENOMEM, "%s: no memory to read it", path);
    if (status == MEL_OK) status = open_file(r, err);
    if (status == MEL_OK && !media_is_pattern(path)) status = media_read_tags(path, &r->tags, &r->cut, err);
    if (status == MEL_OK) status = fill_info(r, err);
    if (status != MEL_OK) {
        mel_video_reader_close(r);
        return status;
    }
    if (r->format) {
        merge_tags(r, r->format->metadata);
        merge_tags(r, stream_of(r)->metadata);
    }
    *out = r;
    return MEL_OK;
}

void mel_video_reader_close(mel_video_reader *r) {
    if (!r) return;
    if (r->hold && r->ahead) close_file(r);
    av_packet_free(&r->packet);
    av_frame_free(&r->hold);
    av_frame_free(&r->ahead);
    av_frame_free(&r->scaled);
    av_dict_free(&r->tags);
    sws_freeContext(r->sws);
    mel_free(r);
}

void mel_video_reader_info(const mel_video_reader *r, mel_video_info *out) {
    *out = r->info;
}

bool mel_video_reader_tag(const mel_video_reader *r, int index, const char **key, const char **value) {
    const AVDictionaryEntry *tag = NULL;
    for (int i = 0; i <= index; i++) {
        tag = av_dict_get(r->tags, "", tag, AV_DICT_IGNORE_SUFFIX);
        if (!tag) return false;
    }
    if (!tag) return false;
    *key = tag->key;
    *value = tag->value;
    return true;
}

// ---- decoding -----------------------------------------------------------------------------------

static double seconds_at(const mel_video_reader *r, int64_t pts) {
    return (double)(pts - r->origin) * av_q2d(r->time_base);
}

static mel_status fail_damaged(const mel_video_reader *r, int ret, mel_error *err) {
    char what[80];
    double at = r->last_pts == AV_NOPTS_VALUE ? 0 : seconds_at(r, r->last_pts);
    if (r->info.is_image)
        snprintf(what, sizeof what, "damaged or cut short");
    else
        snprintf(what, sizeof what, "damaged or cut short after %.3f s", at);
    return media_fail_av(err, r->path, what, ret);
}

// Some demuxers take the end of a file that was cut for the end of the stream.
static bool ends_early(const mel_video_reader *r) {
    if (r->cut) return true;
    if (r->stated_s <= 0 || r->last_pts == AV_NOPTS_VALUE) return false;
    return seconds_at(r, r->last_pts + 2 * r->step) + 0.1 < r->stated_s;
}

// Hands the decoder its next packet, or the end.
static mel_status feed(mel_video_reader *r, mel_error *err) {
    for (;;) {
        mel_status status = mel_check_cancel(err);
        if (status != MEL_OK) return status;
        int ret = av_read_frame(r->format, r->packet);
        if (ret == AVERROR_EOF) {
            if (r->format->pb && r->format->pb->error < 0) return fail_damaged(r, r->format->pb->error, err);
            ret = avcodec_send_packet(r->codec, NULL);
            return ret < 0 && ret != AVERROR_EOF ? fail_damaged(r, ret, err) : MEL_OK;
        }
        if (ret < 0) return fail_damaged(r, ret, err);
        if (r->packet->stream_index != r->stream) {
            av_packet_unref(r->packet);
            continue;
        }
        bool cut = r->packet->flags & AV_PKT_FLAG_CORRUPT;
        ret = cut ? AVERROR_INVALIDDATA : avcodec_send_packet(r->codec, r->packet);
        av_packet_unref(r->packet);
        return ret < 0 ? fail_damaged(r, ret, err) : MEL_OK;
    }
}

// The next decoded frame into r->ahead; sets has_ahead, or ended.
static mel_status decode_ahead(mel_video_reader *r, mel_error *err) {
    media_log_begin();
    while (!r->ended) {
        int ret = r->webp ? media_webp_next(r->webp, r->ahead) : avcodec_receive_frame(r->codec, r->ahead);
        if (ret == AVERROR_EOF) {
            if (ends_early(r)) return fail_damaged(r, AVERROR_INVALIDDATA, err);
            r->ended = true;
        } else if (ret == AVERROR(EAGAIN)) {
            mel_status status = feed(r, err);
            if (status != MEL_OK) return status;
        } else if (ret < 0) {
            return fail_damaged(r, ret, err);
        } else {
            int64_t pts = r->ahead->best_effort_timestamp;
            if (pts == AV_NOPTS_VALUE) pts = r->last_pts == AV_NOPTS_VALUE ? r->origin : r->last_pts + r->step;
            r->ahead->pts = r->last_pts = pts;
            r->has_ahead = true;
            return MEL_OK;
        }
    }
    return MEL_OK;
}

static void move_ahead_to_hold(mel_video_reader *r) {
    av_frame_unref(r->hold);
    av_frame_move_ref(r->hold, r->ahead);
    r->has_hold = true;
    r->has_ahead = false;
}

// ---- to RGB -------------------------------------------------------------------------------------

// The older full-range pixel formats, as the plain ones that swscale wants with a flag.
static int plain_format(int format, bool *full) {
    switch (format) {
    case AV_PIX_FMT_YUVJ420P: *full = true; return AV_PIX_FMT_YUV420P;
    case AV_PIX_FMT_YUVJ422P: *full = true; return AV_PIX_FMT_YUV422P;
    case AV_PIX_FMT_YUVJ444P: *full = true; return AV_PIX_FMT_YUV444P;
    case AV_PIX_FMT_YUVJ440P: *full = true; return AV_PIX_FMT_YUV440P;
    case AV_PIX_FMT_YUVJ411P: *full = true; return AV_PIX_FMT_YUV411P;
    default: return format;
    }
}

static mel_status prepare_scaler(mel_video_reader *r, const AVFrame *frame, int width, int height, mel_error *err) {
    const AVPixFmtDescriptor *form = av_pix_fmt_desc_get(frame->format);
    bool full = frame->color_range == AVCOL_RANGE_JPEG;
    // Grey without a range comes from still images, where it is full.
    if (form && form->nb_components <= 2 && frame->color_range == AVCOL_RANGE_UNSPECIFIED) full = true;
    int format = plain_format(frame->format, &full), space = frame->colorspace;
    // Not stated: by size, as players do.
    if (space == AVCOL_SPC_UNSPECIFIED || space == AVCOL_SPC_RESERVED || space == AVCOL_SPC_RGB)
        space = frame->height >= 720 || frame->width >= 1280 ? AVCOL_SPC_BT709 : AVCOL_SPC_SMPTE170M;
    int key[5] = {frame->width, frame->height, format, space, full};
    if (r->sws && memcmp(key, r->sws_key, sizeof key) == 0) return MEL_OK;
    sws_freeContext(r->sws);
    r->sws = sws_getContext(frame->width, frame->height, format, width, height, AV_PIX_FMT_RGB24,
        SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, NULL, NULL, NULL);
    if (!r->sws)
        return mel_fail(err, MEL_EUNSUPPORTED, "%s: no conversion from %s to RGB", r->path, form ? form->name : "?");
    const int *matrix = sws_getCoefficients(space);
    sws_setColorspaceDetails(r->sws, matrix, full, sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, 1 << 16, 1 << 16);
    memcpy(r->sws_key, key, sizeof key);
    return MEL_OK;
}

static mel_status emit(mel_video_reader *r, const AVFrame *frame, mel_tensor **out, mel_error *err) {
    const mel_video_info *info = &r->info;
    bool turned = info->rotation % 180 != 0;
    int width = turned ? info->height : info->width, height = turned ? info->width : info->height;
    mel_status status = prepare_scaler(r, frame, width, height, err);
    if (status != MEL_OK) return status;
    if (!r->scaled) r->scaled = media_new_frame(AV_PIX_FMT_RGB24, width, height);
    if (!r->scaled) return mel_fail(err, MEL_ENOMEM, "%s: no memory for a frame of %dx%d", r->path, width, height);
    mel_tensor *result = NULL;
    status = mel_tensor_create(MEL_U8, 3, (int64_t[]){info->height, info->width, 3}, &result, err);
    if (status != MEL_OK) return status;
    sws_scale(r->sws, (const uint8_t *const *)frame->data, frame->linesize, 0, frame->height, r->scaled->data,
        r->scaled->linesize);
    media_copy_turned(
        r->scaled->data[0], r->scaled->linesize[0], width, height, info->rotation, mel_tensor_data(result));
    *out = result;
    return MEL_OK;
}

// ---- frames in time ---------------------------------------------------------------------------------

// The number of the frame, at the target rate, that a timestamp is nearest to.
static int64_t slot_of(const mel_video_reader *r, int64_t pts) {
    return av_rescale_q_rnd(
        pts - r->origin, r->time_base, av_inv_q(r->target), AV_ROUND_NEAR_INF | AV_ROUND_PASS_MINMAX);
}

static int64_t end_of_hold(const mel_video_reader *r) {
    return r->hold->pts + (r->hold->pkt_duration > 0 ? r->hold->pkt_duration : r->step);
}

// At the target rate: slot k shows the newest frame whose slot is k or before. The last slot ends where the stream
// does.
static mel_status next_converted(mel_video_reader *r, mel_tensor **out, double *time_s, mel_error *err) {
    for (;;) {
        if (!r->has_ahead && !r->ended) {
            mel_status status = decode_ahead(r, err);
            if (status != MEL_OK) return status;
        }
        if (!r->has_ahead || (r->has_hold && slot_of(r, r->ahead->pts) > r->slot)) break;
        move_ahead_to_hold(r);
    }
    bool past = r->has_hold && !r->has_ahead && r->slot >= FFMAX(1, slot_of(r, end_of_hold(r)));
    if (!r->has_hold || past) {
        *out = NULL;
        return MEL_OK;
    }
    mel_status status = emit(r, r->hold, out, err);
    if (status != MEL_OK) return status;
    if (time_s) *time_s = (double)r->slot * r->target.den / r->target.num;
    r->slot++;
    return MEL_OK;
}

mel_status mel_video_reader_next(mel_video_reader *r, mel_tensor **out, double *time_s, mel_error *err) {
    if (!r || !out) return mel_fail(err, MEL_EINVAL, "video_reader: no reader");
    mel_status status = mel_check_cancel(err);
    if (status != MEL_OK) return status;
    if (!r->codec && !r->webp) return mel_fail(err, MEL_EINVAL, "%s: a seek has failed before", r->path);
    if (r->target.num) return next_converted(r, out, time_s, err);
    if (!r->has_hold) {
        if (!r->has_ahead) status = decode_ahead(r, err);
        if (status != MEL_OK) return status;
        if (r->has_ahead) move_ahead_to_hold(r);
    }
    if (!r->has_hold) {
        *out = NULL;
        return MEL_OK;
    }
    status = emit(r, r->hold, out, err);
    if (status != MEL_OK) return status;
    if (time_s) *time_s = seconds_at(r, r->hold->pts);
    r->has_hold = false;
    return MEL_OK;
}

// ---- seeking --------------------------------------------------------------------------------------------

// Puts the demuxer at a keyframe at or before pts, or at the start of the file; *at_start tells which.
static mel_status place(mel_video_reader *r, int64_t pts, bool *at_start, mel_error *err) {
    media_log_begin();
    if (r->webp || pts <= r->origin || avformat_seek_file(r->format, r->stream, INT64_MIN, pts, pts, 0) < 0) {
        close_file(r);
        *at_start = true;
        return open_file(r, err);
    }
    avcodec_flush_buffers(r->codec);
    forget_frames(r);
    return MEL_OK;
}

mel_status mel_video_reader_seek(mel_video_reader *r, double time_s, mel_error *err) {
    if (!r) return mel_fail(err, MEL_EINVAL, "video_reader: no reader");
    if (!(time_s >= 0 && time_s < 1e9)) return mel_fail(err, MEL_EINVAL, "%s: cannot seek to %g s", r->path, time_s);
    double tick = av_q2d(r->time_base), fps = r->target.num ? av_q2d(r->target) : 0;
    int64_t slot = fps > 0 ? (int64_t)floor(time_s * fps + 1e-6) : 0;
    // Timestamps are rounded to ticks: one tick of grace, but no large part of a frame.
    double ticks = fps > 0 ? ((double)slot + 0.5) / fps / tick - 0.5 : time_s / tick + fmin(1, 0.25 * (double)r->step);
    int64_t limit = r->origin + (int64_t)floor(ticks + 1e-6), back = 0;
    int64_t second = FFMAX(1, (int64_t)(1 / tick));
    for (bool at_start = false;; back = FFMAX(back * 4, second)) {
        mel_status status = place(r, limit - back, &at_start, err);
        if (status == MEL_OK) status = decode_ahead(r, err);
        if (status != MEL_OK) return status;
        if (at_start || (r->has_ahead && r->ahead->pts <= limit)) break;
    }
    while (r->has_ahead && r->ahead->pts <= limit) {
        move_ahead_to_hold(r);
        mel_status status = decode_ahead(r, err);
        if (status != MEL_OK) return status;
    }
    r->slot = slot;
    // Past the last frame's time there is nothing on screen.
    if (r->target.num == 0 && r->has_hold && !r->has_ahead && end_of_hold(r) <= limit) r->has_hold = false;
    return MEL_OK;
}
