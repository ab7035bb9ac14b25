// The door to oneDNN: included by core/ops/dnnl*.c only. Everything that differs between its 2.x and 3.x
// interfaces is in dnnl_door.c.
#ifndef MELIES_DNNL_DOOR_H
#define MELIES_DNNL_DOOR_H

#include "ops/ops.h"

#include <oneapi/dnnl/dnnl.h>

// A primitive with its memories made, ready to run again and again. Not for two threads at once.
typedef struct door_op {
    dnnl_primitive_t primitive;
    dnnl_memory_t src, weights, bias, dst, scratch;
    dnnl_memory_desc_t weights_desc; // as the primitive wants it
    size_t scratch_bytes;
    bool small; // one thread is enough
} door_op;

typedef struct door_matmul_spec {
    int64_t batch, m, n, k;
    bool batch_a, batch_b; // false: one matrix for all
    mel_dtype a, b, c;
    const dnnl_memory_desc_t *weights; // packed layout, or NULL
    bool pack;                         // let oneDNN choose the layout of b
    bool transpose_b;                  // plain b is [N, K]
    bool bias;                         // f32 [N]
    mel_act act;
    double alpha;
} door_matmul_spec;

typedef struct door_conv_spec {
    int nspatial; // 2 or 3
    int64_t n, ic, oc, groups;
    int64_t in[3], out[3], kernel[3], stride[3], before[3], after[3];
    mel_dtype src, weights, dst;
    bool bias;
    mel_act act;
} door_conv_spec;

mel_status door_check(dnnl_status_t status, const char *what, mel_error *err);
mel_status door_engine(dnnl_engine_t *engine, dnnl_stream_t *stream, mel_error *err);
dnnl_data_type_t door_type(mel_dtype dtype);
mel_status door_matmul(const door_matmul_spec *spec, door_op *op, mel_error *err);
mel_status door_conv(const door_conv_spec *spec, door_op *op, mel_error *err);
mel_status door_run(door_op *op, const void *src, const void *weights, const float *bias, void *dst, mel_error *err);
void door_free(door_op *op);
// Moves plain weights (strides in elements) into the layout that the primitive wants.
mel_status door_pack(
    const dnnl_memory_desc_t *plain, const void *data, const dnnl_memory_desc_t *packed, void **out, mel_error *err);
// Plain [.., N, K] weights of a linear layer as the [K, N] that a matmul reads.
mel_status door_plain_weights(int64_t k, int64_t n, mel_dtype dtype, dnnl_memory_desc_t *out, mel_error *err);
// A number that says a layout: sizes, strides and blocks, oneDNN's version and the instruction set.
uint64_t door_layout(const dnnl_memory_desc_t *desc);
mel_status door_plain_conv_weights(const door_conv_spec *spec, dnnl_memory_desc_t *out, mel_error *err);

#endif
