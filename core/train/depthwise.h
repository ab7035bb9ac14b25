// Depthwise convolutions' weights without oneDNN, which takes some twenty times as long for them in bf16.
#ifndef MELIES_CORE_DEPTHWISE_H
#define MELIES_CORE_DEPTHWISE_H

#include "ops/backward.h"

bool mel_depthwise_fits(const mel_conv_geometry *g);
// As mel_conv_train with MEL_CONV_WEIGHTS.
mel_status mel_depthwise_weights(
    const mel_conv_geometry *g, const void *src, const void *dst, float *weights, mel_error *err);

#endif
