// The row kernels for this processor, and strided walks over tensors a row at a time.
#ifndef MELIES_CORE_ROWS_H
#define MELIES_CORE_ROWS_H

#include "kernels/rows.h"
#include "tensor/tensor.h"

const row_kernels *mel_rows(void);

// Reads n elements `stride` apart from src as floats. dst is dense.
void mel_load_strided(mel_dtype dtype, const char *src, int64_t stride, float *dst, int64_t n);

// A walk over all rows (last axis) of a shape, for up to 4 operands with strides of their own.
typedef struct mel_walk {
    int ndim;
    int64_t shape[MEL_MAX_DIMS];
    int64_t strides[4][MEL_MAX_DIMS];
    int64_t rows, width; // product of all but the last dimension; the last
} mel_walk;
void mel_walk_init(mel_walk *w, int ndim, const int64_t *shape);
// Merges neighbouring axes that are dense in all `count` operands, so that rows get long.
void mel_walk_merge(mel_walk *w, int count);
// Element offset of operand k at a row.
int64_t mel_walk_offset(const mel_walk *w, int k, int64_t row);

#endif
