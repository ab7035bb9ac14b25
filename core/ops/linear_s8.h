// The 8-bit form of a linear layer.
#ifndef MELIES_CORE_LINEAR_S8_H
#define MELIES_CORE_LINEAR_S8_H

#include "ops/ops.h"

typedef struct linear_s8 linear_s8;
// smooth: columns values > 0 or NULL; weights are multiplied and activations divided by them before they are rounded.
// rotate: a block size (mel_linear_create_s8) or 0.
mel_status mel_s8_create(
    const mel_source *source, const float *smooth, int64_t rotate, linear_s8 **out, mel_error *err);
void mel_s8_free(linear_s8 *layer); // NULL is fine
int64_t mel_s8_bytes(const linear_s8 *layer);
// What the layer keeps as one piece of mel_s8_packed_bytes bytes, and a layer that reads such a piece where it lies.
// form: mel_s8_form of the layer that was stored; MEL_EFORMAT where there is none such.
int64_t mel_s8_form(const linear_s8 *layer);
int64_t mel_s8_packed_bytes(int64_t n, int64_t k, int64_t form);
uint64_t mel_s8_layout(int64_t n, int64_t k);
void mel_s8_store(const linear_s8 *layer, char *to);
mel_status mel_s8_map(int64_t n, int64_t k, int64_t form, const char *from, linear_s8 **out, mel_error *err);
// y [m, n] = act(x W^T + bias) from dense float rows x [m, k].
mel_status mel_s8_run(const linear_s8 *layer, const mel_tensor *x, int64_t m, const float *bias, mel_act act,
    mel_dtype dtype, void *y, mel_error *err);

#endif
