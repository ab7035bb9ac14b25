// Shared by the operations.
#ifndef MELIES_CORE_OPS_H
#define MELIES_CORE_OPS_H

#include "tensor/rows.h"
#include <melies/ops.h>

enum {
    MEL_PARALLEL_FROM = 1 << 15
}; // elements under which one thread does it all

// The output dtype asked for: MEL_SAME is x's; only floats are taken.
mel_status mel_out_dtype(const mel_tensor *x, mel_dtype asked, const char *what, mel_dtype *out, mel_error *err);
// A float tensor as a dense f32 vector of exactly n values; *out is NULL for a NULL t.
mel_status mel_vector(
    const mel_tensor *t, int64_t n, const char *what, const char *name, mel_tensor **out, mel_error *err);
mel_status mel_need_float(const mel_tensor *x, const char *what, mel_error *err);

#endif
