// Images: PNG through FFmpeg, JPEG through libjpeg-turbo; one a file, or numbered sequences of them.
#include "media_internal.h"

#include <libavutil/intreadwrite.h>
#include <libavutil/opt.h>
#include <stdio.h>
#include <string.h>
#include <turbojpeg.h>
#include <unistd.h>

bool media_is_pattern(const char *path) {
    const char *slash = strrchr(path, '/'), *percent = strchr(path, '%');
    if (!percent || (slash && percent < slash) || strchr(percent + 1, '%')) return false;
    const char *c = percent + 1;
    while (*c >= '0' && *c <= '9')
        c++;
    return *c == 'd' && c - percent <= 3 && (c == percent + 1 || percent[1] == '0');
}

typedef struct image_state {
    const media_target *target;
    AVCodecContext *codec; // PNG
    AVPacket *packet;
    tjhandle jpeg;
    unsigned char *jpeg_bytes; // libjpeg-turbo's
    AVBPrint tags;             // as the format carries them
    int64_t frames;
} image_state;

static void image_free(void *opaque) {
    image_state *s = opaque;
    avcodec_free_context(&s->codec);
    av_packet_free(&s->packet);
    if (s->jpeg) tjDestroy(s->jpeg);
    tjFree(s->jpeg_bytes);
    av_bprint_finalize(&s->tags, NULL);
    mel_free(s);
}

static mel_status open_png(image_state *s, mel_error *err) {
    const media_target *target = s->target;
    const AVCodec *which = media_find_encoder("png");
    if (!which) return mel_fail(err, MEL_EUNSUPPORTED, "%s: this FFmpeg has no encoder for png", target->path);
    s->packet = av_packet_alloc();
    s->codec = avcodec_alloc_context3(which);
    if (!s->packet || !s->codec) return mel_fail(err, MEL_ENOMEM, "%s: no memory for the encoder", target->path);
    s->codec->width = target->width;
    s->codec->height = target->height;
    s->codec->pix_fmt = AV_PIX_FMT_RGB24;
    s->codec->time_base = (AVRational){1, 25};
    s->codec->thread_count = 1; // more would delay packets by frames
    AVDictionary *dict = NULL;
    av_dict_set(&dict, "pred", "mixed", 0);
    int ret = avcodec_open2(s->codec, which, &dict);
    av_dict_free(&dict);
    return ret < 0 ? media_fail_av(err, target->path, "the encoder refuses these options", ret) : MEL_OK;
}

static mel_status image_open(const media_target *target, void **state, mel_error *err) {
    image_state *s = mel_alloc_zero(sizeof *s, err);
    if (!s) return MEL_ENOMEM;
    s->target = target;
    av_bprint_init(&s->tags, 0, AV_BPRINT_SIZE_UNLIMITED);
    media_log_begin();
    bool png = strcmp(target->options.format, "png") == 0;
    mel_status status =
        media_encode_tags(png ? MEDIA_TAGS_PNG : MEDIA_TAGS_JPEG, target->tags, target->path, &s->tags, err);
    if (status == MEL_OK && png) status = open_png(s, err);
    if (status == MEL_OK && !png && !(s->jpeg = tjInitCompress()))
        status = mel_fail(err, MEL_ENOMEM, "%s: %s", target->path, tjGetErrorStr2(NULL));
    if (status != MEL_OK) {
        image_free(s);
        return status;
    }
    *state = s;
    return MEL_OK;
}

// Writes head bytes of the image, the metadata, the rest.
static mel_status write_image(
    image_state *s, const char *path, const uint8_t *bytes, size_t size, size_t head, mel_error *err) {
    if (size < head) return mel_fail(err, MEL_EINTERNAL, "%s: the encoder gave %zu bytes", s->target->path, size);
    media_span spans[] = {{bytes, head}, {s->tags.str, s->tags.len}, {bytes + head, size - head}};
    return media_write_file(path, s->target->path, 3, spans, err);
}

static mel_status write_png(image_state *s, const char *path, const AVFrame *rgb, mel_error *err) {
    enum {
        PNG_HEAD = 33 // signature and IHDR
    };
    media_log_begin();
    int ret = avcodec_send_frame(s->codec, rgb);
    if (ret >= 0) ret = avcodec_receive_packet(s->codec, s->packet);
    if (ret < 0) return media_fail_av(err, s->target->path, "cannot be encoded", ret);
    mel_status status = write_image(s, path, s->packet->data, (size_t)s->packet->size, PNG_HEAD, err);
    av_packet_unref(s->packet);
    return status;
}

static mel_status write_jpeg(image_state *s, const char *path, const AVFrame *rgb, mel_error *err) {
    const mel_video_write_options *o = &s->target->options;
    unsigned long size = 0;
    tjFree(s->jpeg_bytes);
    s->jpeg_bytes = NULL;
    if (tjCompress2(s->jpeg, rgb->data[0], rgb->width, rgb->linesize[0], rgb->height, TJPF_RGB, &s->jpeg_bytes, &size,
            o->full_chroma ? TJSAMP_444 : TJSAMP_420, o->quality, TJFLAG_ACCURATEDCT) != 0)
        return mel_fail(err, MEL_EINTERNAL, "%s: %s", s->target->path, tjGetErrorStr2(s->jpeg));
    // After SOI and the JFIF segment, whose length follows its marker.
    size_t head = size > 6 && s->jpeg_bytes[3] == 0xe0 ? 4 + (size_t)s->jpeg_bytes[4] * 256 + s->jpeg_bytes[5] : 2;
    return write_image(s, path, s->jpeg_bytes, size, head, err);
}

static mel_status write_to(image_state *s, const char *path, const AVFrame *rgb, mel_error *err) {
    mel_status status = s->codec ? write_png(s, path, rgb, err) : write_jpeg(s, path, rgb, err);
    if (status == MEL_OK) s->frames++;
    return status;
}

static mel_status image_write(void *opaque, const AVFrame *rgb, mel_error *err) {
    image_state *s = opaque;
    if (s->frames > 0) {
        const char *path = s->target->path, *extension = media_extension(path);
        int stem = (int)(strlen(path) - strlen(extension)) - (extension[0] ? 1 : 0);
        return mel_fail(err, MEL_EINVAL, "%s: holds one image; a sequence is written as %.*s-%%04d.%s", path, stem,
            path, extension[0] ? extension : s->target->options.format);
    }
    return write_to(s, s->target->temp, rgb, err);
}

static mel_status image_finish(void *opaque, mel_error *err) {
    (void)opaque, (void)err;
    return MEL_OK;
}

const media_sink media_image_sink = {image_open, image_write, image_finish, image_free, NULL, NULL};

// ---- sequences: every frame has a temporary name until the last one is there ----------------------------

static mel_status frame_names(const image_state *s, int64_t number, char *path, char *temp, mel_error *err) {
    if (av_get_frame_filename(path, PATH_MAX, s->target->path, (int)number) < 0)
        return mel_fail(err, MEL_EINVAL, "%s: no frame number fits into it", s->target->path);
    return media_temp_name(path, s->target->serial, temp, err);
}

static mel_status sequence_write(void *opaque, const AVFrame *rgb, mel_error *err) {
    image_state *s = opaque;
    char path[PATH_MAX], temp[PATH_MAX];
    mel_status status = frame_names(s, s->frames + 1, path, temp, err);
    return status == MEL_OK ? write_to(s, temp, rgb, err) : status;
}

static mel_status sequence_publish(void *opaque, mel_error *err) {
    image_state *s = opaque;
    char path[PATH_MAX], temp[PATH_MAX];
    for (int64_t i = 1; i <= s->frames; i++) {
        mel_status status = frame_names(s, i, path, temp, err);
        if (status == MEL_OK) status = media_publish(temp, path, false, err);
        if (status != MEL_OK) return status;
    }
    return MEL_OK;
}

static void sequence_discard(void *opaque) {
    image_state *s = opaque;
    char path[PATH_MAX], temp[PATH_MAX];
    for (int64_t i = 1; i <= s->frames; i++)
        if (frame_names(s, i, path, temp, NULL) == MEL_OK) unlink(temp);
}

const media_sink media_sequence_sink = {
    image_open, sequence_write, image_finish, image_free, sequence_publish, sequence_discard};

// ---- reading --------------------------------------------------------------------------------------------

// Exif 2.3, 4.6.4 and 4.6.5: the camera's orientation as degrees clockwise; 0 where it is not stated or mirrored.
static int jpeg_rotation(const uint8_t *p, size_t size) {
    size_t at = 2;
    while (at + 4 <= size && p[at] == 0xff && p[at + 1] != 0xda) {
        size_t length = (size_t)AV_RB16(p + at + 2);
        const uint8_t *tiff = p + at + 10;
        if (length < 2 || at + 2 + length > size) return 0;
        size_t room = length > 8 ? length - 8 : 0; // after the length, "Exif" and two zeros
        if (p[at + 1] != 0xe1 || room < 10 || memcmp(p + at + 4, "Exif\0\0", 6) != 0) {
            at += 2 + length;
            continue;
        }
        bool little = tiff[0] == 'I';
        size_t directory = little ? AV_RL32(tiff + 4) : AV_RB32(tiff + 4);
        if (directory > room - 2) return 0;
        int entries = little ? AV_RL16(tiff + directory) : AV_RB16(tiff + directory);
        for (size_t entry = directory + 2; entries-- > 0 && entry + 12 <= room; entry += 12) {
            int tag = little ? AV_RL16(tiff + entry) : AV_RB16(tiff + entry);
            int value = little ? AV_RL16(tiff + entry + 8) : AV_RB16(tiff + entry + 8);
            if (tag == 0x0112) return value == 3 ? 180 : value == 6 ? 90 : value == 8 ? 270 : 0;
        }
        return 0;
    }
    return 0;
}

// *image turned; the one it replaces is released.
static mel_status turn(mel_tensor **image, int rotation, mel_error *err) {
    int width = (int)mel_tensor_shape(*image)[1], height = (int)mel_tensor_shape(*image)[0];
    int64_t shape[3] = {rotation % 180 ? width : height, rotation % 180 ? height : width, 3};
    mel_tensor *turned = NULL;
    mel_status status = mel_tensor_create(MEL_U8, 3, shape, &turned, err);
    if (status != MEL_OK) return status;
    media_copy_turned(mel_tensor_data(*image), (ptrdiff_t)width * 3, width, height, rotation, mel_tensor_data(turned));
    mel_tensor_unref(*image);
    *image = turned;
    return MEL_OK;
}

static mel_status decode_jpeg(const char *path, const uint8_t *bytes, size_t size, mel_tensor **out, mel_error *err) {
    tjhandle jpeg = tjInitDecompress();
    if (!jpeg) return mel_fail(err, MEL_ENOMEM, "%s: %s", path, tjGetErrorStr2(NULL));
    int width = 0, height = 0, sampling = 0, space = 0;
    mel_tensor *image = NULL;
    mel_status status = MEL_OK;
    if (tjDecompressHeader3(jpeg, bytes, size, &width, &height, &sampling, &space) != 0 || width < 1 || height < 1)
        status = mel_fail(err, MEL_EFORMAT, "%s: %s", path, tjGetErrorStr2(jpeg));
    else if (width > MEDIA_MAX_SIDE || height > MEDIA_MAX_SIDE)
        status = mel_fail(err, MEL_EUNSUPPORTED, "%s: is %dx%d; at most %dx%d is read", path, width, height,
            MEDIA_MAX_SIDE, MEDIA_MAX_SIDE);
    else
        status = mel_tensor_create(MEL_U8, 3, (int64_t[]){height, width, 3}, &image, err);
    if (status == MEL_OK && tjDecompress2(jpeg, bytes, size, mel_tensor_data(image), width, width * 3, height, TJPF_RGB,
                                TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS) != 0) {
        // Warnings are about bytes that do no harm, but for an image that ends early.
        const char *text = tjGetErrorStr2(jpeg);
        if (tjGetErrorCode(jpeg) != TJERR_WARNING || strstr(text, "Premature end"))
            status = mel_fail(err, MEL_EFORMAT, "%s: %s", path, text);
    }
    tjDestroy(jpeg);
    int rotation = jpeg_rotation(bytes, size);
    if (status == MEL_OK && rotation) status = turn(&image, rotation, err);
    if (status == MEL_OK)
        *out = image;
    else
        mel_tensor_unref(image);
    return status;
}

// True where the file begins like a JPEG. A file that cannot be opened is reported by the reader.
static bool is_jpeg(const char *path) {
    uint8_t magic[3] = {0};
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    bool yes = fread(magic, 1, 3, file) == 3 && memcmp(magic, "\xff\xd8\xff", 3) == 0;
    fclose(file);
    return yes;
}

mel_status mel_image_read(const char *path, mel_tensor **out, mel_error *err) {
    if (!path || !out) return mel_fail(err, MEL_EINVAL, "image_read: no path");
    if (is_jpeg(path)) {
        uint8_t *bytes = NULL;
        size_t size = 0;
        mel_status status = media_read_file(path, &bytes, &size, err);
        if (status == MEL_OK) status = decode_jpeg(path, bytes, size, out, err);
        mel_free(bytes);
        return status;
    }
    mel_video_reader *reader = NULL;
    mel_tensor *image = NULL;
    mel_status status = mel_video_reader_open(path, NULL, &reader, err);
    if (status == MEL_OK) status = mel_video_reader_next(reader, &image, NULL, err);
    if (status == MEL_OK && !image) status = mel_fail(err, MEL_EFORMAT, "%s: holds no frame", path);
    mel_video_reader_close(reader);
    if (status == MEL_OK) *out = image;
    return status;
}

mel_status mel_image_write(
    const char *path, const mel_tensor *image, const mel_video_write_options *options, mel_error *err) {
    if (!path || !image) return mel_fail(err, MEL_EINVAL, "image_write: no %s", path ? "image" : "path");
    if (mel_tensor_ndim(image) != 3) {
        char shape[128];
        return mel_fail(err, MEL_EINVAL, "%s: an image is [H, W, 3], got %s", path,
            mel_tensor_shape_text(image, shape, sizeof shape));
    }
    mel_video_writer *writer = NULL;
    mel_status status = mel_video_writer_open(path, options, &writer, err);
    if (status != MEL_OK) return status;
    status = mel_video_writer_write(writer, image, err);
    if (status == MEL_OK) return mel_video_writer_finish(writer, err);
    mel_video_writer_abort(writer);
    return status;
}
