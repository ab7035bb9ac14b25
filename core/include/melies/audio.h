// Sound: a streaming reader of any file FFmpeg reads, sound put beside a finished film's pictures, and the two sums
// over samples that analysis is made of. Samples are f32 [N, C], C = 1 or 2, full scale -1..1. Handles are used by one
// thread at a time. Messages name the file. Paths name files only, never network addresses.
#ifndef MELIES_AUDIO_H
#define MELIES_AUDIO_H

#include <melies/tensor.h>

// ---- reading ------------------------------------------------------------------------------
typedef struct mel_audio_reader mel_audio_reader;

// Zeros (or a NULL pointer) mean: as in the file.
typedef struct mel_audio_read_options {
    int32_t rate;     // samples a second, 1000..384000
    int32_t channels; // 1 or 2. As in the file is 2 where it has more. 1 is the mean of two; 2 of a mono file are alike
} mel_audio_read_options;

typedef struct mel_audio_info {
    int32_t rate, channels; // of the samples that the reader gives
    int32_t source_rate, source_channels;
    double duration_s; // that the file states; -1 where it does not
    char codec[32], container[64];
} mel_audio_info;

// On success *out is owned by the caller (mel_audio_reader_close); on failure *out is untouched.
// MEL_EIO: the file cannot be opened. MEL_EFORMAT: holds no sound, or is cut short. MEL_EUNSUPPORTED: no decoder.
MEL_API mel_status mel_audio_reader_open(
    const char *path, const mel_audio_read_options *options, mel_audio_reader **out, mel_error *err);
MEL_API void mel_audio_reader_close(mel_audio_reader *reader); // NULL is fine
MEL_API void mel_audio_reader_info(const mel_audio_reader *reader, mel_audio_info *out);
// The next samples [n, C], n = count but at the end of the file, owned by the caller; *out = NULL with MEL_OK at the
// end. Time 0 is that of the file's pictures, or of its sound where it has none. MEL_EFORMAT: damaged or cut short
// (single packets that do not decode are left out, 16 of them at most). MEL_EINVAL: count is not 1..2^24.
// MEL_ECANCELED.
MEL_API mel_status mel_audio_reader_next(mel_audio_reader *reader, int64_t count, mel_tensor **out, mel_error *err);

// ---- sound beside pictures ------------------------------------------------------------------
// Whether a file of this name, or of this format ("mp4", "webm") where that is not NULL, can hold pictures and sound.
MEL_API bool mel_audio_fits(const char *path, const char *format);
// The film at video_path with the sound of audio_path, from from_s on, as a new file at out_path (not video_path),
// which appears when it is whole. The pictures are copied as they are, with the metadata; sound they had is left out.
// The sound lasts as long as the pictures: cut off there, or followed by silence. It is copied where it can be (from_s
// = 0, long enough, AAC or MP3 into MP4, Opus or Vorbis into WebM), else made to AAC or Opus. MEL_EINVAL: a format that
// holds no sound; from_s is negative. MEL_EFORMAT, MEL_EIO, MEL_ECANCELED as above.
MEL_API mel_status mel_audio_add(
    const char *video_path, const char *audio_path, double from_s, const char *out_path, mel_error *err);

// ---- sums for analysis ----------------------------------------------------------------------
// |X|^2 of windows of samples [N, 1]: [count, window / 2 + 1] f32. Window i begins at sample first + i * hop (first may
// be negative), is weighted with a periodic Hann window scaled to a sum of 2, so that a sine of amplitude a on a bin
// gives a^2 there; samples outside are 0. window: a power of two, 32..65536. MEL_EINVAL otherwise.
MEL_API mel_status mel_power_spectrum(const mel_tensor *samples, int64_t first, int32_t window, int32_t hop,
    int64_t count, mel_tensor **out, mel_error *err);

// Filters of two channels; zeros at the beginning.
typedef struct mel_k_state {
    double z[2][4];
} mel_k_state;
// Mean squares of K-weighted samples [N, C] at 48000 Hz (Rec. ITU-R BS.1770-4, annex 1, tables 1 and 2), summed over
// the channels, in blocks: [N / block] f32. N is a multiple of block. State goes on from call to call.
MEL_API mel_status mel_k_power(
    const mel_tensor *samples, int32_t block, mel_k_state *state, mel_tensor **out, mel_error *err);

#endif
