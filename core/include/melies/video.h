// What passes and checks of films stand on: dense optical flow, moving pixels along it, Lab colours, blur.
// Frames are [H, W, 3] RGB, u8 or floats in 0..1. Flow is f32 [H, W, 2], (x, y) in pixels: for flow(a, b), b at
// (x + flow_x, y + flow_y) looks like a at (x, y). Results are the same to the bit for any number of threads.
// Every *out is a new tensor owned by the caller, and untouched on failure. MEL_EINVAL names the shapes; MEL_ENOMEM;
// MEL_ECANCELED.
#ifndef MELIES_VIDEO_H
#define MELIES_VIDEO_H

#include <melies/tensor.h>

// Zeros (or a NULL pointer) mean: the default.
typedef struct mel_flow_options {
    int32_t finest;     // the finest level of the pyramid, plus 1: 1 is every pixel, 2 every second (four times faster)
                        // and so on; default: 1 for frames of less than 256 pixels on the short side, else 2
    int32_t iterations; // of inverse search for each patch: 12
    int32_t refine;     // refinements of the whole field on each level: 2; -1: none
    double smoothness;  // weight of smoothness against the data: 1
} mel_flow_options;

// Dense inverse search on grey pyramids (Kroeger et al. 2016), refined by a robust energy. The difference of the
// frames' mean brightness is taken out first. Not a number counts as black. Sides of 8 pixels at least.
MEL_API mel_status mel_video_flow(
    const mel_tensor *a, const mel_tensor *b, const mel_flow_options *options, mel_tensor **out, mel_error *err);

// out(x, y) = frame(x + flow_x, y + flow_y), bilinear, clamped at the border. frame [H, W, C], u8 or float; out f32 of
// the same scale. Where flow = flow(a, b), warp(b, flow) looks like a.
MEL_API mel_status mel_video_warp(const mel_tensor *frame, const mel_tensor *flow, mel_tensor **out, mel_error *err);

// Where flow can be believed, f32 [H, W] of 0 and 1: |f + b'|^2 <= relative (|f|^2 + |b'|^2) + absolute, where b' is
// `backward` moved by `forward`, and (x, y) + f lies in the frame. Sundaram, Brox, Keutzer (ECCV 2010): 0.01 and 0.5.
MEL_API mel_status mel_video_consistent(const mel_tensor *forward, const mel_tensor *backward, double relative,
    double absolute, mel_tensor **out, mel_error *err);

// The frame at `at` (0..1) on the way from a to b: motion is followed from either side, and what one side does not show
// is taken from the other. forward = flow(a, b), backward = flow(b, a). f32 in 0..1.
MEL_API mel_status mel_video_between(const mel_tensor *a, const mel_tensor *b, const mel_tensor *forward,
    const mel_tensor *backward, double at, mel_tensor **out, mel_error *err);

// The flow that shows a frame through the affine map m: place (x, y) shows what was at
// cx + m[0] (x - cx) + m[1] (y - cy) + m[2], cy + m[3] (x - cx) + m[4] (y - cy) + m[5], (cx, cy) being the centre.
MEL_API mel_status mel_video_affine_flow(
    int64_t height, int64_t width, const double *m, mel_tensor **out, mel_error *err);

// CIE Lab under D65 of sRGB pixels of any shape [..., 3] (IEC 61966-2-1; CIE 15): L in 0..100. f32. And back, clamped
// to 0..1.
MEL_API mel_status mel_video_to_lab(const mel_tensor *rgb, mel_tensor **out, mel_error *err);
MEL_API mel_status mel_video_from_lab(const mel_tensor *lab, mel_tensor **out, mel_error *err);

// Gaussian blur of [H, W, C] with a deviation of sigma pixels, cut at 3 sigma, borders repeated. f32 of the same scale.
MEL_API mel_status mel_video_blur(const mel_tensor *frame, double sigma, mel_tensor **out, mel_error *err);

#endif
