// Shared by the files of core/video.
#ifndef MELIES_CORE_VIDEO_H
#define MELIES_CORE_VIDEO_H

#include "kernels/flow.h"
#include "tensor/tensor.h"

#include <melies/video.h>

enum {
    VIDEO_PARALLEL_FROM = 16384 // pixels
};

const flow_kernels *video_kernels(void);

// x as dense f32, to be unreffed. rank: its dimensions; last: size of the last one, 0: any. Sides from 1 to 32768.
mel_status video_floats(
    const mel_tensor *x, int rank, int64_t last, const char *what, const char *name, mel_tensor **out, mel_error *err);
// The same, and its first two dimensions are those of `like`.
mel_status video_floats_like(const mel_tensor *x, const mel_tensor *like, int64_t last, const char *what,
    const char *name, mel_tensor **out, mel_error *err);

#endif
