#include "ops/dnnl_door.h"
#include "ops/packed.h"

#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

mel_status door_check(dnnl_status_t status, const char *what, mel_error *err) {
    if (status == dnnl_success) return MEL_OK;
    if (status == dnnl_out_of_memory) return mel_fail(err, MEL_ENOMEM, "%s: oneDNN is out of memory", what);
    if (status == dnnl_unimplemented)
        return mel_fail(err, MEL_EUNSUPPORTED, "%s: oneDNN has no implementation for this case", what);
    return mel_fail(err, MEL_EINTERNAL, "%s: oneDNN failed with status %d", what, (int)status);
}

static struct {
    pthread_once_t once;
    dnnl_status_t status;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
} door = {.once = PTHREAD_ONCE_INIT};

static void open_door(void) {
    mel_threads(); // sets OpenMP's count before oneDNN looks at it
    door.status = dnnl_engine_create(&door.engine, dnnl_cpu, 0);
    if (door.status == dnnl_success)
        door.status = dnnl_stream_create(&door.stream, door.engine, dnnl_stream_default_flags);
}

mel_status door_engine(dnnl_engine_t *engine, dnnl_stream_t *stream, mel_error *err) {
    pthread_once(&door.once, open_door);
    mel_status s = door_check(door.status, "engine", err);
    if (s) return s;
    *engine = door.engine;
    *stream = door.stream;
    return MEL_OK;
}

const char *mel_onednn_version(void) {
    static char text[32];
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, sizeof text, "%d.%d.%d", v->major, v->minor, v->patch);
    return text;
}

dnnl_data_type_t door_type(mel_dtype dtype) {
    switch (dtype) {
    case MEL_F32: return dnnl_f32;
    case MEL_BF16: return dnnl_bf16;
    case MEL_F16: return dnnl_f16;
    case MEL_S8: return dnnl_s8;
    case MEL_U8: return dnnl_u8;
    case MEL_S32: return dnnl_s32;
    default: return dnnl_data_type_undef;
    }
}

static void widen(dnnl_dims_t out, const int64_t *values, int n) {
    memset(out, 0, sizeof(dnnl_dims_t));
    memcpy(out, values, sizeof(int64_t) * (size_t)n);
}

static mel_status strided(
    dnnl_memory_desc_t *md, int n, const int64_t *shape, mel_dtype dtype, const int64_t *strides, mel_error *err) {
    dnnl_dims_t d, t; // oneDNN declares all twelve
    widen(d, shape, n);
    widen(t, strides, n);
    return door_check(dnnl_memory_desc_init_by_strides(md, n, d, door_type(dtype), t), "memory", err);
}

static mel_status any_layout(dnnl_memory_desc_t *md, int n, const int64_t *shape, mel_dtype dtype, mel_error *err) {
    dnnl_dims_t d;
    widen(d, shape, n);
    return door_check(dnnl_memory_desc_init_by_tag(md, n, d, door_type(dtype), dnnl_format_tag_any), "memory", err);
}

// Post-operations: alpha first, then the activation; scratch memory is ours to give.
static mel_status attributes(dnnl_primitive_attr_t *attr, mel_act act, double alpha, mel_error *err) {
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t s = dnnl_primitive_attr_create(attr);
    if (s == dnnl_success) s = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    if (s == dnnl_success) s = dnnl_post_ops_create(&ops);
    if (s == dnnl_success && alpha != 1.0)
        s = dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_linear, (float)alpha, 0.0f);
    if (s == dnnl_success && act != MEL_ACT_NONE) {
        dnnl_alg_kind_t kind = dnnl_alg_kind_undef;
        float a = 0;
        switch (act) {
        case MEL_ACT_SILU: kind = dnnl_eltwise_swish, a = 1.0f; break;
        case MEL_ACT_GELU_TANH: kind = dnnl_eltwise_gelu_tanh; break;
        case MEL_ACT_GELU_ERF: kind = dnnl_eltwise_gelu_erf; break;
        case MEL_ACT_QUICK_GELU: kind = dnnl_eltwise_swish, a = 1.702f; break;
        case MEL_ACT_RELU: kind = dnnl_eltwise_relu; break;
        case MEL_ACT_TANH: kind = dnnl_eltwise_tanh; break;
        default: kind = dnnl_eltwise_logistic; break;
        }
        s = dnnl_post_ops_append_eltwise(ops, 1.0f, kind, a, 0.0f);
    }
    if (s == dnnl_success) s = dnnl_primitive_attr_set_post_ops(*attr, ops);
    if (ops) dnnl_post_ops_destroy(ops);
    return door_check(s, "attributes", err);
}

// Small operations run on one thread: two would wait for each other longer than they work. The choice depends on the
// shape alone, and holds for making the primitive (which divides the work) and for running it.
static const double SMALL_FLOP = 8e6;

static void set_threads(const door_op *op) {
    if (op->small) omp_set_num_threads(1);
}

static void reset_threads(const door_op *op) {
    if (op->small) omp_set_num_threads(mel_threads());
}

// The operation described, made; its memories get their data when it runs.
static mel_status finish(
    const_dnnl_op_desc_t desc, mel_act act, double alpha, bool bias, const char *what, door_op *op, mel_error *err) {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    mel_status s = door_engine(&engine, &stream, err);
    if (!s) s = attributes(&attr, act, alpha, err);
    set_threads(op);
    if (!s) s = door_check(dnnl_primitive_desc_create(&pd, desc, attr, engine, NULL), what, err);
    if (!s) s = door_check(dnnl_primitive_create(&op->primitive, pd), what, err);
    reset_threads(op);
    if (!s) {
        op->weights_desc = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        op->scratch_bytes = dnnl_memory_desc_get_size(scratch);
        struct {
            dnnl_memory_t *memory;
            const dnnl_memory_desc_t *desc;
        } make[] = {{&op->src, dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0)},
            {&op->weights, &op->weights_desc}, {&op->dst, dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0)},
            {&op->scratch, scratch},
            {&op->bias, bias ? dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1) : NULL}};
        for (size_t i = 0; i < sizeof make / sizeof *make && !s; i++)
            if (make[i].desc)
                s = door_check(
                    dnnl_memory_create(make[i].memory, make[i].desc, engine, DNNL_MEMORY_NONE), "memory", err);
    }
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    if (s) door_free(op);
    return s;
}

mel_status door_matmul(const door_matmul_spec *spec, door_op *op, mel_error *err) {
    memset(op, 0, sizeof *op);
    op->small = 2.0 * (double)spec->batch * (double)spec->m * (double)spec->n * (double)spec->k < SMALL_FLOP;
    int64_t ba = spec->batch_a ? spec->batch : 1, bb = spec->batch_b ? spec->batch : 1;
    bool flat = spec->batch == 1;
    int nd = flat ? 2 : 3, o = flat ? 1 : 0;
    int64_t m = spec->m, n = spec->n, k = spec->k;
    int64_t sa[] = {ba, m, k}, sb[] = {bb, k, n}, sc[] = {spec->batch, m, n}, sbias[] = {1, 1, n};
    int64_t ta[] = {m * k, k, 1}, tc[] = {m * n, n, 1}, tbias[] = {n, n, 1};
    int64_t tb[] = {k * n, spec->transpose_b ? 1 : n, spec->transpose_b ? k : 1};
    dnnl_memory_desc_t src, weights, dst, bias;
    mel_status s = strided(&src, nd, sa + o, spec->a, ta + o, err);
    if (!s && spec->weights)
        weights = *spec->weights;
    else if (!s && spec->pack)
        s = any_layout(&weights, nd, sb + o, spec->b, err);
    else if (!s)
        s = strided(&weights, nd, sb + o, spec->b, tb + o, err);
    if (!s) s = strided(&dst, nd, sc + o, spec->c, tc + o, err);
    if (!s && spec->bias) s = strided(&bias, nd, sbias + o, MEL_F32, tbias + o, err);
    if (s) return s;
    dnnl_matmul_desc_t desc;
    s = door_check(dnnl_matmul_desc_init(&desc, &src, &weights, spec->bias ? &bias : NULL, &dst), "matmul", err);
    if (s) return s;
    return finish(&desc, spec->act, spec->alpha, spec->bias, "matmul", op, err);
}

mel_status door_plain_weights(int64_t k, int64_t n, mel_dtype dtype, dnnl_memory_desc_t *out, mel_error *err) {
    return strided(out, 2, (int64_t[]){k, n}, dtype, (int64_t[]){1, k}, err);
}

// Shapes of a convolution's weights: [G,] O/G, I/G, spatial...
static int conv_weight_shape(const door_conv_spec *spec, int64_t *shape) {
    int n = 0;
    if (spec->groups > 1) shape[n++] = spec->groups;
    shape[n++] = spec->oc / spec->groups;
    shape[n++] = spec->ic / spec->groups;
    for (int i = 0; i < spec->nspatial; i++)
        shape[n++] = spec->kernel[i];
    return n;
}

mel_status door_plain_conv_weights(const door_conv_spec *spec, dnnl_memory_desc_t *out, mel_error *err) {
    int64_t shape[6], strides[6], stride = 1;
    int n = conv_weight_shape(spec, shape);
    for (int i = n - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= shape[i];
    }
    return strided(out, n, shape, spec->weights, strides, err);
}

mel_status door_conv(const door_conv_spec *spec, door_op *op, mel_error *err) {
    memset(op, 0, sizeof *op);
    int sp = spec->nspatial, nd = sp + 2;
    // Logical order N, C, spatial; memory order N, spatial, C.
    int64_t in[5] = {spec->n, spec->ic}, out[5] = {spec->n, spec->oc}, tin[5], tout[5], wshape[6];
    int64_t step_in = spec->ic, step_out = spec->oc;
    int64_t inputs = spec->ic / spec->groups; // of one output
    double flop = 2.0 * (double)spec->n * (double)spec->oc * (double)inputs;
    for (int i = 0; i < sp; i++)
        flop *= (double)(spec->out[i] * spec->kernel[i]);
    op->small = flop < SMALL_FLOP;
    tin[1] = tout[1] = 1;
    for (int i = sp - 1; i >= 0; i--) {
        in[2 + i] = spec->in[i];
        out[2 + i] = spec->out[i];
        tin[2 + i] = step_in;
        tout[2 + i] = step_out;
        step_in *= spec->in[i];
        step_out *= spec->out[i];
    }
    tin[0] = step_in;
    tout[0] = step_out;
    dnnl_memory_desc_t src, weights, dst, bias;
    mel_status s = strided(&src, nd, in, spec->src, tin, err);
    int wn = conv_weight_shape(spec, wshape);
    if (!s) s = any_layout(&weights, wn, wshape, spec->weights, err);
    if (!s) s = strided(&dst, nd, out, spec->dst, tout, err);
    if (!s) s = strided(&bias, 1, &spec->oc, MEL_F32, (int64_t[]){1}, err);
    if (s) return s;
    dnnl_convolution_desc_t desc;
    dnnl_dims_t stride, before, after;
    widen(stride, spec->stride, sp);
    widen(before, spec->before, sp);
    widen(after, spec->after, sp);
    s = door_check(dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct, &src,
                       &weights, spec->bias ? &bias : NULL, &dst, stride, before, after),
        "conv", err);
    if (s) return s;
    return finish(&desc, spec->act, 1.0, spec->bias, "conv", op, err);
}

mel_status door_run(door_op *op, const void *src, const void *weights, const float *bias, void *dst, mel_error *err) {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    mel_status s = door_engine(&engine, &stream, err);
    if (s) return s;
    void *scratch = NULL;
    if (op->scratch_bytes && !(scratch = mel_alloc(op->scratch_bytes, err))) return MEL_ENOMEM;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, op->src}, {DNNL_ARG_WEIGHTS, op->weights}, {DNNL_ARG_DST, op->dst},
        {DNNL_ARG_SCRATCHPAD, op->scratch}, {DNNL_ARG_BIAS, op->bias}};
    dnnl_status_t d = dnnl_memory_set_data_handle(op->src, (void *)src);
    if (d == dnnl_success) d = dnnl_memory_set_data_handle(op->weights, (void *)weights);
    if (d == dnnl_success) d = dnnl_memory_set_data_handle(op->dst, dst);
    if (d == dnnl_success) d = dnnl_memory_set_data_handle(op->scratch, scratch);
    if (d == dnnl_success && op->bias) d = dnnl_memory_set_data_handle(op->bias, (void *)bias);
    set_threads(op);
    if (d == dnnl_success) d = dnnl_primitive_execute(op->primitive, stream, op->bias ? 5 : 4, args);
    if (d == dnnl_success) d = dnnl_stream_wait(stream);
    reset_threads(op);
    mel_free(scratch);
    return door_check(d, "run", err);
}

void door_free(door_op *op) {
    dnnl_memory_t memories[] = {op->src, op->weights, op->bias, op->dst, op->scratch};
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++)
        if (memories[i]) dnnl_memory_destroy(memories[i]);
    if (op->primitive) dnnl_primitive_destroy(op->primitive);
    memset(op, 0, sizeof *op);
}

mel_status door_pack(
    const dnnl_memory_desc_t *plain, const void *data, const dnnl_memory_desc_t *packed, void **out, mel_error *err) {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    mel_status s = door_engine(&engine, &stream, err);
    if (s) return s;
    void *block = mel_alloc(dnnl_memory_desc_get_size(packed), err);
    if (!block) return MEL_ENOMEM;
    dnnl_status_t d = dnnl_memory_create(&from, plain, engine, (void *)data);
    if (d == dnnl_success) d = dnnl_memory_create(&to, packed, engine, block);
    if (d == dnnl_success) d = dnnl_reorder_primitive_desc_create(&pd, plain, engine, packed, engine, NULL);
    if (d == dnnl_success) d = dnnl_primitive_create(&reorder, pd);
    if (d == dnnl_success) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
        d = dnnl_primitive_execute(reorder, stream, 2, args);
    }
    if (d == dnnl_success) d = dnnl_stream_wait(stream);
    if (reorder) dnnl_primitive_destroy(reorder);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (to) dnnl_memory_destroy(to);
    if (from) dnnl_memory_destroy(from);
    if (d == dnnl_success)
        *out = block;
    else
        mel_free(block);
    return door_check(d, "packing weights", err);
}

uint64_t door_layout(const dnnl_memory_desc_t *desc) {
    const dnnl_blocking_desc_t *b = &desc->format_desc.blocking;
    const size_t n = sizeof(int64_t) * (size_t)desc->ndims, blocks = sizeof(int64_t) * (size_t)b->inner_nblks;
    const int64_t fields[] = {desc->ndims, (int64_t)desc->data_type, (int64_t)desc->format_kind, desc->offset0,
        b->inner_nblks, (int64_t)desc->extra.flags, (int64_t)mel_cpu_isa()};
    uint64_t h = mel_packed_mix(0, fields, sizeof fields);
    h = mel_packed_mix(h, desc->dims, n);
    h = mel_packed_mix(h, desc->padded_dims, n);
    h = mel_packed_mix(h, desc->padded_offsets, n);
    h = mel_packed_mix(h, b->strides, n);
    h = mel_packed_mix(h, b->inner_blks, blocks);
    h = mel_packed_mix(h, b->inner_idxs, blocks);
    return mel_packed_mix(h, mel_onednn_version(), strlen(mel_onednn_version()));
}
