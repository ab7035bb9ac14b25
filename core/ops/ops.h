// Shared by the operations.
#ifndef MELIES_CORE_OPS_H
#define MELIES_CORE_OPS_H

#include "base/span.h"
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
// The kernels for products of operands in `dtype` (f32 or bf16) on this processor; their pairs tell which they take.
const struct attention_kernels *mel_product_kernels(mel_dtype dtype);
int64_t mel_product_pairs(mel_dtype dtype); // 2: bf16 operands, 1: f32
// Writes one dense row of `depth` operands as column `column` of a panel `columns` wide.
void mel_pack_column(int64_t pairs, const void *row, int64_t depth, void *panel, int64_t columns, int64_t column);
// y[m][n] = act(x w^T + bias) with w [n, k] read from a source, for few rows x (dense, in the kernels' operand type).
mel_status mel_skinny_product(const mel_source *w, mel_dtype operand, const void *x, int64_t m, const float *bias,
    mel_act act, mel_dtype dtype, void *y, mel_error *err);
mel_status mel_need_float(const mel_tensor *x, const char *what, mel_error *err);

#endif
