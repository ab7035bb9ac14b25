// Linear layers and matrix products.
#include "ops/dnnl_door.h"
#include "ops/linear_s8.h"
#include "ops/packed.h"

#include <stdatomic.h>
#include <string.h>

// ---- the default dtype of matrix work -------------------------------------------------------------

static atomic_int compute = -1;

mel_dtype mel_compute(void) {
    int c = atomic_load(&compute);
    if (c < 0) {
        c = mel_cpu_isa() >= MEL_ISA_AVX512_BF16 ? MEL_BF16 : MEL_F32;
        atomic_store(&compute, c);
    }
    return (mel_dtype)c;
}

mel_status mel_set_compute(mel_dtype dtype, mel_error *err) {
    if (dtype != MEL_F32 && dtype != MEL_BF16)
        return mel_fail(err, MEL_EINVAL, "compute: f32 or bf16 are possible, not %s", mel_dtype_name(dtype));
    atomic_store(&compute, (int)dtype);
    return MEL_OK;
}

// ---- linear -----------------------------------------------------------------------------------------

enum {
    OPS_KEPT = 8,
    PACK_ROWS = 1024,
    FEW_ROWS = 128 // a lazy layer reads its weights in place up to here
};

typedef struct cached_op {
    int64_t m;
    mel_act act;
    mel_dtype dst;
    uint64_t used;
    door_op op; // primitive NULL: empty
} cached_op;

struct mel_linear {
    int64_t n, k;
    mel_dtype compute;
    dnnl_memory_desc_t desc; // of packed
    void *packed;            // NULL: lazy, the weights are read from source
    mel_tensor *kept;        // in whose memory packed or s8 lies, or NULL
    mel_source *source;
    linear_s8 *s8; // compute is s8: the weights are there
    float *bias;   // or NULL
    uint64_t clock;
    cached_op ops[OPS_KEPT];
};

void mel_linear_free(mel_linear *layer) {
    if (!layer) return;
    for (int i = 0; i < OPS_KEPT; i++)
        door_free(&layer->ops[i].op);
    if (!layer->kept) mel_free(layer->packed);
    mel_source_unref(layer->source);
    mel_s8_free(layer->s8);
    mel_tensor_unref(layer->kept);
    mel_free(layer->bias);
    mel_free(layer);
}

int64_t mel_linear_inputs(const mel_linear *layer) {
    return layer->k;
}
int64_t mel_linear_outputs(const mel_linear *layer) {
    return layer->n;
}

static mel_status linear_op(mel_linear *layer, int64_t m, mel_act act, mel_dtype dst, const dnnl_memory_desc_t *weights,
    door_op *op, mel_error *err) {
    door_matmul_spec spec = {.batch = 1,
        .m = m,
        .n = layer->n,
        .k = layer->k,
        .a = layer->compute,
        .b = layer->compute,
        .c = dst,
        .weights = weights,
        .pack = !weights,
        .bias = layer->bias != NULL,
        .act = act,
        .alpha = 1.0};
    return door_matmul(&spec, op, err);
}

static mel_status new_layer(
    int64_t n, int64_t k, const mel_tensor *bias, mel_dtype compute_in, mel_linear **out, mel_error *err) {
    if (n < 1 || k < 1)
        return mel_fail(err, MEL_EINVAL, "linear: the weight is empty: [%lld, %lld]", (long long)n, (long long)k);
    mel_dtype dtype = compute_in == MEL_SAME ? mel_compute() : compute_in;
    if (dtype != MEL_F32 && dtype != MEL_BF16 && dtype != MEL_S8)
        return mel_fail(err, MEL_EINVAL, "linear: compute in f32, bf16 or s8, not %s", mel_dtype_name(dtype));
    mel_linear *layer = mel_alloc_zero(sizeof *layer, err);
    if (!layer) return MEL_ENOMEM;
    layer->n = n;
    layer->k = k;
    layer->compute = dtype;
    mel_tensor *vector = NULL;
    mel_status s = mel_vector(bias, layer->n, "linear", "bias", &vector, err);
    if (!s && vector) {
        layer->bias = mel_alloc((size_t)layer->n * 4, err);
        if (layer->bias)
            memcpy(layer->bias, vector->data, (size_t)layer->n * 4);
        else
            s = MEL_ENOMEM;
    }
    mel_tensor_unref(vector);
    if (s)
        mel_linear_free(layer);
    else
        *out = layer;
    return s;
}

// All of a source as `dtype`: its own memory where it lies so, else read into *owned.
static mel_status whole(const mel_source *source, mel_dtype dtype, const void **out, void **owned, mel_error *err) {
    enum {
        ROWS = 64
    };
    *owned = NULL;
    if (source->base && source->stored == dtype) {
        *out = source->base;
        return MEL_OK;
    }
    int64_t row = source->columns * mel_dtype_size(dtype), tasks = (source->rows + ROWS - 1) / ROWS;
    char *block = mel_alloc((size_t)(source->rows * row), err);
    if (!block) return MEL_ENOMEM;
    mel_status status = MEL_OK;
    mel_error first = {0};
#pragma omp parallel for schedule(dynamic) num_threads(mel_threads()) if (tasks > 1)
    for (int64_t t = 0; t < tasks; t++) {
        int64_t at = t * ROWS, count = source->rows - at < ROWS ? source->rows - at : ROWS;
        mel_error e;
        mel_status s = mel_source_read(source, at, count, dtype, block + at * row, &e);
        if (s) {
#pragma omp critical(mel_whole)
            if (!status) {
                status = s;
                first = e;
            }
        }
    }
    if (status) {
        if (err) *err = first;
        mel_free(block);
        return status;
    }
    *out = *owned = block;
    return MEL_OK;
}

// The layout is chosen for many rows; the few-row cases run on the same one.
static mel_status pack(
    mel_linear *layer, const mel_source *source, void **packed, dnnl_memory_desc_t *desc, mel_error *err) {
    door_op probe = {0};
    dnnl_memory_desc_t plain;
    const void *weights = NULL;
    void *owned = NULL;
    mel_status s = linear_op(layer, PACK_ROWS, MEL_ACT_NONE, layer->compute, NULL, &probe, err);
    if (!s) s = whole(source, layer->compute, &weights, &owned, err);
    if (!s) s = door_plain_weights(layer->k, layer->n, layer->compute, &plain, err);
    if (!s) s = door_pack(&plain, weights, &probe.weights_desc, packed, err);
    if (!s) *desc = probe.weights_desc;
    mel_free(owned);
    door_free(&probe);
    return s;
}

mel_status mel_linear_create(
    const mel_tensor *weight, const mel_tensor *bias, mel_dtype compute, mel_linear **out, mel_error *err) {
    char shape[128];
    if (weight->ndim != 2 || !mel_is_float(weight->dtype))
        return mel_fail(err, MEL_EINVAL, "linear: the weight is %s %s, floats [outputs, inputs] are wanted",
            mel_dtype_name(weight->dtype), mel_tensor_shape_text(weight, shape, sizeof shape));
    mel_source *source = NULL;
    mel_status s = mel_source_of(weight, &source, err);
    if (!s) s = mel_linear_create_from(source, bias, compute, out, err);
    mel_source_unref(source);
    return s;
}

mel_status mel_linear_create_from(
    mel_source *source, const mel_tensor *bias, mel_dtype compute, mel_linear **out, mel_error *err) {
    mel_linear *layer = NULL;
    mel_status s = new_layer(source->rows, source->columns, bias, compute, &layer, err);
    if (!s && layer->compute == MEL_S8)
        s = mel_s8_create(source, NULL, 0, &layer->s8, err);
    else if (!s)
        s = pack(layer, source, &layer->packed, &layer->desc, err);
    if (s)
        mel_linear_free(layer);
    else
        *out = layer;
    return s;
}

mel_status mel_linear_create_s8(mel_source *source, const mel_tensor *bias, const mel_tensor *smooth, int64_t rotate,
    mel_linear **out, mel_error *err) {
    mel_linear *layer = NULL;
    mel_tensor *vector = NULL;
    mel_status s = new_layer(source->rows, source->columns, bias, MEL_S8, &layer, err);
    if (!s) s = mel_vector(smooth, layer->k, "linear", "smooth", &vector, err);
    if (!s)
        s = mel_s8_create(source, vector ? (const float *)(const void *)vector->data : NULL, rotate, &layer->s8, err);
    mel_tensor_unref(vector);
    if (s)
        mel_linear_free(layer);
    else
        *out = layer;
    return s;
}

mel_status mel_linear_create_lazy(
    mel_source *source, const mel_tensor *bias, mel_dtype compute, mel_linear **out, mel_error *err) {
    mel_status s = new_layer(source->rows, source->columns, bias, compute, out, err);
    if (s) return s;
    (*out)->source = mel_source_ref(source);
    // 8 bits are for weights that stay: what is read each time is read as it is.
    if ((*out)->compute == MEL_S8) (*out)->compute = mel_cpu_isa() >= MEL_ISA_AVX512_BF16 ? MEL_BF16 : MEL_F32;
    return MEL_OK;
}

int64_t mel_linear_bytes(const mel_linear *layer) {
    int64_t bytes = layer->bias ? layer->n * 4 : 0;
    if (layer->s8) return bytes + mel_s8_bytes(layer->s8);
    return layer->packed && !layer->kept ? bytes + (int64_t)dnnl_memory_desc_get_size(&layer->desc) : bytes;
}

// ---- packed layers in files --------------------------------------------------------------------------

static int64_t packed_bytes(const mel_linear *layer) {
    if (layer->s8) return mel_s8_packed_bytes(layer->n, layer->k, mel_s8_form(layer->s8));
    return layer->packed ? (int64_t)dnnl_memory_desc_get_size(&layer->desc) : 0;
}

int64_t mel_linear_packed_bytes(const mel_linear *layer) {
    int64_t bytes = packed_bytes(layer);
    return bytes ? bytes + (int64_t)sizeof(packed_header) : 0;
}

mel_status mel_linear_packed(const mel_linear *layer, mel_tensor **out, mel_error *err) {
    const int64_t bytes = packed_bytes(layer), size = mel_linear_packed_bytes(layer);
    if (!bytes) return mel_fail(err, MEL_EUNSUPPORTED, "linear: a layer that reads its weights has no packed form");
    mel_status s = mel_tensor_create(MEL_U8, 1, &size, out, err);
    if (s) return s;
    packed_header *h = (packed_header *)(void *)(*out)->data;
    *h = (packed_header){.bytes = bytes, .n = layer->n, .k = layer->k, .compute = layer->compute};
    if (layer->s8) {
        h->flags = mel_s8_form(layer->s8);
        h->layout = mel_s8_layout(layer->n, layer->k);
        mel_s8_store(layer->s8, (char *)(h + 1));
    } else {
        h->layout = door_layout(&layer->desc);
        memcpy(h + 1, layer->packed, (size_t)bytes);
    }
    mel_packed_seal(h);
    return MEL_OK;
}

mel_status mel_linear_create_packed(int64_t n, int64_t k, mel_tensor *packed, const mel_tensor *bias, mel_dtype compute,
    mel_linear **out, mel_error *err) {
    mel_linear *layer = NULL;
    const packed_header *h = NULL;
    door_op probe = {0};
    uint64_t layout = 0;
    int64_t bytes = 0;
    mel_status s = new_layer(n, k, bias, compute, &layer, err);
    if (s) return s;
    s = mel_packed_check(packed, &h, err);
    if (!s && layer->compute == MEL_S8) {
        layout = mel_s8_layout(n, k);
        bytes = mel_s8_packed_bytes(n, k, h->flags);
    } else if (!s) {
        s = linear_op(layer, PACK_ROWS, MEL_ACT_NONE, layer->compute, NULL, &probe, err);
        if (!s) layout = door_layout(&probe.weights_desc);
        if (!s) bytes = (int64_t)dnnl_memory_desc_get_size(&probe.weights_desc);
    }
    bool same = !s && h->layout == layout && h->bytes == bytes && h->n == n && h->k == k &&
                h->compute == (int64_t)layer->compute && (h->flags == 0 || layer->compute == MEL_S8);
    if (!s && !same)
        s = mel_fail(err, MEL_EFORMAT, "linear: the packed layer is [%lld, %lld] in another layout", (long long)h->n,
            (long long)h->k);
    if (!s && layer->compute == MEL_S8) {
        s = mel_s8_map(n, k, h->flags, (const char *)(h + 1), &layer->s8, err);
    } else if (!s) {
        layer->packed = (void *)(h + 1);
        layer->desc = probe.weights_desc;
    }
    if (!s) layer->kept = mel_tensor_ref(packed);
    door_free(&probe);
    if (s)
        mel_linear_free(layer);
    else
        *out = layer;
    return s;
}

// ---- running -----------------------------------------------------------------------------------------

static mel_status find_op(mel_linear *layer, int64_t m, mel_act act, mel_dtype dst, door_op **out, mel_error *err) {
    cached_op *victim = &layer->ops[0];
    for (int i = 0; i < OPS_KEPT; i++) {
        cached_op *c = &layer->ops[i];
        if (c->op.primitive && c->m == m && c->act == act && c->dst == dst) {
            c->used = ++layer->clock;
            *out = &c->op;
            return MEL_OK;
        }
        if (c->used < victim->used) victim = c;
    }
    door_free(&victim->op);
    *victim = (cached_op){.m = m, .act = act, .dst = dst, .used = ++layer->clock};
    *out = &victim->op;
    return linear_op(layer, m, act, dst, &layer->desc, &victim->op, err);
}

mel_status mel_linear_run(
    mel_linear *layer, const mel_tensor *x, mel_act act, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    char shape[128];
    mel_dtype dst;
    MEL_SPAN(layer->s8 ? "linear s8" : layer->source ? "linear lazy" : "linear");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_out_dtype(x, dtype, "linear", &dst, err);
    if (s) return s;
    if (x->ndim < 1 || x->shape[x->ndim - 1] != layer->k)
        return mel_fail(err, MEL_EINVAL, "linear: x is %s, weight is [%lld, %lld]",
            mel_tensor_shape_text(x, shape, sizeof shape), (long long)layer->n, (long long)layer->k);
    if ((unsigned)act > MEL_ACT_SIGMOID) return mel_fail(err, MEL_EINVAL, "linear: unknown activation %d", (int)act);
    int64_t out_shape[MEL_MAX_DIMS], m = mel_tensor_numel(x) / layer->k;
    memcpy(out_shape, x->shape, sizeof out_shape);
    MEL_FLOP(2.0 * (double)m * (double)layer->n * (double)layer->k);
    out_shape[x->ndim - 1] = layer->n;
    mel_dtype run = dst == MEL_F16 || (dst == MEL_BF16 && layer->compute == MEL_F32) ? MEL_F32 : dst;
    mel_tensor *src = NULL, *y = NULL;
    door_op *op;
    s = mel_tensor_create(run, x->ndim, out_shape, &y, err);
    if (!s && m > 0) {
        const bool few = layer->source && m <= FEW_ROWS;
        mel_dtype operand = few && mel_product_pairs(layer->compute) == 1 ? MEL_F32 : layer->compute;
        void *packed = layer->packed;
        s = layer->s8 ? mel_tensor_contiguous(x, &src, err) : mel_tensor_cast(x, operand, &src, err);
        if (!s && layer->s8) {
            s = mel_s8_run(layer->s8, src, m, layer->bias, act, run, y->data, err);
        } else if (!s && few && layer->k % mel_product_pairs(operand) == 0) {
            s = mel_skinny_product(layer->source, operand, src->data, m, layer->bias, act, run, y->data, err);
        } else if (!s) {
            if (layer->source) s = pack(layer, layer->source, &packed, &layer->desc, err);
            if (!s) s = find_op(layer, m, act, run, &op, err);
            if (!s) s = door_run(op, src->data, packed, layer->bias, y->data, err);
            if (layer->source) mel_free(packed);
        }
    }
    mel_tensor_unref(src);
    if (!s) s = mel_tensor_cast(y, dst, out, err); // y itself where run is dst
    mel_tensor_unref(y);
    return s;
}

// ---- batched products -------------------------------------------------------------------------------

// a's or b's batch dimensions stretched to `shape` and laid out densely as [batch, rows, columns].
static mel_status batched(const mel_tensor *t, int nbatch, const int64_t *batch_shape, mel_dtype dtype, bool keep_one,
    mel_tensor **out, mel_error *err) {
    mel_tensor *wide = NULL, *dense = NULL;
    int64_t shape[MEL_MAX_DIMS], rows = t->shape[t->ndim - 2], columns = t->shape[t->ndim - 1];
    mel_status s = MEL_OK;
    if (keep_one) {
        wide = mel_tensor_ref((mel_tensor *)t);
    } else {
        memcpy(shape, batch_shape, sizeof(int64_t) * (size_t)nbatch);
        shape[nbatch] = rows;
        shape[nbatch + 1] = columns;
        s = mel_tensor_expand(t, nbatch + 2, shape, &wide, err);
    }
    if (!s) s = mel_tensor_cast(wide, dtype, &dense, err);
    if (!s) s = mel_tensor_reshape(dense, 3, (int64_t[]){-1, rows, columns}, out, err);
    mel_tensor_unref(wide);
    mel_tensor_unref(dense);
    return s;
}

mel_status mel_matmul(const mel_tensor *a, const mel_tensor *b, bool transpose_b, double alpha, mel_dtype dtype,
    mel_tensor **out, mel_error *err) {
    char sa[128], sb[128];
    mel_dtype dst;
    MEL_SPAN("matmul");
    mel_status s = mel_check_cancel(err);
    if (!s) s = mel_need_float(b, "matmul", err);
    if (!s) s = mel_out_dtype(a, dtype, "matmul", &dst, err);
    if (s) return s;
    if (a->ndim < 2 || b->ndim < 2)
        return mel_fail(err, MEL_EINVAL, "matmul: %s times %s: matrices are wanted",
            mel_tensor_shape_text(a, sa, sizeof sa), mel_tensor_shape_text(b, sb, sizeof sb));
    int64_t m = a->shape[a->ndim - 2], k = a->shape[a->ndim - 1];
    int64_t kb = b->shape[b->ndim - (transpose_b ? 1 : 2)], n = b->shape[b->ndim - (transpose_b ? 2 : 1)];
    int nbatch = (a->ndim > b->ndim ? a->ndim : b->ndim) - 2;
    int64_t shape[MEL_MAX_DIMS], batch = 1;
    bool fits = k == kb, one_a = true, one_b = true;
    for (int i = 0; i < nbatch && fits; i++) {
        int ia = i - (nbatch + 2 - a->ndim), ib = i - (nbatch + 2 - b->ndim);
        int64_t da = ia >= 0 ? a->shape[ia] : 1, db = ib >= 0 ? b->shape[ib] : 1;
        fits = da == db || da == 1 || db == 1;
        shape[i] = da == 1 ? db : da;
        batch *= shape[i];
        one_a = one_a && da == 1;
        one_b = one_b && db == 1;
    }
    if (!fits)
        return mel_fail(err, MEL_EINVAL, "matmul: %s times %s%s does not fit", mel_tensor_shape_text(a, sa, sizeof sa),
            mel_tensor_shape_text(b, sb, sizeof sb), transpose_b ? " transposed" : "");
    MEL_FLOP(2.0 * (double)batch * (double)m * (double)n * (double)k);
    shape[nbatch] = m;
    shape[nbatch + 1] = n;
    // bf16 work where both are stored so; otherwise f32.
    mel_dtype work = a->dtype == MEL_BF16 && b->dtype == MEL_BF16 ? MEL_BF16 : MEL_F32;
    mel_dtype run = dst == MEL_F16 || (dst == MEL_BF16 && work == MEL_F32) ? MEL_F32 : dst;
    mel_tensor *da = NULL, *db = NULL, *y = NULL;
    s = mel_tensor_create(run, nbatch + 2, shape, &y, err);
    if (!s && mel_tensor_numel(y) > 0 && k == 0) s = mel_tensor_fill(y, 0, err);
    if (!s && mel_tensor_numel(y) > 0 && k > 0) {
        s = batched(a, nbatch, shape, work, one_a, &da, err);
        if (!s) s = batched(b, nbatch, shape, work, one_b, &db, err);
        door_op op = {0};
        // One right side for all: the batch is more rows.
        bool fold = one_b && !one_a;
        door_matmul_spec spec = {.batch = fold ? 1 : batch,
            .m = fold ? m * batch : m,
            .n = n,
            .k = k,
            .batch_a = !one_a,
            .batch_b = !one_b,
            .a = work,
            .b = work,
            .c = run,
            .transpose_b = transpose_b,
            .alpha = alpha};
        if (!s) s = door_matmul(&spec, &op, err);
        if (!s) s = door_run(&op, da->data, db->data, NULL, y->data, err);
        door_free(&op);
    }
    mel_tensor_unref(da);
    mel_tensor_unref(db);
    if (!s) s = mel_tensor_cast(y, dst, out, err); // y itself where run is dst
    mel_tensor_unref(y);
    return s;
}
