// Any filter of FFmpeg over frames, by its string: "hqdn3d", "eq=saturation=1.2,vignette", "split[a][b];[a][b]hstack".
#ifndef MELIES_FILTER_H
#define MELIES_FILTER_H

#include <melies/tensor.h>

typedef struct mel_filter_graph mel_filter_graph;

// A graph of video filters with one input and one output, for RGB frames of this size and rate.
// On success *out is owned by the caller (mel_filter_graph_close); on failure *out is untouched.
// MEL_EINVAL: a wrong string (the message has FFmpeg's words), or a filter that reads files or addresses.
MEL_API mel_status mel_filter_graph_open(const char *filters, int32_t width, int32_t height, int32_t fps_num,
    int32_t fps_den, mel_filter_graph **out, mel_error *err);
MEL_API void mel_filter_graph_close(mel_filter_graph *graph); // NULL is fine
// Size and rate of what comes out; the rate is 0/1 where it is not constant.
MEL_API void mel_filter_graph_size(
    const mel_filter_graph *graph, int32_t *width, int32_t *height, int32_t *fps_num, int32_t *fps_den);
// One frame [H, W, 3], u8 or f32 in 0..1, in; NULL ends the stream. MEL_EINVAL: another size, or past the end.
MEL_API mel_status mel_filter_graph_push(mel_filter_graph *graph, const mel_tensor *frame, mel_error *err);
// The next frame u8 [H', W', 3], owned by the caller; *out = NULL with MEL_OK where it wants more frames, or has ended.
MEL_API mel_status mel_filter_graph_pull(mel_filter_graph *graph, mel_tensor **out, mel_error *err);

#endif
