// Shared by the files of core/media: errors of the libraries below, files under temporary names, metadata, sinks.
#ifndef MELIES_MEDIA_INTERNAL_H
#define MELIES_MEDIA_INTERNAL_H

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avutil.h>
#include <libavutil/bprint.h>
#include <libavutil/frame.h>
#include <limits.h>
#include <melies/media.h>

enum {
    MEDIA_MAX_SIDE = 16384 // pixels; larger frames are refused before anything is allocated
};

// ---- errors (media_util.c) ------------------------------------------------------------------
// Routes FFmpeg's log to a one-line note of the first error on this thread, and forgets the last one. Called before a
// sequence of FFmpeg calls whose failure is reported with media_fail_av.
void media_log_begin(void);
// "PATH: WHAT: <av_err2str> (<the note>)", with the status that belongs to the FFmpeg error.
mel_status media_fail_av(mel_error *err, const char *path, const char *what, int av_error);
// Opens the file (options: av_dict entries or NULL, taken) and reads what streams it has; playlists lead nowhere else.
mel_status media_open_input(const char *path, AVDictionary *options, AVFormatContext **format, mel_error *err);
double media_start_of(const AVStream *stream); // in seconds, 0 where it is not told
// Leaves one stream of a file to be read. Returns the second that is its time 0: where sound is chosen and there are
// pictures, their start.
double media_choose_stream(AVFormatContext *format, int stream);
// "PATH: WHAT: <strerror>", MEL_EIO (MEL_ENOMEM where it is that).
mel_status media_fail_errno(mel_error *err, const char *path, const char *what, int error_number);

// ---- files (media_util.c) -------------------------------------------------------------------
// The extension after the last dot of the last component, "" where there is none.
const char *media_extension(const char *path);
// Fails where path is too long, a folder, a device, or its folder does not exist.
mel_status media_check_target(const char *path, mel_error *err);
// ".NAME.partial-PID-SERIAL.EXT" beside path, into out (PATH_MAX bytes).
mel_status media_temp_name(const char *path, unsigned serial, char *out, mel_error *err);
unsigned media_next_serial(void); // differs for each writer of this process
typedef struct media_span {
    const void *data;
    size_t size;
} media_span;
// Creates the file with this content; a failure removes it. named: the name that messages carry.
mel_status media_write_file(const char *path, const char *named, int count, const media_span *spans, mel_error *err);
mel_status media_read_file(const char *path, uint8_t **data, size_t *size, mel_error *err); // mel_free(*data)
// Renames temp to path, after its bytes are on the disk where durable.
mel_status media_publish(const char *temp, const char *path, bool durable, mel_error *err);

// ---- metadata (media_tags.c) ------------------------------------------------------------------
// Reads the metadata of PNG, JPEG, GIF and WebP files, which FFmpeg does not hand on. Other files: nothing, MEL_OK.
// *cut becomes true for a GIF that ends inside a block and a WebP shorter than it says: FFmpeg takes that for the end.
mel_status media_read_tags(const char *path, AVDictionary **tags, bool *cut, mel_error *err);
typedef enum media_tag_format {
    MEDIA_TAGS_PNG,  // tEXt and iTXt chunks
    MEDIA_TAGS_JPEG, // COM segments "key=value"
    MEDIA_TAGS_GIF,  // comment extensions "key=value"
    MEDIA_TAGS_WEBP  // an XMP chunk
} media_tag_format;
// Appends the bytes that carry tags in a file of this format; nothing where there are none.
mel_status media_encode_tags(
    media_tag_format format, const AVDictionary *tags, const char *named, AVBPrint *out, mel_error *err);
// Adds them to a complete GIF or WebP file of frames of this size.
mel_status media_append_tags(media_tag_format format, const char *file, const AVDictionary *tags, int width, int height,
    const char *named, mel_error *err);

// ---- animated WebP (webp.c) ---------------------------------------------------------------------
typedef struct media_webp media_webp;
bool media_webp_is_animated(const char *path);
mel_status media_webp_open(const char *path, media_webp **out, mel_error *err);
void media_webp_close(media_webp *webp);
void media_webp_facts(const media_webp *webp, int *width, int *height, int64_t *frames, int64_t *duration_ms);
// The whole canvas after the next frame as RGB24, its time and duration in milliseconds in best_effort_timestamp and
// pkt_duration. AVERROR_EOF after the last one, or another FFmpeg error.
int media_webp_next(media_webp *webp, AVFrame *out);

// ---- pixels (media_pixels.c) --------------------------------------------------------------------
// True where the pixels of each row of [h, w, 3] lie side by side; the rows may be apart (a crop).
bool media_has_dense_rows(const mel_tensor *pixels);
// A frame [h, w, 3] (u8 or f32, dense rows) into an RGB24 AVFrame that may be larger: its further rows and columns
// repeat the last ones.
void media_fill_frame(AVFrame *frame, const mel_tensor *pixels);
// RGB24 rows, width x height, stride bytes apart, into dense out, turned clockwise by rotation (0, 90, 180, 270).
void media_copy_turned(const uint8_t *from, ptrdiff_t stride, int width, int height, int rotation, uint8_t *out);
// An AVFrame with its own buffer, rows padded so that SIMD may run over their ends. NULL: no memory.
AVFrame *media_new_frame(int format, int width, int height);

// ---- sinks: what a writer hands RGB24 frames to ----------------------------------------------------
typedef struct media_target {
    char path[PATH_MAX]; // final name
    char temp[PATH_MAX];
    unsigned serial;
    mel_video_write_options options; // every default resolved; the texts point into static storage
    AVDictionary *tags;
    int width, height;    // encoded
    char audio[PATH_MAX]; // "" where there is none
} media_target;

// open allocates *state, and leaves nothing where it fails. write gets frames of width x height. finish completes the
// files under their temporary names. free releases state at any point. publish gives the files their names, discard
// removes the temporary ones: both NULL where target->temp is the only file.
typedef struct media_sink {
    mel_status (*open)(const media_target *target, void **state, mel_error *err);
    mel_status (*write)(void *state, const AVFrame *rgb, mel_error *err);
    mel_status (*finish)(void *state, mel_error *err);
    void (*free)(void *state);
    mel_status (*publish)(void *state, mel_error *err);
    void (*discard)(void *state);
} media_sink;

extern const media_sink media_stream_sink;   // mp4, webm, webp: stream.c
extern const media_sink media_gif_sink;      // gif.c
extern const media_sink media_image_sink;    // one png or jpeg: image.c
extern const media_sink media_sequence_sink; // png or jpeg frames under numbered names: image.c

// The encoder and muxer below the stream and GIF sinks (stream.c).
typedef struct media_encoder media_encoder;
mel_status media_encoder_open(const media_target *target, media_encoder **out, mel_error *err);
int media_encoder_format(const media_encoder *encoder);                                 // AVPixelFormat of its frames
mel_status media_encoder_write(media_encoder *encoder, AVFrame *frame, mel_error *err); // sets frame->pts
mel_status media_encoder_finish(media_encoder *encoder, mel_error *err);
void media_encoder_free(media_encoder *encoder);
// The encoder for "h264", "vp9", "av1", "gif", "webp", "png"; NULL where this FFmpeg was built without one.
const AVCodec *media_find_encoder(const char *codec);

// ---- sound (mux.c) ----------------------------------------------------------------------------------
// mel_audio_add into `file`, which is left half-written where it fails.
mel_status media_mux(const char *video_path, const char *audio_path, double from_s, const char *format,
    const char *file, mel_error *err);

// ---- images (image.c) ---------------------------------------------------------------------------
// True where path has exactly one %d or %0Nd in its last component and no other %.
bool media_is_pattern(const char *path);

#endif
