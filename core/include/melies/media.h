// Video and images: streaming readers and writers, single images, contact sheets.
// Frames are tensors [H, W, 3] RGB, u8 (0..255) or float (0..1; outside is clamped, NaN is 0). Readers give u8.
// Handles are used by one thread at a time. Messages name the file. Paths name files only, never network addresses.
#ifndef MELIES_MEDIA_H
#define MELIES_MEDIA_H

#include <melies/tensor.h>

// ---- reading ------------------------------------------------------------------------------
typedef struct mel_video_reader mel_video_reader;

// Zeros (or a NULL pointer) mean: as in the file.
typedef struct mel_video_read_options {
    int32_t width, height;    // size of the frames; where one is 0 it follows from the other and the aspect ratio
    int32_t fps_num, fps_den; // frames are dropped or repeated by their timestamps to this rate; for a pattern of
                              // images (frame-%04d.png), which carries no rate of its own, it is the rate
    int32_t threads;          // decoder threads; 0: mel_threads(), at most 8
} mel_video_read_options;

typedef struct mel_video_info {
    int32_t width, height;               // of the frames the reader gives (rotated, resized)
    int32_t source_width, source_height; // as stored
    int32_t fps_num, fps_den;            // of the frames the reader gives; 0/1 where unknown
    double fps, source_fps;              // 0 where unknown
    double duration_s;                   // -1 where unknown
    int64_t frames;                      // that the reader gives from the start; -1 where unknown
    int32_t rotation;                    // degrees clockwise that were applied: 0, 90, 180, 270
    bool has_audio;
    bool is_image; // a single still image
    char codec[32], pixel_format[32], container[64];
} mel_video_info;

// On success *out is owned by the caller (mel_video_reader_close); on failure *out is untouched.
// MEL_EIO: the file cannot be opened. MEL_EFORMAT: not a video or image, or cut short. MEL_EUNSUPPORTED: no decoder.
MEL_API mel_status mel_video_reader_open(
    const char *path, const mel_video_read_options *options, mel_video_reader **out, mel_error *err);
MEL_API void mel_video_reader_close(mel_video_reader *reader); // NULL is fine
MEL_API void mel_video_reader_info(const mel_video_reader *reader, mel_video_info *out);
// Metadata: entry index (from 0) in *key and *value, UTF-8, valid while the reader lives. False past the last one.
MEL_API bool mel_video_reader_tag(const mel_video_reader *reader, int index, const char **key, const char **value);
// The next frame, owned by the caller; *out = NULL with MEL_OK at the end of the stream. time_s (may be NULL): its time
// from the start of the stream. MEL_EFORMAT: damaged or cut short. MEL_ECANCELED.
MEL_API mel_status mel_video_reader_next(mel_video_reader *reader, mel_tensor **out, double *time_s, mel_error *err);
// The next frame is then the one that is on screen at time_s (exact: decodes forward from the keyframe before it).
// Past the end: the next frame is the end of the stream. MEL_EINVAL: negative or not a number.
MEL_API mel_status mel_video_reader_seek(mel_video_reader *reader, double time_s, mel_error *err);

// ---- writing ------------------------------------------------------------------------------
typedef struct mel_video_writer mel_video_writer;

// Zeros and NULLs mean: the default.
typedef struct mel_video_write_options {
    const char *format;          // "mp4", "webm", "gif", "webp", "png", "jpeg"; by the path's extension where NULL
    const char *codec;           // "h264", "av1" (mp4); "vp9", "av1" (webm); the first one where NULL
    int32_t width, height;       // where 0: the first frame's
    int32_t fps_num, fps_den;    // 24/1
    bool crf_set;                // crf counts (0 is a valid value)
    int32_t crf;                 // constant quality, less is better: h264 0..51 (20), vp9 and av1 0..63 (31, 30)
    int32_t quality;             // 1..100: webp (85), jpeg (92); the other codecs take it as a crf of the same share
                                 // where none is set (h264: 60 is 20); png and gif have no use for it
    int64_t bitrate;             // bits a second instead of constant quality; h264, vp9, av1
    const char *preset;          // h264: ultrafast..veryslow (medium); vp9: 0..8 (4), av1: 0..13 (8), more is faster
    int32_t loop;                // gif, webp: plays that many times; 0 for ever
    bool pad;                    // h264, vp9, av1: frames of odd size get their last row or column repeated
    bool full_chroma;            // jpeg: 4:4:4 instead of 4:2:0
    const char *const *metadata; // key, value, key, value, ...: UTF-8, copied; keys of letters, digits and _ . -
    int32_t metadata_count;      // pairs
    int32_t threads;             // encoder threads; 0: mel_threads(), at most 16
    const char *audio;           // mp4, webm: the film gets the sound of this file when it is finished (mel_audio_add)
    double audio_from_s;         // from here on
} mel_video_write_options;

// Writes under a temporary name (.NAME.partial-PID-N.EXT) in the folder of path; finish renames it. PNG and JPEG take a
// path with one %d or %04d for a sequence (numbers from 1), else hold one frame. Checks what it can at once: that the
// path is writable, the options valid, the encoder there. On failure nothing is left behind and *out is untouched.
MEL_API mel_status mel_video_writer_open(
    const char *path, const mel_video_write_options *options, mel_video_writer **out, mel_error *err);
// One frame [H, W, 3] or a clip [T, H, W, 3]; all of one size. After a failure only abort is of use.
// MEL_EINVAL: a wrong shape or size (the message shows both). MEL_EIO: no space, write error. MEL_ECANCELED.
MEL_API mel_status mel_video_writer_write(mel_video_writer *writer, const mel_tensor *frames, mel_error *err);
MEL_API int64_t mel_video_writer_frames(const mel_video_writer *writer); // written so far
// Completes the file, renames it and frees the writer, also on failure (the temporary file is then removed).
// MEL_EINVAL: no frames were written.
MEL_API mel_status mel_video_writer_finish(mel_video_writer *writer, mel_error *err);
// Removes the temporary file and frees the writer. NULL is fine.
MEL_API void mel_video_writer_abort(mel_video_writer *writer);

// ---- images -------------------------------------------------------------------------------
// The image (or the first frame of a video) as u8 [H, W, 3]. An alpha channel is dropped; a JPEG's Exif orientation is
// honoured where it is a turn.
MEL_API mel_status mel_image_read(const char *path, mel_tensor **out, mel_error *err);
// One image [H, W, 3]; PNG, JPEG, WebP or GIF. options may be NULL.
MEL_API mel_status mel_image_write(
    const char *path, const mel_tensor *image, const mel_video_write_options *options, mel_error *err);

// ---- pixels -------------------------------------------------------------------------------
// Any shape. u8: round(255 * clamp(x, 0, 1)), halves up. f32: x / 255.
MEL_API mel_status mel_pixels_to_u8(const mel_tensor *x, mel_tensor **out, mel_error *err);
MEL_API mel_status mel_pixels_to_f32(const mel_tensor *x, mel_tensor **out, mel_error *err);

// Zeros mean: the default.
typedef struct mel_contact_sheet_options {
    int32_t columns;           // ceil(sqrt(count))
    double scale;              // of the frames: 1; whole numbers repeat pixels, others average areas
    bool gap_set;              // gap counts (0 is a valid value)
    int32_t gap;               // pixels between and around the cells: 8
    const char *const *labels; // count texts under the cells, or NULL; each may be NULL, then the label before it in
                               // the row may run on. ASCII; other characters show as ?
    int32_t label_scale;       // letters are 5 x 7 pixels times this, 1..8; by the cell's width
} mel_contact_sheet_options;
// Lays count frames [H, W, 3] (any sizes, each centred in a cell of the largest) out in rows on a dark ground:
// u8 [H', W', 3].
MEL_API mel_status mel_contact_sheet(int32_t count, const mel_tensor *const *frames,
    const mel_contact_sheet_options *options, mel_tensor **out, mel_error *err);

#endif
