// Sound beside finished pictures: packets of the pictures are copied, those of the sound copied or made.
#include "media_internal.h"

#include <libavutil/channel_layout.h>
#include <math.h>
#include <melies/audio.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

// ---- what a format takes ------------------------------------------------------------------------

typedef struct container {
    const char *format, *extension;
    enum AVCodecID copied[5];
    const char *encoders[4]; // in the order of preference
} container;

static const container containers[] = {
    {"mp4", "mp4", {AV_CODEC_ID_AAC, AV_CODEC_ID_MP3, AV_CODEC_ID_AC3, AV_CODEC_ID_EAC3}, {"aac"}},
    {"mp4", "m4v", {AV_CODEC_ID_AAC, AV_CODEC_ID_MP3, AV_CODEC_ID_AC3, AV_CODEC_ID_EAC3}, {"aac"}},
    {"webm", "webm", {AV_CODEC_ID_OPUS, AV_CODEC_ID_VORBIS}, {"libopus", "libvorbis"}},
};

static const container *find_container(const char *path, const char *format) {
    for (size_t i = 0; i < sizeof containers / sizeof *containers; i++)
        if (format ? strcmp(format, containers[i].format) == 0
                   : strcasecmp(media_extension(path), containers[i].extension) == 0)
            return &containers[i];
    return NULL;
}

bool mel_audio_fits(const char *path, const char *format) {
    return path && find_container(path, format) != NULL;
}

// ---- files ----------------------------------------------------------------------------------------

// origin_s: of time 0, as in the reader of sound.
static mel_status open_input(
    const char *path, enum AVMediaType type, AVFormatContext **format, int *stream, double *origin_s, mel_error *err) {
    mel_status status = media_open_input(path, NULL, format, err);
    if (status != MEL_OK) return status;
    *stream = av_find_best_stream(*format, type, -1, -1, NULL, 0);
    if (*stream < 0)
        return mel_fail(err, MEL_EFORMAT, "%s: has no %s", path, type == AVMEDIA_TYPE_VIDEO ? "pictures" : "sound");
    *origin_s = media_choose_stream(*format, *stream);
    return MEL_OK;
}

// The next packet of the stream; AVERROR_EOF at the end.
static int next_packet(AVFormatContext *format, int stream, AVPacket *packet) {
    for (;;) {
        if (mel_canceled()) return AVERROR_EXIT;
        int ret = av_read_frame(format, packet);
        if (ret == AVERROR_EOF && format->pb && format->pb->error < 0) return format->pb->error;
        if (ret < 0 || packet->stream_index == stream) return ret;
        av_packet_unref(packet);
    }
}

static mel_status fail_reading(const char *path, int ret, mel_error *err) {
    return ret == AVERROR_EXIT ? mel_check_cancel(err) : media_fail_av(err, path, "damaged or cut short", ret);
}

// Seconds from time 0 to the end of the last packet.
static mel_status length_of(const char *path, enum AVMediaType type, double *length_s, mel_error *err) {
    AVFormatContext *format = NULL;
    AVPacket *packet = av_packet_alloc();
    int stream = -1;
    double origin_s = 0, end_s = 0;
    mel_status status = packet ? open_input(path, type, &format, &stream, &origin_s, err)
                               : mel_fail(err, MEL_ENOMEM, "%s: no memory to read it", path);
    int ret = 0;
    while (status == MEL_OK && (ret = next_packet(format, stream, packet)) >= 0) {
        double tick = av_q2d(format->streams[stream]->time_base);
        int64_t pts = packet->pts == AV_NOPTS_VALUE ? packet->dts : packet->pts;
        if (pts != AV_NOPTS_VALUE) {
            int64_t last = packet->duration;
            if (last <= 0 && type == AVMEDIA_TYPE_VIDEO && format->streams[stream]->avg_frame_rate.num > 0)
                last = av_rescale_q(
                    1, av_inv_q(format->streams[stream]->avg_frame_rate), format->streams[stream]->time_base);
            end_s = fmax(end_s, (double)(pts + last) * tick - origin_s);
        }
        av_packet_unref(packet);
    }
    if (status == MEL_OK && ret != AVERROR_EOF) status = fail_reading(path, ret, err);
    av_packet_free(&packet);
    avformat_close_input(&format);
    if (status == MEL_OK) *length_s = end_s;
    return status;
}

// ---- the two streams --------------------------------------------------------------------------------

typedef struct mux {
    const char *video_path, *audio_path;
    AVFormatContext *out, *video, *audio; // audio: where it is copied
    AVPacket *packet;
    int video_in, audio_in;
    double video_origin_s, audio_origin_s;
    double length_s; // of the film

    mel_audio_reader *reader; // where it is made
    AVCodecContext *encoder;
    AVFrame *frame;
    int64_t sent, total; // samples
    bool audio_done;
    bool late;      // the codec's delay is added to the sound's times
    double audio_s; // written so far
} mux;

static void mux_free(mux *m) {
    avformat_close_input(&m->video);
    avformat_close_input(&m->audio);
    mel_audio_reader_close(m->reader);
    avcodec_free_context(&m->encoder);
    av_frame_free(&m->frame);
    av_packet_free(&m->packet);
    if (m->out) {
        avio_closep(&m->out->pb);
        avformat_free_context(m->out);
    }
}

static int add_stream(mux *m, const AVFormatContext *in, int index) {
    AVStream *stream = avformat_new_stream(m->out, NULL);
    if (!stream) return AVERROR(ENOMEM);
    const AVStream *from = in->streams[index];
    int ret = avcodec_parameters_copy(stream->codecpar, from->codecpar);
    stream->codecpar->codec_tag = 0;
    stream->time_base = from->time_base;
    stream->avg_frame_rate = from->avg_frame_rate;
    stream->sample_aspect_ratio = from->sample_aspect_ratio;
    for (int i = 0; ret >= 0 && i < from->nb_side_data; i++) { // rotation
        uint8_t *data = av_stream_new_side_data(stream, from->side_data[i].type, from->side_data[i].size);
        if (!data) return AVERROR(ENOMEM);
        memcpy(data, from->side_data[i].data, from->side_data[i].size);
    }
    return ret;
}

static mel_status open_encoder(mux *m, const container *c, double from_s, mel_error *err) {
    mel_audio_info info;
    mel_status status = mel_audio_reader_open(m->audio_path, NULL, &m->reader, err);
    if (status != MEL_OK) return status;
    mel_audio_reader_info(m->reader, &info);
    mel_audio_reader_close(m->reader);
    m->reader = NULL;
    bool usual = info.source_rate == 44100 && strcmp(c->format, "mp4") == 0;
    mel_audio_read_options options = {usual ? 44100 : 48000, info.channels};
    status = mel_audio_reader_open(m->audio_path, &options, &m->reader, err);
    if (status != MEL_OK) return status;
    const AVCodec *codec = NULL;
    for (int i = 0; !codec && i < 4 && c->encoders[i]; i++)
        codec = avcodec_find_encoder_by_name(c->encoders[i]);
    if (!codec)
        return mel_fail(err, MEL_EUNSUPPORTED, "%s: this FFmpeg has no encoder for the sound of %s files",
            m->video_path, c->format);
    AVCodecContext *e = m->encoder = avcodec_alloc_context3(codec);
    m->frame = av_frame_alloc();
    if (!e || !m->frame) return mel_fail(err, MEL_ENOMEM, "%s: no memory for the encoder", m->audio_path);
    e->sample_rate = options.rate;
    e->time_base = (AVRational){1, options.rate};
    e->sample_fmt = strcmp(codec->name, "libopus") == 0 ? AV_SAMPLE_FMT_FLT : AV_SAMPLE_FMT_FLTP;
    e->bit_rate = 96000 * info.channels;
    av_channel_layout_default(&e->ch_layout, info.channels);
    if (m->out->oformat->flags & AVFMT_GLOBALHEADER) e->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    int ret = avcodec_open2(e, codec, NULL);
    AVStream *stream = ret >= 0 ? avformat_new_stream(m->out, NULL) : NULL;
    if (ret >= 0 && !stream) ret = AVERROR(ENOMEM);
    if (ret >= 0) ret = avcodec_parameters_from_context(stream->codecpar, e);
    if (ret < 0) return media_fail_av(err, m->audio_path, "its sound cannot be encoded", ret);
    stream->time_base = e->time_base;
    m->total = llround(m->length_s * options.rate);
    for (int64_t skip = llround(from_s * options.rate); skip > 0;) {
        mel_tensor *samples = NULL;
        status = mel_audio_reader_next(m->reader, FFMIN(skip, 1 << 16), &samples, err);
        if (status != MEL_OK) return status;
        if (!samples) break;
        skip -= mel_tensor_shape(samples)[0];
        mel_tensor_unref(samples);
    }
    return MEL_OK;
}

static int write_packet(mux *m, int index, AVRational from) {
    AVStream *stream = m->out->streams[index];
    // Blocks of Matroska stand at their time plus the codec's delay, which FFmpeg's demuxer takes off and its muxer
    // does not put on. (Matroska specification, CodecDelay.)
    int padding = index == 1 && m->late ? stream->codecpar->initial_padding : 0;
    if (padding > 0) {
        int64_t delay = av_rescale_q(padding, (AVRational){1, stream->codecpar->sample_rate}, from);
        m->packet->pts = FFMAX(0, m->packet->pts + delay);
        m->packet->dts = FFMAX(0, m->packet->dts + delay);
    }
    av_packet_rescale_ts(m->packet, from, stream->time_base);
    m->packet->stream_index = index;
    m->packet->pos = -1;
    int ret = av_interleaved_write_frame(m->out, m->packet);
    return ret >= 0 && m->out->pb->error < 0 ? m->out->pb->error : ret;
}

static mel_status fail_writing(const mux *m, int ret, mel_error *err) {
    return media_fail_av(err, m->video_path, "the film with sound cannot be written", ret);
}

// One packet more of the sound's file, where it is copied.
static mel_status copy_audio(mux *m, mel_error *err) {
    AVRational tick = m->audio->streams[m->audio_in]->time_base;
    int ret = next_packet(m->audio, m->audio_in, m->packet);
    if (ret < 0 && ret != AVERROR_EOF) return fail_reading(m->audio_path, ret, err);
    int64_t shift = llround(m->audio_origin_s / av_q2d(tick));
    if (ret >= 0 && m->packet->pts == AV_NOPTS_VALUE) m->packet->pts = m->packet->dts;
    if (ret == AVERROR_EOF || m->packet->pts == AV_NOPTS_VALUE ||
        (double)(m->packet->pts - shift) * av_q2d(tick) >= m->length_s) {
        m->audio_done = true;
        av_packet_unref(m->packet);
        return MEL_OK;
    }
    m->packet->pts -= shift;
    m->packet->dts = m->packet->dts == AV_NOPTS_VALUE ? m->packet->pts : m->packet->dts - shift;
    m->audio_s = (double)m->packet->pts * av_q2d(tick);
    ret = write_packet(m, 1, tick);
    return ret < 0 ? fail_writing(m, ret, err) : MEL_OK;
}

// The next n samples into m->frame; silence after the end of the file.
static mel_status fill_frame(mux *m, int n, mel_error *err) {
    AVCodecContext *e = m->encoder;
    av_frame_unref(m->frame);
    m->frame->format = e->sample_fmt;
    m->frame->nb_samples = n;
    m->frame->sample_rate = e->sample_rate;
    m->frame->pts = m->sent;
    int channels = e->ch_layout.nb_channels, ret = av_channel_layout_copy(&m->frame->ch_layout, &e->ch_layout);
    if (ret >= 0) ret = av_frame_get_buffer(m->frame, 0);
    if (ret < 0) return mel_fail(err, MEL_ENOMEM, "%s: no memory for its sound", m->audio_path);
    mel_tensor *samples = NULL;
    mel_status status = mel_audio_reader_next(m->reader, n, &samples, err);
    if (status != MEL_OK) return status;
    int have = samples ? (int)mel_tensor_shape(samples)[0] : 0;
    const float *in = samples ? mel_tensor_data(samples) : NULL;
    bool planar = e->sample_fmt == AV_SAMPLE_FMT_FLTP;
    for (int c = 0; c < channels; c++) {
        float *out = (float *)(void *)m->frame->data[planar ? c : 0] + (planar ? 0 : c);
        for (int i = 0; i < n; i++)
            out[planar ? i : i * channels] = i < have ? in[i * channels + c] : 0;
    }
    mel_tensor_unref(samples);
    return MEL_OK;
}

static mel_status encode_audio(mux *m, mel_error *err) {
    AVCodecContext *e = m->encoder;
    int size = e->frame_size > 0 ? e->frame_size : 1024;
    int n = (int)FFMIN(size, m->total - m->sent), ret;
    if (n > 0) {
        mel_status status = fill_frame(m, n, err);
        if (status != MEL_OK) return status;
        media_log_begin();
        m->sent += n;
        ret = avcodec_send_frame(e, m->frame);
    } else {
        ret = avcodec_send_frame(e, NULL);
        m->audio_done = true;
    }
    while (ret >= 0) {
        ret = avcodec_receive_packet(e, m->packet);
        if (ret >= 0) ret = write_packet(m, 1, e->time_base);
    }
    m->audio_s = (double)m->sent / e->sample_rate;
    return ret == AVERROR(EAGAIN) || ret == AVERROR_EOF ? MEL_OK : fail_writing(m, ret, err);
}

static mel_status copy_all(mux *m, mel_error *err) {
    AVRational tick = m->video->streams[m->video_in]->time_base;
    int64_t shift = llround(m->video_origin_s / av_q2d(tick));
    for (;;) {
        int ret = next_packet(m->video, m->video_in, m->packet);
        if (ret < 0 && ret != AVERROR_EOF) return fail_reading(m->video_path, ret, err);
        double at_s = m->length_s;
        if (ret >= 0) {
            if (m->packet->pts != AV_NOPTS_VALUE) m->packet->pts -= shift;
            if (m->packet->dts != AV_NOPTS_VALUE) m->packet->dts -= shift;
            at_s = m->packet->dts == AV_NOPTS_VALUE ? 0 : (double)m->packet->dts * av_q2d(tick);
            int wrote = write_packet(m, 0, tick);
            if (wrote < 0) return fail_writing(m, wrote, err);
        }
        while (!m->audio_done && (ret < 0 || m->audio_s <= at_s)) {
            mel_status status = m->encoder ? encode_audio(m, err) : copy_audio(m, err);
            if (status != MEL_OK) return status;
        }
        if (ret < 0) return MEL_OK;
    }
}

// The tags of the film; those that the muxer writes by itself are left out.
static void copy_tags(mux *m) {
    static const char *const own[] = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"};
    const AVDictionaryEntry *tag = NULL;
    while ((tag = av_dict_get(m->video->metadata, "", tag, AV_DICT_IGNORE_SUFFIX))) {
        bool skip = false;
        for (size_t i = 0; i < sizeof own / sizeof *own; i++)
            skip = skip || strcasecmp(tag->key, own[i]) == 0;
        if (!skip) av_dict_set(&m->out->metadata, tag->key, tag->value, 0);
    }
}

static mel_status write_file(mux *m, const container *c, const char *file, mel_error *err) {
    char url[PATH_MAX + 8];
    snprintf(url, sizeof url, "file:%s", file);
    AVDictionary *dict = NULL;
    if (strcmp(c->format, "mp4") == 0) av_dict_set(&dict, "movflags", "+faststart+use_metadata_tags", 0);
    av_freep(&m->out->url);
    m->out->url = av_strdup(url);
    int ret = m->out->url ? avio_open2(&m->out->pb, url, AVIO_FLAG_WRITE, NULL, NULL) : AVERROR(ENOMEM);
    m->late = strcmp(c->format, "webm") == 0;
    if (m->late) m->out->avoid_negative_ts = AVFMT_AVOID_NEG_TS_DISABLED;
    if (ret >= 0) ret = avformat_write_header(m->out, &dict);
    av_dict_free(&dict);
    if (ret < 0) return fail_writing(m, ret, err);
    mel_status status = copy_all(m, err);
    ret = av_write_trailer(m->out); // also where it failed: it frees what the muxer holds
    if (ret >= 0) {
        avio_flush(m->out->pb);
        ret = m->out->pb->error;
    }
    int closed = avio_closep(&m->out->pb);
    if (ret >= 0) ret = closed;
    return status == MEL_OK && ret < 0 ? fail_writing(m, ret, err) : status;
}

static bool is_copied(const container *c, const AVCodecParameters *par) {
    for (int i = 0; i < 5 && c->copied[i]; i++)
        if (c->copied[i] == par->codec_id) return true;
    return false;
}

static mel_status mux_run(mux *m, const container *c, double from_s, const char *file, mel_error *err) {
    mel_status status = length_of(m->video_path, AVMEDIA_TYPE_VIDEO, &m->length_s, err);
    if (status == MEL_OK)
        status = open_input(m->video_path, AVMEDIA_TYPE_VIDEO, &m->video, &m->video_in, &m->video_origin_s, err);
    if (status == MEL_OK)
        status = open_input(m->audio_path, AVMEDIA_TYPE_AUDIO, &m->audio, &m->audio_in, &m->audio_origin_s, err);
    if (status != MEL_OK) return status;
    m->packet = av_packet_alloc();
    int ret = m->packet ? avformat_alloc_output_context2(&m->out, NULL, c->format, NULL) : AVERROR(ENOMEM);
    if (ret >= 0) ret = add_stream(m, m->video, m->video_in);
    if (ret < 0) return fail_writing(m, ret, err);
    copy_tags(m);
    double sound_s = 0;
    bool copied = from_s == 0 && is_copied(c, m->audio->streams[m->audio_in]->codecpar);
    if (copied) status = length_of(m->audio_path, AVMEDIA_TYPE_AUDIO, &sound_s, err);
    if (status != MEL_OK) return status;
    if (copied && sound_s + 0.03 >= m->length_s) {
        ret = add_stream(m, m->audio, m->audio_in);
        if (ret < 0) return fail_writing(m, ret, err);
    } else {
        avformat_close_input(&m->audio);
        status = open_encoder(m, c, from_s, err);
        if (status != MEL_OK) return status;
    }
    return write_file(m, c, file, err);
}

mel_status media_mux(const char *video_path, const char *audio_path, double from_s, const char *format,
    const char *file, mel_error *err) {
    media_log_begin();
    const container *c = find_container(file, format);
    if (!c) return mel_fail(err, MEL_EINVAL, "%s: holds no sound; mp4 and webm do", file);
    if (!(from_s >= 0 && from_s < 1e9)) return mel_fail(err, MEL_EINVAL, "%s: sound from %g s on", audio_path, from_s);
    mux m = {.video_path = video_path, .audio_path = audio_path};
    mel_status status = mux_run(&m, c, from_s, file, err);
    mux_free(&m);
    return status;
}

mel_status mel_audio_add(
    const char *video_path, const char *audio_path, double from_s, const char *out_path, mel_error *err) {
    if (!video_path || !audio_path || !out_path) return mel_fail(err, MEL_EINVAL, "audio_add: a path is missing");
    if (!mel_audio_fits(out_path, NULL))
        return mel_fail(err, MEL_EINVAL, "%s: holds no sound; .mp4, .m4v and .webm do", out_path);
    if (strlen(video_path) >= PATH_MAX || strlen(audio_path) >= PATH_MAX || strlen(out_path) >= PATH_MAX)
        return mel_fail(err, MEL_EINVAL, "%.60s...: the path is too long", video_path);
    char temp[PATH_MAX];
    mel_status status = media_check_target(out_path, err);
    if (status == MEL_OK) status = media_temp_name(out_path, media_next_serial(), temp, err);
    if (status != MEL_OK) return status;
    status = media_mux(video_path, audio_path, from_s, find_container(out_path, NULL)->format, temp, err);
    if (status == MEL_OK) status = media_publish(temp, out_path, true, err);
    if (status != MEL_OK) unlink(temp);
    return status;
}
