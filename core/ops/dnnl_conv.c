// Convolutions, channels last.
#include "ops/dnnl_door.h"

#include <string.h>

enum {
    OPS_KEPT = 8
};

typedef struct cached_conv {
    door_conv_spec spec;
    uint64_t used;
    door_op op;
    int packed; // which of the layer's packed weights
} cached_conv;

typedef struct packed_weights {
    dnnl_memory_desc_t desc;
    void *data;
} packed_weights;

struct mel_conv {
    door_conv_spec base; // what does not depend on the input
    mel_tensor *weights; // plain, in compute dtype: other input sizes may want another layout
    float *bias;
    uint64_t clock;
    packed_weights packed[OPS_KEPT];
    cached_conv ops[OPS_KEPT];
};

void mel_conv_free(mel_conv *layer) {
    if (!layer) return;
    for (int i = 0; i < OPS_KEPT; i++) {
        door_free(&layer->ops[i].op);
        mel_free(layer->packed[i].data);
    }
    mel_tensor_unref(layer->weights);
    mel_free(layer->bias);
    mel_free(layer);
}

mel_status mel_conv_create(const mel_tensor *weight, const mel_tensor *bias, const int64_t *stride,
    const int64_t *pad_before, const int64_t *pad_after, int64_t groups, mel_dtype compute, mel_conv **out,
    mel_error *err) {
    char shape[128];
    mel_tensor_shape_text(weight, shape, sizeof shape);
    int sp = weight->ndim - 2;
    if (!mel_is_float(weight->dtype) || sp < 2 || sp > 3 || mel_tensor_numel(weight) == 0)
        return mel_fail(err, MEL_EINVAL, "conv: the weight is %s %s, floats [O, I/groups, (kT,) kH, kW] are wanted",
            mel_dtype_name(weight->dtype), shape);
    int64_t oc = weight->shape[0];
    if (groups < 1 || oc % groups)
        return mel_fail(err, MEL_EINVAL, "conv: %lld groups do not divide the weight %s", (long long)groups, shape);
    mel_dtype dtype = compute == MEL_SAME ? mel_compute() : compute;
    if (dtype != MEL_F32 && dtype != MEL_BF16)
        return mel_fail(err, MEL_EINVAL, "conv: compute in f32 or bf16, not %s", mel_dtype_name(dtype));
    for (int i = 0; i < sp; i++)
        if (stride[i] < 1 || pad_before[i] < 0 || pad_after[i] < 0 || stride[i] > 1024 || pad_before[i] > 1024 ||
            pad_after[i] > 1024)
            return mel_fail(err, MEL_EINVAL, "conv: stride %lld, padding %lld and %lld in dimension %d",
                (long long)stride[i], (long long)pad_before[i], (long long)pad_after[i], i + 1);
    mel_conv *layer = mel_alloc_zero(sizeof *layer, err);
    if (!layer) return MEL_ENOMEM;
    door_conv_spec *b = &layer->base;
    b->nspatial = sp;
    b->ic = weight->shape[1] * groups;
    b->oc = oc;
    b->groups = groups;
    b->src = b->weights = dtype;
    for (int i = 0; i < sp; i++) {
        b->kernel[i] = weight->shape[2 + i];
        b->stride[i] = stride[i];
        b->before[i] = pad_before[i];
        b->after[i] = pad_after[i];
    }
    mel_tensor *vector = NULL, *cast = NULL;
    mel_status s = mel_vector(bias, oc, "conv", "bias", &vector, err);
    if (!s && vector) {
        layer->bias = mel_alloc((size_t)oc * 4, err);
        if (layer->bias)
            memcpy(layer->bias, vector->data, (size_t)oc * 4);
        else
            s = MEL_ENOMEM;
        b->bias = true;
    }
    mel_tensor_unref(vector);
    if (!s) s = mel_tensor_cast(weight, dtype, &cast, err);
    // A view of a file would go on reading it: weights are kept as a copy.
    if (!s && cast->storage == weight->storage) {
        s = mel_tensor_clone(cast, &layer->weights, err);
        mel_tensor_unref(cast);
    } else {
        layer->weights = cast;
    }
    if (s)
        mel_conv_free(layer);
    else
        *out = layer;
    return s;
}

// The weights in the layout of op: packed on first need, shared by all operations that want the same.
static mel_status weights_for(mel_conv *layer, const door_op *op, int *out, mel_error *err) {
    int free_slot = -1;
    for (int i = 0; i < OPS_KEPT; i++) {
        if (!layer->packed[i].data) {
            if (free_slot < 0) free_slot = i;
        } else if (dnnl_memory_desc_equal(&layer->packed[i].desc, &op->weights_desc)) {
            *out = i;
            return MEL_OK;
        }
    }
    if (free_slot < 0) { // drop one that no cached operation uses: there are as many slots as operations
        bool used[OPS_KEPT] = {false};
        for (int i = 0; i < OPS_KEPT; i++)
            if (layer->ops[i].op.primitive) used[layer->ops[i].packed] = true;
        for (int i = 0; i < OPS_KEPT; i++)
            if (!used[i]) free_slot = i;
        if (free_slot < 0) return mel_fail(err, MEL_EINTERNAL, "conv: no slot for packed weights");
        mel_free(layer->packed[free_slot].data);
        layer->packed[free_slot].data = NULL;
    }
    dnnl_memory_desc_t plain;
    mel_status s = door_plain_conv_weights(&layer->base, &plain, err);
    if (!s) s = door_pack(&plain, layer->weights->data, &op->weights_desc, &layer->packed[free_slot].data, err);
    if (s) return s;
    layer->packed[free_slot].desc = op->weights_desc;
    *out = free_slot;
    return MEL_OK;
}

static mel_status find_op(mel_conv *layer, const door_conv_spec *spec, cached_conv **out, mel_error *err) {
    cached_conv *victim = &layer->ops[0];
    for (int i = 0; i < OPS_KEPT; i++) {
        cached_conv *c = &layer->ops[i];
        // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): specs are copied with their padding
        if (c->op.primitive && memcmp(&c->spec, spec, sizeof *spec) == 0) {
            c->used = ++layer->clock;
            *out = c;
            return MEL_OK;
        }
        if (c->used < victim->used) victim = c;
    }
    door_free(&victim->op);
    victim->used = 0;
    door_op op;
    int packed = 0;
    mel_status s = door_conv(spec, &op, err);
    if (s) return s;
    s = weights_for(layer, &op, &packed, err);
    if (s) {
        door_free(&op);
        return s;
    }
    memcpy(&victim->spec, spec, sizeof *spec);
    victim->op = op;
    victim->packed = packed;
    victim->used = ++layer->clock;
    *out = victim;
    return MEL_OK;
}

mel_status mel_conv_run(
    mel_conv *layer, const mel_tensor *x, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    char shape[128], wshape[128];
    mel_dtype dst;
    const int sp = layer->base.nspatial;
    MEL_SPAN("conv");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_out_dtype(x, dtype, "conv", &dst, err);
    if (s) return s;
    if (x->ndim != sp + 2 || x->shape[sp + 1] != layer->base.ic)
        return mel_fail(err, MEL_EINVAL, "conv: x is %s, weight is %s with %lld groups",
            mel_tensor_shape_text(x, shape, sizeof shape), mel_tensor_shape_text(layer->weights, wshape, sizeof wshape),
            (long long)layer->base.groups);
    if ((unsigned)act > MEL_ACT_SIGMOID) return mel_fail(err, MEL_EINVAL, "conv: unknown activation %d", (int)act);
    door_conv_spec spec;
    memcpy(&spec, &layer->base, sizeof spec); // with its padding bytes: specs are compared as bytes
    spec.n = x->shape[0];
    spec.act = act;
    int64_t out_shape[5] = {x->shape[0]};
    for (int i = 0; i < sp; i++) {
        spec.in[i] = x->shape[1 + i];
        int64_t room = spec.in[i] + spec.before[i] + spec.after[i] - spec.kernel[i];
        if (room < 0)
            return mel_fail(err, MEL_EINVAL, "conv: x is %s, smaller than the kernel of %s",
                mel_tensor_shape_text(x, shape, sizeof shape),
                mel_tensor_shape_text(layer->weights, wshape, sizeof wshape));
        spec.out[i] = out_shape[1 + i] = room / spec.stride[i] + 1;
    }
    double flop = 2.0 * (double)spec.n * (double)spec.oc * (double)(spec.ic / spec.groups);
    for (int i = 0; i < sp; i++)
        flop *= (double)(spec.out[i] * spec.kernel[i]);
    MEL_FLOP(flop);
    out_shape[sp + 1] = spec.oc;
    mel_dtype run = dst == MEL_F16 || (dst == MEL_BF16 && spec.src == MEL_F32) ? MEL_F32 : dst;
    spec.dst = run;
    mel_tensor *src = NULL, *y = NULL;
    cached_conv *op;
    // oneDNN wants the padding after to agree with the output size exactly.
    for (int i = 0; i < sp; i++)
        spec.after[i] = (spec.out[i] - 1) * spec.stride[i] + spec.kernel[i] - spec.in[i] - spec.before[i];
    s = mel_tensor_create(run, sp + 2, out_shape, &y, err);
    if (!s && mel_tensor_numel(y) > 0) {
        s = mel_tensor_cast(x, spec.src, &src, err);
        if (!s) s = find_op(layer, &spec, &op, err);
        if (!s) s = door_run(&op->op, src->data, layer->packed[op->packed].data, layer->bias, y->data, err);
    }
    mel_tensor_unref(src);
    if (!s) s = mel_tensor_cast(y, dst, out, err); // y itself where run is dst
    mel_tensor_unref(y);
    return s;
}
