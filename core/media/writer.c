// The writer that Lua sees: options and their defaults, frames in, one file under its name at the end.
#include "media_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <melies/audio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

struct mel_video_writer {
    media_target target;
    const media_sink *sink;
    void *state;       // of the sink; NULL before the first frame
    AVFrame *rgb;      // target.width x target.height
    int width, height; // of the frames that come in; 0 before the first one
    int64_t frames;
    bool failed;
};

typedef struct codec_traits {
    const char *codec, *format;
    int crf, crf_max;   // default and limit; 0: no crf
    const char *preset; // default; NULL: no presets
    int preset_max;     // numeric presets 0..preset_max; 0: x264's names
    int quality;        // default; 0: no quality
    bool even;          // yuv420p: wants even sizes
} codec_traits;

// The first one of a format is its default.
static const codec_traits all_codecs[] = {
    {"h264", "mp4", 20, 51, "medium", 0, 0, true},
    {"av1", "mp4", 30, 63, "8", 13, 0, true},
    {"vp9", "webm", 31, 63, "4", 8, 0, true},
    {"av1", "webm", 30, 63, "8", 13, 0, true},
    {"gif", "gif", 0, 0, NULL, 0, 0, false},
    {"webp", "webp", 0, 0, NULL, 0, 85, false},
    {"png", "png", 0, 0, NULL, 0, 0, false},
    {"jpeg", "jpeg", 0, 0, NULL, 0, 92, false},
};
static const char *const x264_presets[] = {
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"};
static const char *const extensions[][2] = {{"mp4", "mp4"}, {"m4v", "mp4"}, {"webm", "webm"}, {"gif", "gif"},
    {"webp", "webp"}, {"png", "png"}, {"jpg", "jpeg"}, {"jpeg", "jpeg"}};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static mel_status choose_codec(
    const char *path, const mel_video_write_options *options, const codec_traits **out, mel_error *err) {
    const char *format = options->format, *extension = media_extension(path);
    for (size_t i = 0; !format && i < COUNT(extensions); i++)
        if (strcasecmp(extension, extensions[i][0]) == 0) format = extensions[i][1];
    if (!format)
        return mel_fail(err, MEL_EINVAL, "%s: no format is known by %s%s; known: mp4, webm, gif, webp, png, jpg", path,
            extension[0] ? "the extension ." : "a name without extension", extension);
    bool known = false;
    for (size_t i = 0; i < COUNT(all_codecs); i++) {
        if (strcmp(format, all_codecs[i].format) != 0) continue;
        known = true;
        if (options->codec && strcmp(options->codec, all_codecs[i].codec) != 0) continue;
        *out = &all_codecs[i];
        return MEL_OK;
    }
    if (!known)
        return mel_fail(err, MEL_EINVAL, "%s: no format '%s'; known: mp4, webm, gif, webp, png, jpeg", path, format);
    char list[64] = "";
    for (size_t i = 0; i < COUNT(all_codecs); i++)
        if (strcmp(format, all_codecs[i].format) == 0)
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", list[0] ? ", " : "", all_codecs[i].codec);
    return mel_fail(err, MEL_EINVAL, "%s: %s holds no codec '%s'; known: %s", path, format, options->codec, list);
}

// value, or fallback where it is 0; outside low..high is an error.
static mel_status number(
    const char *path, const char *name, int32_t low, int32_t high, int32_t fallback, int32_t *value, mel_error *err) {
    if (*value == 0 && fallback != 0) *value = fallback;
    if (*value >= low && *value <= high) return MEL_OK;
    return mel_fail(err, MEL_EINVAL, "%s: %s is %d; it goes from %d to %d", path, name, *value, low, high);
}

static mel_status choose_preset(const char *path, const codec_traits *traits, const char **preset, mel_error *err) {
    if (!*preset) {
        *preset = traits->preset;
        return MEL_OK;
    }
    if (!traits->preset) return mel_fail(err, MEL_EINVAL, "%s: %s has no presets", path, traits->codec);
    if (traits->preset_max == 0) {
        for (size_t i = 0; i < COUNT(x264_presets); i++)
            if (strcmp(*preset, x264_presets[i]) == 0) {
                *preset = x264_presets[i];
                return MEL_OK;
            }
        return mel_fail(err, MEL_EINVAL,
            "%s: no preset '%s'; h264 has ultrafast, superfast, veryfast, faster, fast, "
            "medium, slow, slower, veryslow",
            path, *preset);
    }
    static const char *const digits[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13"};
    for (int i = 0; i <= traits->preset_max; i++)
        if (strcmp(*preset, digits[i]) == 0) {
            *preset = digits[i];
            return MEL_OK;
        }
    return mel_fail(
        err, MEL_EINVAL, "%s: no preset '%s'; %s has 0 to %d", path, *preset, traits->codec, traits->preset_max);
}

// Checks o and replaces every zero by its default.
static mel_status resolve(const char *path, const codec_traits *traits, mel_video_write_options *o, mel_error *err) {
    o->format = traits->format;
    o->codec = traits->codec;
    if (o->fps_num == 0 && o->fps_den == 0) o->fps_num = 24, o->fps_den = 1;
    if (o->fps_num <= 0 || o->fps_den <= 0 || o->fps_num > 1000LL * o->fps_den || o->fps_den > 3600LL * o->fps_num)
        return mel_fail(err, MEL_EINVAL, "%s: fps is %d/%d; it goes up to 1000", path, o->fps_num, o->fps_den);
    if (strcmp(o->format, "gif") == 0 && o->fps_num > 50LL * o->fps_den)
        return mel_fail(err, MEL_EINVAL, "%s: fps is %g; GIF counts hundredths of a second and goes up to 50", path,
            (double)o->fps_num / o->fps_den);
    if (o->bitrate < 0 || (o->bitrate && !traits->crf_max))
        return mel_fail(err, MEL_EINVAL, "%s: a bitrate of %lld is not for %s", path, (long long)o->bitrate, o->codec);
    mel_status status = number(path, "quality", 0, 100, 0, &o->quality, err);
    if (status != MEL_OK) return status;
    if (!o->crf_set)
        o->crf = o->quality ? (traits->crf_max * (100 - o->quality) + 50) / 100 : traits->crf;
    else if (!traits->crf_max)
        return mel_fail(err, MEL_EINVAL, "%s: crf is not for %s", path, o->codec);
    status = number(path, "crf", 0, traits->crf_max, 0, &o->crf, err);
    if (o->quality == 0) o->quality = traits->quality;
    if (status == MEL_OK) status = number(path, "loop", 0, 65535, 0, &o->loop, err);
    if (status == MEL_OK) {
        int cores = mel_threads();
        status = number(path, "threads", 1, 64, cores < 16 ? cores : 16, &o->threads, err);
    }
    if (status == MEL_OK) status = number(path, "width", 0, MEDIA_MAX_SIDE, 0, &o->width, err);
    if (status == MEL_OK) status = number(path, "height", 0, MEDIA_MAX_SIDE, 0, &o->height, err);
    return status == MEL_OK ? choose_preset(path, traits, &o->preset, err) : status;
}

// A file that holds no sound is told before there are frames, not after them.
static mel_status take_audio(mel_video_writer *w, const mel_video_write_options *options, mel_error *err) {
    const char *path = w->target.path, *audio = options->audio;
    if (!audio) return MEL_OK;
    if (!mel_audio_fits(path, w->target.options.format))
        return mel_fail(err, MEL_EINVAL, "%s: %s holds no sound; mp4 and webm do", path, w->target.options.format);
    if (!(options->audio_from_s >= 0 && options->audio_from_s < 1e9))
        return mel_fail(err, MEL_EINVAL, "%s: sound from %g s on", path, options->audio_from_s);
    mel_audio_reader *reader = NULL;
    mel_status status = mel_audio_reader_open(audio, NULL, &reader, err);
    mel_audio_reader_close(reader);
    if (status == MEL_OK) memcpy(w->target.audio, audio, strlen(audio) + 1);
    return status;
}

// The finished film, under its temporary name, gets its sound.
static mel_status add_audio(mel_video_writer *w, mel_error *err) {
    media_target *t = &w->target;
    char with[PATH_MAX];
    mel_status status = media_temp_name(t->path, media_next_serial(), with, err);
    if (status != MEL_OK) return status;
    status = media_mux(t->temp, t->audio, t->options.audio_from_s, t->options.format, with, err);
    if (status == MEL_OK) status = media_publish(with, t->temp, false, err);
    if (status != MEL_OK) unlink(with);
    return status;
}

static bool is_key(const char *key) {
    bool letter = (*key >= 'a' && *key <= 'z') || (*key >= 'A' && *key <= 'Z');
    size_t n = strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");
    return letter && key[n] == 0 && n < 80;
}

static mel_status take_tags(mel_video_writer *w, const mel_video_write_options *options, mel_error *err) {
    for (int i = 0; i < options->metadata_count; i++) {
        const char *key = options->metadata[2 * i], *value = options->metadata[2 * i + 1];
        if (!key || !value || !is_key(key))
            return mel_fail(err, MEL_EINVAL,
                "%s: metadata '%.100s': a key begins with a letter and has up to 79 "
                "letters, digits and _ . -",
                w->target.path, key ? key : "");
        if (av_dict_set(&w->target.tags, key, value, 0) < 0)
            return mel_fail(err, MEL_ENOMEM, "%s: no memory for the metadata", w->target.path);
    }
    return MEL_OK;
}

// Shows at once whether the folder can be written, before somebody computes for hours.
static mel_status claim_temp(const char *path, char *temp, unsigned serial, mel_error *err) {
    mel_status status = media_temp_name(path, serial, temp, err);
    if (status != MEL_OK) return status;
    int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return media_fail_errno(err, path, "cannot be written", errno);
    close(fd);
    return MEL_OK;
}

static void release(mel_video_writer *w) {
    if (w->state) w->sink->free(w->state);
    if (w->target.temp[0]) unlink(w->target.temp); // after publishing there is none
    av_frame_free(&w->rgb);
    av_dict_free(&w->target.tags);
    mel_free(w);
}

mel_status mel_video_writer_open(
    const char *path, const mel_video_write_options *options, mel_video_writer **out, mel_error *err) {
    static const mel_video_write_options defaults = {0};
    if (!path || !out) return mel_fail(err, MEL_EINVAL, "video_writer: no path");
    if (!options) options = &defaults;
    if (strlen(path) >= PATH_MAX) return mel_fail(err, MEL_EINVAL, "%.60s...: the path is too long", path);
    const codec_traits *traits = NULL;
    mel_status status = choose_codec(path, options, &traits, err);
    if (status == MEL_OK) status = media_check_target(path, err);
    if (status != MEL_OK) return status;
    bool jpeg = strcmp(traits->codec, "jpeg") == 0;
    if (!jpeg && !media_find_encoder(traits->codec))
        return mel_fail(err, MEL_EUNSUPPORTED, "%s: this FFmpeg has no encoder for %s", path, traits->codec);
    mel_video_writer *w = mel_alloc_zero(sizeof *w, err);
    if (!w) return MEL_ENOMEM;
    memcpy(w->target.path, path, strlen(path) + 1);
    w->target.options = *options;
    w->target.serial = media_next_serial();
    w->sink = strcmp(traits->codec, "gif") == 0 ? &media_gif_sink
              : jpeg || strcmp(traits->codec, "png") == 0
                  ? (media_is_pattern(path) ? &media_sequence_sink : &media_image_sink)
                  : &media_stream_sink;
    status = resolve(path, traits, &w->target.options, err);
    if (status == MEL_OK) status = take_tags(w, options, err);
    if (status == MEL_OK) status = take_audio(w, options, err);
    if (status == MEL_OK) status = claim_temp(path, w->target.temp, w->target.serial, err);
    if (status != MEL_OK) {
        w->target.temp[0] = 0; // none was made
        release(w);
        return status;
    }
    w->target.options.metadata = NULL;
    w->target.options.audio = NULL;
    *out = w;
    return MEL_OK;
}

static bool wants_even(const mel_video_writer *w) {
    for (size_t i = 0; i < COUNT(all_codecs); i++)
        if (strcmp(all_codecs[i].codec, w->target.options.codec) == 0) return all_codecs[i].even;
    return false;
}

// The first frame fixes the size and opens the encoder.
static mel_status begin(mel_video_writer *w, int64_t width, int64_t height, mel_error *err) {
    media_target *t = &w->target;
    if (width < 1 || height < 1 || width > MEDIA_MAX_SIDE || height > MEDIA_MAX_SIDE)
        return mel_fail(err, MEL_EINVAL, "%s: a frame of %lldx%lld; sizes go from 1 to %d", t->path, (long long)width,
            (long long)height, MEDIA_MAX_SIDE);
    bool odd = wants_even(w) && (width % 2 || height % 2);
    if (odd && !t->options.pad)
        return mel_fail(err, MEL_EINVAL,
            "%s: frames are %lldx%lld; %s wants an even width and height: %lldx%lld is the nearest (or pad = true)",
            t->path, (long long)width, (long long)height, t->options.codec, (long long)(width + width % 2),
            (long long)(height + height % 2));
    t->width = (int)width + (odd ? (int)width % 2 : 0);
    t->height = (int)height + (odd ? (int)height % 2 : 0);
    w->rgb = media_new_frame(AV_PIX_FMT_RGB24, t->width, t->height);
    if (!w->rgb) return mel_fail(err, MEL_ENOMEM, "%s: no memory for a frame of %dx%d", t->path, t->width, t->height);
    mel_status status = w->sink->open(t, &w->state, err);
    if (status != MEL_OK) return status;
    w->width = (int)width;
    w->height = (int)height;
    return MEL_OK;
}

static mel_status write_frame(mel_video_writer *w, const mel_tensor *frame, mel_error *err) {
    mel_status status = mel_check_cancel(err);
    if (status != MEL_OK) return status;
    mel_tensor *floats = NULL, *dense = NULL;
    if (mel_tensor_dtype(frame) != MEL_U8) {
        status = mel_tensor_cast(frame, MEL_F32, &floats, err);
        frame = floats;
    }
    if (status == MEL_OK && !media_has_dense_rows(frame)) {
        status = mel_tensor_contiguous(frame, &dense, err);
        frame = dense;
    }
    if (status == MEL_OK && av_frame_make_writable(w->rgb) < 0)
        status = mel_fail(err, MEL_ENOMEM, "%s: no memory for a frame", w->target.path);
    if (status == MEL_OK) {
        media_fill_frame(w->rgb, frame);
        status = w->sink->write(w->state, w->rgb, err);
    }
    if (status == MEL_OK) w->frames++;
    mel_tensor_unref(dense);
    mel_tensor_unref(floats);
    return status;
}

static mel_status write_all(mel_video_writer *w, const mel_tensor *frames, mel_error *err) {
    const int64_t *shape = mel_tensor_shape(frames);
    if (mel_tensor_ndim(frames) == 3) return write_frame(w, frames, err);
    for (int64_t i = 0; i < shape[0]; i++) {
        mel_tensor *slice = NULL, *frame = NULL;
        mel_status status = mel_tensor_slice(frames, 0, i, 1, &slice, err);
        if (status == MEL_OK) status = mel_tensor_reshape(slice, 3, shape + 1, &frame, err);
        if (status == MEL_OK) status = write_frame(w, frame, err);
        mel_tensor_unref(frame);
        mel_tensor_unref(slice);
        if (status != MEL_OK) return status;
    }
    return MEL_OK;
}

mel_status mel_video_writer_write(mel_video_writer *w, const mel_tensor *frames, mel_error *err) {
    if (!w || !frames) return mel_fail(err, MEL_EINVAL, "video_writer: no %s", w ? "frames" : "writer");
    const char *path = w->target.path;
    if (w->failed) return mel_fail(err, MEL_EINVAL, "%s: writing has failed before", path);
    char text[128];
    mel_tensor_shape_text(frames, text, sizeof text);
    const int64_t *shape = mel_tensor_shape(frames);
    int n = mel_tensor_ndim(frames);
    mel_dtype dtype = mel_tensor_dtype(frames);
    if ((n != 3 && n != 4) || shape[n - 1] != 3)
        return mel_fail(err, MEL_EINVAL, "%s: frames are [H, W, 3] or [T, H, W, 3], got %s", path, text);
    if (dtype != MEL_U8 && dtype != MEL_F32 && dtype != MEL_BF16 && dtype != MEL_F16)
        return mel_fail(err, MEL_EINVAL, "%s: frames are u8 or floats in 0..1, got %s", path, mel_dtype_name(dtype));
    int64_t height = shape[n - 3], width = shape[n - 2];
    const mel_video_write_options *o = &w->target.options;
    int64_t want_width = w->width ? w->width : o->width, want_height = w->height ? w->height : o->height;
    if ((want_width && width != want_width) || (want_height && height != want_height))
        return mel_fail(err, MEL_EINVAL, "%s: a frame is %lldx%lld, wanted %lldx%lld", path, (long long)width,
            (long long)height, (long long)(want_width ? want_width : width),
            (long long)(want_height ? want_height : height));
    mel_status status = w->state ? MEL_OK : begin(w, width, height, err);
    if (status == MEL_OK) status = write_all(w, frames, err);
    w->failed = status != MEL_OK;
    return status;
}

int64_t mel_video_writer_frames(const mel_video_writer *w) {
    return w ? w->frames : 0;
}

mel_status mel_video_writer_finish(mel_video_writer *w, mel_error *err) {
    if (!w) return mel_fail(err, MEL_EINVAL, "video_writer: no writer");
    const char *path = w->target.path;
    mel_status status = MEL_OK;
    if (w->failed)
        status = mel_fail(err, MEL_EINVAL, "%s: writing has failed before", path);
    else if (w->frames == 0)
        status = mel_fail(err, MEL_EINVAL, "%s: no frames were written", path);
    else
        status = mel_check_cancel(err);
    if (status == MEL_OK) status = w->sink->finish(w->state, err);
    if (status == MEL_OK && w->target.audio[0]) status = add_audio(w, err);
    if (status == MEL_OK)
        status = w->sink->publish ? w->sink->publish(w->state, err) : media_publish(w->target.temp, path, true, err);
    if (status != MEL_OK) {
        mel_video_writer_abort(w);
        return status;
    }
    release(w);
    return MEL_OK;
}

void mel_video_writer_abort(mel_video_writer *w) {
    if (!w) return;
    if (w->state && w->sink->discard) w->sink->discard(w->state);
    release(w);
}
