// The reader of sound: demux, decode, resample to interleaved floats.
#include "media_internal.h"

#include <libavutil/channel_layout.h>
#include <libavutil/opt.h>
#include <libswresample/swresample.h>
#include <math.h>
#include <melies/audio.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_BAD = 16,       // packets that do not decode
    MAX_LEAD_S = 3600,  // silence before the sound of a film
    MAX_COUNT = 1 << 24 // samples in one call
};

struct mel_audio_reader {
    char path[PATH_MAX];
    mel_audio_info info;
    int mixed; // channels that the resampler gives: the mean of two is made here

    AVFormatContext *format;
    AVCodecContext *codec;
    int stream;
    double origin_s; // of time 0, in the stream's own time
    double exact_s;  // duration that the file states exactly, 0 where it does not

    AVPacket *packet;
    AVFrame *frame;
    SwrContext *swr;
    AVChannelLayout from; // of swr
    int from_format, from_rate;

    float *buffer; // samples * mixed that wait, from `at` on
    int64_t at, have, room;
    int64_t drop, silence; // samples before the first one
    int64_t given;         // samples, at the reader's rate
    int bad;
    bool begun, flushed, ended;
    bool bad_last; // the newest packet did not decode
};

static mel_status open_codec(mel_audio_reader *r, const AVCodec *decoder, mel_error *err) {
    AVStream *stream = r->format->streams[r->stream];
    r->codec = avcodec_alloc_context3(decoder);
    if (!r->codec) return mel_fail(err, MEL_ENOMEM, "%s: no memory for the decoder", r->path);
    int ret = avcodec_parameters_to_context(r->codec, stream->codecpar);
    r->codec->pkt_timebase = stream->time_base;
    r->codec->thread_count = 1;
    if (ret >= 0) ret = avcodec_open2(r->codec, decoder, NULL);
    return ret < 0 ? media_fail_av(err, r->path, "cannot be decoded", ret) : MEL_OK;
}

// Formats whose headers count samples; others estimate.
static bool states_duration(const AVFormatContext *format) {
    static const char *const names[] = {"wav", "flac", "mov,", "aiff", "w64", "matroska"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strncmp(format->iformat->name, names[i], strlen(names[i])) == 0) return true;
    return false;
}

static mel_status open_file(mel_audio_reader *r, mel_error *err) {
    media_log_begin();
    mel_status status = media_open_input(r->path, NULL, &r->format, err);
    if (status != MEL_OK) return status;
    const AVCodec *decoder = NULL;
    r->stream = av_find_best_stream(r->format, AVMEDIA_TYPE_AUDIO, -1, -1, &decoder, 0);
    if (r->stream == AVERROR_DECODER_NOT_FOUND)
        return mel_fail(err, MEL_EUNSUPPORTED, "%s: no decoder for its sound", r->path);
    if (r->stream < 0) return mel_fail(err, MEL_EFORMAT, "%s: has no sound", r->path);
    r->origin_s = media_choose_stream(r->format, r->stream);
    return open_codec(r, decoder, err);
}

static mel_status fill_info(mel_audio_reader *r, const mel_audio_read_options *o, mel_error *err) {
    mel_audio_info *info = &r->info;
    const AVStream *stream = r->format->streams[r->stream];
    info->source_rate = r->codec->sample_rate;
    info->source_channels = r->codec->ch_layout.nb_channels;
    if (info->source_rate < 1 || info->source_channels < 1)
        return mel_fail(err, MEL_EFORMAT, "%s: its sound has %d channels at %d Hz", r->path, info->source_channels,
            info->source_rate);
    info->rate = o->rate ? o->rate : info->source_rate;
    info->channels = o->channels ? o->channels : info->source_channels > 1 ? 2 : 1;
    r->mixed = info->source_channels > 1 ? 2 : 1;
    info->duration_s = -1;
    if (stream->duration > 0)
        info->duration_s = (double)stream->duration * av_q2d(stream->time_base);
    else if (r->format->duration > 0)
        info->duration_s = (double)r->format->duration / AV_TIME_BASE;
    if (states_duration(r->format) && stream->duration > 0) r->exact_s = info->duration_s;
    snprintf(info->codec, sizeof info->codec, "%s", avcodec_get_name(r->codec->codec_id));
    snprintf(info->container, sizeof info->container, "%s", r->format->iformat->name);
    return MEL_OK;
}

mel_status mel_audio_reader_open(
    const char *path, const mel_audio_read_options *options, mel_audio_reader **out, mel_error *err) {
    static const mel_audio_read_options defaults = {0, 0};
    if (!path || !out) return mel_fail(err, MEL_EINVAL, "audio_reader: no path");
    if (strlen(path) >= PATH_MAX) return mel_fail(err, MEL_EINVAL, "%.60s...: the path is too long", path);
    if (!options) options = &defaults;
    if (options->rate && (options->rate < 1000 || options->rate > 384000))
        return mel_fail(err, MEL_EINVAL, "%s: a rate of %d; it goes from 1000 to 384000", path, options->rate);
    if (options->channels < 0 || options->channels > 2)
        return mel_fail(err, MEL_EINVAL, "%s: %d channels; there are 1 or 2", path, options->channels);
    mel_audio_reader *r = mel_alloc_zero(sizeof *r, err);
    if (!r) return MEL_ENOMEM;
    memcpy(r->path, path, strlen(path) + 1);
    r->packet = av_packet_alloc();
    r->frame = av_frame_alloc();
    mel_status status = MEL_OK;
    if (!r->packet || !r->frame) status = mel_fail(err, MEL_ENOMEM, "%s: no memory to read it", path);
    if (status == MEL_OK) status = open_file(r, err);
    if (status == MEL_OK) status = fill_info(r, options, err);
    if (status != MEL_OK) {
        mel_audio_reader_close(r);
        return status;
    }
    *out = r;
    return MEL_OK;
}

void mel_audio_reader_close(mel_audio_reader *r) {
    if (!r) return;
    swr_free(&r->swr);
    av_channel_layout_uninit(&r->from);
    avcodec_free_context(&r->codec);
    avformat_close_input(&r->format);
    av_packet_free(&r->packet);
    av_frame_free(&r->frame);
    mel_free(r->buffer);
    mel_free(r);
}

void mel_audio_reader_info(const mel_audio_reader *r, mel_audio_info *out) {
    *out = r->info;
}

// ---- samples that wait ----------------------------------------------------------------------------

static mel_status make_room(mel_audio_reader *r, int64_t count, mel_error *err) {
    if (r->at + r->have + count <= r->room) return MEL_OK;
    if (r->have + count <= r->room) {
        memmove(r->buffer, r->buffer + r->at * r->mixed, (size_t)(r->have * r->mixed) * sizeof(float));
        r->at = 0;
        return MEL_OK;
    }
    int64_t room = FFMAX(2 * r->room, r->have + count);
    float *larger = mel_alloc((size_t)(room * r->mixed) * sizeof(float), err);
    if (!larger) return MEL_ENOMEM;
    if (r->have) memcpy(larger, r->buffer + r->at * r->mixed, (size_t)(r->have * r->mixed) * sizeof(float));
    mel_free(r->buffer);
    r->buffer = larger;
    r->room = room;
    r->at = 0;
    return MEL_OK;
}

static void drop_front(mel_audio_reader *r) {
    int64_t n = FFMIN(r->drop, r->have);
    r->drop -= n;
    r->at += n;
    r->have -= n;
}

// frame = NULL: what the resampler still holds.
static mel_status convert(mel_audio_reader *r, const AVFrame *frame, mel_error *err) {
    int limit = r->swr ? swr_get_out_samples(r->swr, frame ? frame->nb_samples : 0) : 0;
    if (limit <= 0) return MEL_OK;
    mel_status status = make_room(r, limit, err);
    if (status != MEL_OK) return status;
    uint8_t *out = (uint8_t *)(r->buffer + (r->at + r->have) * r->mixed);
    int n = swr_convert(
        r->swr, &out, limit, frame ? (const uint8_t **)frame->extended_data : NULL, frame ? frame->nb_samples : 0);
    if (n < 0) return media_fail_av(err, r->path, "cannot be resampled", n);
    r->have += n;
    drop_front(r);
    return MEL_OK;
}

// The resampler for frames like this one; what one for others holds comes out first.
static mel_status prepare(mel_audio_reader *r, const AVFrame *frame, mel_error *err) {
    if (r->swr && frame->format == r->from_format && frame->sample_rate == r->from_rate &&
        av_channel_layout_compare(&frame->ch_layout, &r->from) == 0)
        return MEL_OK;
    mel_status status = convert(r, NULL, err);
    if (status != MEL_OK) return status;
    swr_free(&r->swr);
    av_channel_layout_uninit(&r->from);
    AVChannelLayout to, given = {0};
    av_channel_layout_default(&to, r->mixed);
    if (frame->ch_layout.order == AV_CHANNEL_ORDER_UNSPEC)
        av_channel_layout_default(&given, frame->ch_layout.nb_channels);
    else
        av_channel_layout_copy(&given, &frame->ch_layout);
    int ret = av_channel_layout_copy(&r->from, &frame->ch_layout);
    if (ret >= 0)
        ret = swr_alloc_set_opts2(
            &r->swr, &to, AV_SAMPLE_FMT_FLT, r->info.rate, &given, frame->format, frame->sample_rate, 0, NULL);
    if (ret >= 0) ret = swr_init(r->swr);
    av_channel_layout_uninit(&given);
    if (ret < 0) return media_fail_av(err, r->path, "cannot be resampled", ret);
    r->from_format = frame->format;
    r->from_rate = frame->sample_rate;
    return MEL_OK;
}

// ---- decoding -----------------------------------------------------------------------------------

static mel_status fail_damaged(const mel_audio_reader *r, int ret, mel_error *err) {
    char what[80];
    snprintf(
        what, sizeof what, "damaged or cut short after %.3f s", (double)(r->given + r->have) / (double)r->info.rate);
    return media_fail_av(err, r->path, what, ret);
}

// Sound that begins after the pictures, or before them.
static void place_first(mel_audio_reader *r, const AVFrame *frame) {
    r->begun = true;
    if (frame->best_effort_timestamp == AV_NOPTS_VALUE) return;
    double tick = av_q2d(r->format->streams[r->stream]->time_base);
    double at = (double)frame->best_effort_timestamp * tick - r->origin_s;
    // A sound file's first frame is its beginning, whatever its time says.
    if (!isfinite(at) || fabs(at) > MAX_LEAD_S || fabs(at) < 1e-4) return;
    bool alone = r->origin_s == media_start_of(r->format->streams[r->stream]);
    if (alone) return;
    int64_t n = llround(at * r->info.rate);
    if (n > 0)
        r->silence = n;
    else
        r->drop = -n;
}

static mel_status feed(mel_audio_reader *r, mel_error *err) {
    for (;;) {
        mel_status status = mel_check_cancel(err);
        if (status != MEL_OK) return status;
        int ret = av_read_frame(r->format, r->packet);
        if (ret < 0) {
            if (ret != AVERROR_EOF) return fail_damaged(r, ret, err);
            if (r->format->pb && r->format->pb->error < 0) return fail_damaged(r, r->format->pb->error, err);
            ret = avcodec_send_packet(r->codec, NULL);
            return ret < 0 && ret != AVERROR_EOF ? fail_damaged(r, ret, err) : MEL_OK;
        }
        if (r->packet->stream_index != r->stream) {
            av_packet_unref(r->packet);
            continue;
        }
        ret = r->packet->flags & AV_PKT_FLAG_CORRUPT ? AVERROR_INVALIDDATA : avcodec_send_packet(r->codec, r->packet);
        av_packet_unref(r->packet);
        r->bad_last = ret < 0;
        if (ret < 0 && ++r->bad > MAX_BAD) return fail_damaged(r, ret, err);
        if (ret >= 0) return MEL_OK;
    }
}

static mel_status check_end(mel_audio_reader *r, mel_error *err) {
    double seconds = (double)(r->given + r->have) / r->info.rate;
    if (r->bad_last || (r->exact_s > 0 && seconds + 0.25 < r->exact_s) || !r->begun)
        return fail_damaged(r, AVERROR_INVALIDDATA, err);
    return MEL_OK;
}

// Decodes one frame more; sets ended.
static mel_status decode(mel_audio_reader *r, mel_error *err) {
    media_log_begin();
    int ret = avcodec_receive_frame(r->codec, r->frame);
    if (ret == AVERROR(EAGAIN)) return feed(r, err);
    if (ret == AVERROR_EOF) {
        mel_status status = convert(r, NULL, err);
        r->ended = true;
        return status == MEL_OK ? check_end(r, err) : status;
    }
    if (ret < 0) {
        r->bad_last = true;
        return ++r->bad > MAX_BAD ? fail_damaged(r, ret, err) : MEL_OK;
    }
    mel_status status = MEL_OK;
    if (r->frame->nb_samples > 0 && r->frame->sample_rate > 0 && r->frame->ch_layout.nb_channels > 0) {
        if (!r->begun) place_first(r, r->frame);
        status = prepare(r, r->frame, err);
        if (status == MEL_OK) status = convert(r, r->frame, err);
    }
    av_frame_unref(r->frame);
    return status;
}

static void take(mel_audio_reader *r, float *out, int64_t count) {
    int64_t silent = FFMIN(count, r->silence);
    int channels = r->info.channels, mixed = r->mixed;
    memset(out, 0, (size_t)(silent * channels) * sizeof(float));
    r->silence -= silent;
    out += silent * channels;
    int64_t n = count - silent;
    const float *in = r->buffer + r->at * mixed;
    for (int64_t i = 0; i < n; i++) {
        float left = in[i * mixed], right = in[i * mixed + mixed - 1];
        if (channels == 1)
            out[i] = mixed == 1 ? left : 0.5f * (left + right);
        else
            out[2 * i] = left, out[2 * i + 1] = right;
    }
    // Floating-point files may hold anything.
    for (int64_t i = 0; i < n * channels; i++)
        if (!(fabsf(out[i]) < 1e6f)) out[i] = 0;
    r->at += n;
    r->have -= n;
    r->given += count;
}

mel_status mel_audio_reader_next(mel_audio_reader *r, int64_t count, mel_tensor **out, mel_error *err) {
    if (!r || !out) return mel_fail(err, MEL_EINVAL, "audio_reader: no reader");
    if (count < 1 || count > MAX_COUNT)
        return mel_fail(
            err, MEL_EINVAL, "%s: %lld samples at once; 1 to %d are given", r->path, (long long)count, MAX_COUNT);
    mel_status status = mel_check_cancel(err);
    while (status == MEL_OK && !r->ended && (!r->begun || r->silence + r->have < count))
        status = decode(r, err);
    if (status != MEL_OK) return status;
    count = FFMIN(count, r->silence + r->have);
    if (count == 0) {
        *out = NULL;
        return MEL_OK;
    }
    mel_tensor *samples = NULL;
    status = mel_tensor_create(MEL_F32, 2, (int64_t[]){count, r->info.channels}, &samples, err);
    if (status != MEL_OK) return status;
    take(r, mel_tensor_data(samples), count);
    *out = samples;
    return MEL_OK;
}
