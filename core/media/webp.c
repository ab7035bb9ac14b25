// Reading animated WebP, which FFmpeg 5.1 does not: this file walks the container and puts frames together on their
// canvas, FFmpeg's decoder for still WebP decodes each. Container: developers.google.com/speed/webp/docs/riff_container
#include "media_internal.h"

#include <libavutil/intreadwrite.h>
#include <libswscale/swscale.h>
#include <stdio.h>
#include <string.h>

enum {
    ANIMATED = 0x02, // flags of the VP8X chunk
    ALPHA = 0x10,
    DISPOSE = 1, // flags of a frame: clear its area after it; put it over the canvas without blending
    OVERWRITE = 2,
    FRAME_HEAD = 16,
    MAX_FRAME = 256 << 20 // bytes of one compressed frame
};

struct media_webp {
    FILE *file;
    AVCodecContext *codec;
    AVPacket *packet;
    AVFrame *decoded, *canvas; // canvas: RGB24
    int width, height;
    int64_t frames, duration_ms, time_ms;
    int clear_x, clear_y, clear_width, clear_height; // what the last frame leaves to be cleared
};

void media_webp_close(media_webp *w) {
    if (!w) return;
    if (w->file) fclose(w->file);
    avcodec_free_context(&w->codec);
    av_packet_free(&w->packet);
    av_frame_free(&w->decoded);
    av_frame_free(&w->canvas);
    mel_free(w);
}

bool media_webp_is_animated(const char *path) {
    uint8_t head[30];
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    bool yes = fread(head, 1, sizeof head, file) == sizeof head && memcmp(head, "RIFF", 4) == 0 &&
               memcmp(head + 8, "WEBPVP8X", 8) == 0 && head[20] & ANIMATED;
    fclose(file);
    return yes;
}

// Goes to the next frame: its header into head, the size of its chunk. False: there is none.
static bool next_frame(FILE *file, uint8_t head[FRAME_HEAD], uint32_t *size) {
    uint8_t chunk[8];
    while (fread(chunk, 1, 8, file) == 8) {
        *size = AV_RL32(chunk + 4);
        if (memcmp(chunk, "ANMF", 4) == 0 && *size >= FRAME_HEAD) return fread(head, 1, FRAME_HEAD, file) == FRAME_HEAD;
        if (fseeko(file, (off_t)*size + *size % 2, SEEK_CUR) != 0) return false;
    }
    return false;
}

static bool rewind_frames(media_webp *w) {
    return fseeko(w->file, 30, SEEK_SET) == 0; // after the VP8X chunk
}

static int open_parts(media_webp *w) {
    const AVCodec *decoder = avcodec_find_decoder(AV_CODEC_ID_WEBP);
    if (!decoder) return AVERROR_DECODER_NOT_FOUND;
    w->packet = av_packet_alloc();
    w->decoded = av_frame_alloc();
    w->canvas = media_new_frame(AV_PIX_FMT_RGB24, w->width, w->height);
    w->codec = avcodec_alloc_context3(decoder);
    if (!w->packet || !w->decoded || !w->canvas || !w->codec) return AVERROR(ENOMEM);
    memset(w->canvas->data[0], 0, (size_t)w->canvas->linesize[0] * (size_t)w->height);
    w->codec->thread_count = 1; // a frame for each packet, at once
    w->codec->max_pixels = (int64_t)MEDIA_MAX_SIDE * MEDIA_MAX_SIDE;
    return avcodec_open2(w->codec, decoder, NULL);
}

mel_status media_webp_open(const char *path, media_webp **out, mel_error *err) {
    uint8_t head[30];
    media_log_begin();
    media_webp *w = mel_alloc_zero(sizeof *w, err);
    if (!w) return MEL_ENOMEM;
    w->file = fopen(path, "rb");
    mel_status status = MEL_OK;
    if (!w->file || fread(head, 1, sizeof head, w->file) != sizeof head)
        status = mel_fail(err, MEL_EIO, "%s: cannot be read", path);
    else {
        w->width = (int)AV_RL24(head + 24) + 1;
        w->height = (int)AV_RL24(head + 27) + 1;
        if (w->width > MEDIA_MAX_SIDE || w->height > MEDIA_MAX_SIDE)
            status = mel_fail(err, MEL_EUNSUPPORTED, "%s: is %dx%d; at most %d a side is read", path, w->width,
                w->height, MEDIA_MAX_SIDE);
    }
    if (status == MEL_OK) {
        int ret = open_parts(w);
        if (ret < 0) status = media_fail_av(err, path, "cannot be decoded", ret);
    }
    uint32_t size;
    while (status == MEL_OK && next_frame(w->file, head, &size)) {
        w->frames++;
        w->duration_ms += AV_RL24(head + 12);
        if (fseeko(w->file, (off_t)size - FRAME_HEAD + size % 2, SEEK_CUR) != 0) break;
    }
    if (status == MEL_OK && (w->frames == 0 || !rewind_frames(w)))
        status = mel_fail(err, MEL_EFORMAT, "%s: holds no frame", path);
    if (status != MEL_OK) {
        media_webp_close(w);
        return status;
    }
    *out = w;
    return MEL_OK;
}

void media_webp_facts(const media_webp *w, int *width, int *height, int64_t *frames, int64_t *duration_ms) {
    *width = w->width;
    *height = w->height;
    *frames = w->frames;
    *duration_ms = w->duration_ms;
}

// Reads size bytes of chunks and wraps them as a still WebP file of their own.
static int read_packet(media_webp *w, uint32_t size, const uint8_t *frame_head) {
    enum {
        HEAD = 12 + 18
    };
    if (size > MAX_FRAME) return AVERROR_INVALIDDATA;
    int ret = av_new_packet(w->packet, (int)size + HEAD);
    if (ret < 0) return ret;
    uint8_t *p = w->packet->data;
    memset(p, 0, HEAD);
    memcpy(p, "RIFF", 4);
    AV_WL32(p + 4, size + HEAD - 8);
    memcpy(p + 8, "WEBPVP8X", 8);
    AV_WL32(p + 16, 10);
    memcpy(p + 24, frame_head + 6, 6); // its width and height
    if (fread(p + HEAD, 1, size, w->file) != size) return AVERROR_INVALIDDATA;
    if (size >= 4 && memcmp(p + HEAD, "ALPH", 4) == 0) p[20] = ALPHA;
    if (size % 2) (void)getc(w->file);
    return 0;
}

// The decoded frame over the canvas at (x, y), by its alpha unless overwrite.
static int compose(media_webp *w, int x, int y, bool overwrite) {
    const AVFrame *d = w->decoded;
    AVFrame *patch = media_new_frame(AV_PIX_FMT_RGBA, d->width, d->height);
    struct SwsContext *sws = sws_getContext(d->width, d->height, d->format, d->width, d->height, AV_PIX_FMT_RGBA,
        SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, NULL, NULL, NULL);
    int ret = patch && sws ? av_frame_make_writable(w->canvas) : AVERROR(ENOMEM);
    if (ret >= 0) {
        const int *matrix = sws_getCoefficients(SWS_CS_ITU601);
        sws_setColorspaceDetails(sws, matrix, 0, matrix, 1, 0, 1 << 16, 1 << 16);
        sws_scale(sws, (const uint8_t *const *)d->data, d->linesize, 0, d->height, patch->data, patch->linesize);
        for (int row = 0; row < d->height && y + row < w->height; row++) {
            const uint8_t *from = patch->data[0] + (ptrdiff_t)row * patch->linesize[0];
            uint8_t *to = w->canvas->data[0] + (ptrdiff_t)(y + row) * w->canvas->linesize[0] + (ptrdiff_t)x * 3;
            for (int column = 0; column < d->width && x + column < w->width; column++, from += 4, to += 3) {
                int alpha = overwrite ? 255 : from[3];
                for (int c = 0; c < 3; c++)
                    to[c] = (uint8_t)((from[c] * alpha + to[c] * (255 - alpha) + 127) / 255);
            }
        }
    }
    sws_freeContext(sws);
    av_frame_free(&patch);
    return ret;
}

static int clear_last(media_webp *w) {
    if (w->clear_width == 0) return 0;
    int ret = av_frame_make_writable(w->canvas);
    for (int y = w->clear_y; ret >= 0 && y < w->clear_y + w->clear_height && y < w->height; y++) {
        int width = FFMIN(w->clear_width, w->width - w->clear_x);
        if (width > 0)
            memset(w->canvas->data[0] + (ptrdiff_t)y * w->canvas->linesize[0] + (ptrdiff_t)w->clear_x * 3, 0,
                (size_t)width * 3);
    }
    w->clear_width = 0;
    return ret;
}

int media_webp_next(media_webp *w, AVFrame *out) {
    uint8_t head[FRAME_HEAD];
    uint32_t size;
    if (!next_frame(w->file, head, &size)) return AVERROR_EOF;
    int x = (int)AV_RL24(head) * 2, y = (int)AV_RL24(head + 3) * 2;
    int ret = clear_last(w);
    if (ret >= 0) ret = read_packet(w, size - FRAME_HEAD, head);
    if (ret >= 0) ret = avcodec_send_packet(w->codec, w->packet);
    av_packet_unref(w->packet);
    if (ret >= 0) ret = avcodec_receive_frame(w->codec, w->decoded);
    if (ret < 0) return ret == AVERROR(EAGAIN) ? AVERROR_INVALIDDATA : ret;
    ret = compose(w, x, y, head[15] & OVERWRITE);
    if (head[15] & DISPOSE) {
        w->clear_x = x;
        w->clear_y = y;
        w->clear_width = w->decoded->width;
        w->clear_height = w->decoded->height;
    }
    av_frame_unref(w->decoded);
    if (ret >= 0) ret = av_frame_ref(out, w->canvas);
    if (ret < 0) return ret;
    out->best_effort_timestamp = w->time_ms;
    out->pkt_duration = AV_RL24(head + 12);
    w->time_ms += out->pkt_duration;
    return 0;
}
