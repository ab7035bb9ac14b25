// Errors of FFmpeg as mel_error, and files that appear under their name only when complete.
#include "media_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <libavutil/log.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static _Thread_local char log_note[256];

static void note_log(void *context, int level, const char *format, va_list args) {
    (void)context;
    if (level > AV_LOG_ERROR || log_note[0]) return;
    vsnprintf(log_note, sizeof log_note, format, args);
    size_t n = strlen(log_note);
    while (n && (log_note[n - 1] == '\n' || log_note[n - 1] == '.' || log_note[n - 1] == ' '))
        log_note[--n] = 0;
    for (char *c = log_note; *c; c++)
        if (*c == '\n' || *c == '\r') *c = ' ';
}

static void install_log(void) {
    av_log_set_callback(note_log);
}

void media_log_begin(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_log);
    log_note[0] = 0;
}

mel_status media_open_input(const char *path, AVDictionary *options, AVFormatContext **format, mel_error *err) {
    char url[PATH_MAX + 8];
    snprintf(url, sizeof url, "file:%s", path);
    av_dict_set(&options, "protocol_whitelist", "file", 0);
    int ret = avformat_open_input(format, url, NULL, &options);
    av_dict_free(&options);
    if (ret >= 0) ret = avformat_find_stream_info(*format, NULL);
    return ret < 0 ? media_fail_av(err, path, "cannot be read", ret) : MEL_OK;
}

mel_status media_fail_errno(mel_error *err, const char *path, const char *what, int error_number) {
    mel_status status = error_number == ENOMEM ? MEL_ENOMEM : MEL_EIO;
    return mel_fail(err, status, "%s: %s: %s", path, what, strerror(error_number));
}

mel_status media_fail_av(mel_error *err, const char *path, const char *what, int av_error) {
    mel_status status = MEL_EINTERNAL;
    switch (av_error) {
    case AVERROR(ENOMEM): status = MEL_ENOMEM; break;
    case AVERROR(EINVAL):
    case AVERROR_INVALIDDATA:
    case AVERROR_STREAM_NOT_FOUND:
    case AVERROR_EOF: status = MEL_EFORMAT; break;
    case AVERROR_DECODER_NOT_FOUND:
    case AVERROR_ENCODER_NOT_FOUND:
    case AVERROR_DEMUXER_NOT_FOUND:
    case AVERROR_MUXER_NOT_FOUND:
    case AVERROR_FILTER_NOT_FOUND:
    case AVERROR_PATCHWELCOME: status = MEL_EUNSUPPORTED; break;
    default:
        // Small negative values are errno; FFmpeg's own are tags of four letters.
        if (av_error < 0 && av_error > -4096) status = MEL_EIO;
    }
    char text[AV_ERROR_MAX_STRING_SIZE] = "";
    av_strerror(av_error, text, sizeof text);
    if (log_note[0]) return mel_fail(err, status, "%s: %s: %s (%s)", path, what, text, log_note);
    return mel_fail(err, status, "%s: %s: %s", path, what, text);
}

// ---- files ----------------------------------------------------------------------------------

static const char *last_component(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

const char *media_extension(const char *path) {
    const char *name = last_component(path), *dot = strrchr(name, '.');
    return dot && dot != name ? dot + 1 : "";
}

// The folder of path with its slash, "" for the current one.
static mel_status folder_of(const char *path, char *out, mel_error *err) {
    size_t n = (size_t)(last_component(path) - path);
    if (n + NAME_MAX + 1 >= PATH_MAX) return mel_fail(err, MEL_EINVAL, "%.60s...: the path is too long", path);
    memcpy(out, path, n);
    out[n] = 0;
    return MEL_OK;
}

mel_status media_check_target(const char *path, mel_error *err) {
    char folder[PATH_MAX];
    const char *name = last_component(path);
    if (!name[0]) return mel_fail(err, MEL_EINVAL, "%s: the output path names no file", path);
    if (strlen(name) > NAME_MAX) return mel_fail(err, MEL_EINVAL, "%.60s...: the file name is too long", path);
    mel_status status = folder_of(path, folder, err);
    if (status != MEL_OK) return status;
    struct stat info;
    if (folder[0]) {
        if (stat(folder, &info) != 0) return media_fail_errno(err, path, "cannot be written", errno);
        if (!S_ISDIR(info.st_mode)) return media_fail_errno(err, path, "cannot be written", ENOTDIR);
    }
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return mel_fail(err, MEL_EIO, "%s: cannot be replaced: it is %s", path,
            S_ISDIR(info.st_mode) ? "a folder" : "not a regular file");
    return MEL_OK;
}

mel_status media_temp_name(const char *path, unsigned serial, char *out, mel_error *err) {
    char folder[PATH_MAX], tail[64];
    mel_status status = folder_of(path, folder, err);
    if (status != MEL_OK) return status;
    const char *name = last_component(path), *extension = media_extension(path);
    size_t stem = strlen(name);
    if (extension[0]) stem -= strlen(extension) + 1;
    snprintf(tail, sizeof tail, ".partial-%ld-%u%s%.16s", (long)getpid(), serial, extension[0] ? "." : "", extension);
    size_t room = NAME_MAX - 1 - strlen(tail);
    if (stem > room) stem = room;
    int n = snprintf(out, PATH_MAX, "%s.%.*s%s", folder, (int)stem, name, tail);
    if (n < 0 || n >= PATH_MAX) return mel_fail(err, MEL_EINVAL, "%.60s...: the path is too long", path);
    return MEL_OK;
}

unsigned media_next_serial(void) {
    static atomic_uint serial;
    return atomic_fetch_add(&serial, 1) + 1;
}

mel_status media_write_file(const char *path, const char *named, int count, const media_span *spans, mel_error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return media_fail_errno(err, named, "cannot be written", errno);
    int failed = 0;
    for (int i = 0; i < count && !failed; i++) {
        const uint8_t *at = spans[i].data;
        size_t left = spans[i].size;
        while (left) {
            ssize_t n = write(fd, at, left);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) {
                failed = n < 0 ? errno : EIO;
                break;
            }
            at += n;
            left -= (size_t)n;
        }
    }
    if (close(fd) != 0 && !failed) failed = errno;
    if (!failed) return MEL_OK;
    unlink(path);
    return media_fail_errno(err, named, "cannot be written", failed);
}

mel_status media_read_file(const char *path, uint8_t **data, size_t *size, mel_error *err) {
    FILE *file = fopen(path, "rb");
    if (!file) return media_fail_errno(err, path, "cannot be opened", errno);
    struct stat info;
    mel_status status = MEL_OK;
    uint8_t *bytes = NULL;
    if (fstat(fileno(file), &info) != 0)
        status = media_fail_errno(err, path, "cannot be read", errno);
    else if (!S_ISREG(info.st_mode))
        status = mel_fail(err, MEL_EIO, "%s: is not a regular file", path);
    else if (info.st_size > INT32_MAX)
        status = mel_fail(err, MEL_EFORMAT, "%s: too large for an image", path);
    else {
        bytes = mel_alloc((size_t)info.st_size, err);
        if (!bytes)
            status = MEL_ENOMEM;
        else if (fread(bytes, 1, (size_t)info.st_size, file) != (size_t)info.st_size)
            status = media_fail_errno(err, path, "cannot be read", ferror(file) ? errno : EIO);
    }
    fclose(file);
    if (status != MEL_OK) {
        mel_free(bytes);
        return status;
    }
    *data = bytes;
    *size = (size_t)info.st_size;
    return MEL_OK;
}

static int sync_path(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return errno;
    int failed = fsync(fd) == 0 || errno == EINVAL || errno == EROFS ? 0 : errno;
    close(fd);
    return failed;
}

mel_status media_publish(const char *temp, const char *path, bool durable, mel_error *err) {
    int failed = durable ? sync_path(temp, O_RDONLY) : 0;
    if (failed) return media_fail_errno(err, path, "cannot be written", failed);
    if (rename(temp, path) != 0) return media_fail_errno(err, path, "cannot be given its name", errno);
    char folder[PATH_MAX];
    // The file is complete under its name by now: a folder that cannot be synced is no failure.
    if (durable && folder_of(path, folder, NULL) == MEL_OK) sync_path(folder[0] ? folder : ".", O_RDONLY | O_DIRECTORY);
    return MEL_OK;
}

double media_start_of(const AVStream *stream) {
    return stream->start_time == AV_NOPTS_VALUE ? 0 : (double)stream->start_time * av_q2d(stream->time_base);
}

double media_choose_stream(AVFormatContext *format, int stream) {
    const bool sound = format->streams[stream]->codecpar->codec_type == AVMEDIA_TYPE_AUDIO;
    double origin_s = media_start_of(format->streams[stream]);
    for (unsigned i = 0; i < format->nb_streams; i++) {
        AVStream *other = format->streams[i];
        if (sound && other->codecpar->codec_type == AVMEDIA_TYPE_VIDEO &&
            !(other->disposition & AV_DISPOSITION_ATTACHED_PIC))
            origin_s = media_start_of(other);
        if ((int)i != stream) other->discard = AVDISCARD_ALL;
    }
    return origin_s;
}
