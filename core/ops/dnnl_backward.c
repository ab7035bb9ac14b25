// Matrix products and convolutions of training through oneDNN. Each primitive is made for one thread and executed by
// several at once on tasks of their own. This file and dnnl_door.c know oneDNN's 2.x interface.
#include "ops/backward.h"
#include "ops/dnnl_door.h"

#include <omp.h>
#include <pthread.h>
#include <string.h>

enum {
    KEPT = 512, // primitives; beyond it the one used longest ago goes
    TASKS = 8,  // wanted of a large operation
    ARGS = 4
};
static const double TASK_FLOP = 4e6; // an operation below two of these is one task

// A task of a product: the rows of a (its columns where it lies transposed) are lda elements apart.
typedef struct product {
    int64_t m, n, k, lda;
    int64_t transpose_a, transpose_b, operand, result, bias;
} product;

typedef struct key {
    int64_t kind; // 0: product, 1..3: a pass of a convolution
    union {
        product gemm;
        mel_conv_geometry conv;
    } u;
} key;

typedef struct entry {
    key key;
    uint64_t used;
    dnnl_primitive_t primitive; // NULL: empty
    int count;                  // arguments
    int arg[ARGS];
    dnnl_memory_desc_t desc[ARGS];
    size_t scratch_bytes;
    dnnl_memory_desc_t scratch;
} entry;

static struct {
    pthread_mutex_t lock;
    uint64_t clock;
    entry entries[KEPT];
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

static mel_status dense(
    dnnl_memory_desc_t *md, int n, const int64_t *shape, const int64_t *strides, mel_dtype dtype, mel_error *err) {
    dnnl_dims_t d = {0}, t = {0};
    memcpy(d, shape, sizeof(int64_t) * (size_t)n);
    memcpy(t, strides, sizeof(int64_t) * (size_t)n);
    return door_check(dnnl_memory_desc_init_by_strides(md, n, d, door_type(dtype), t), "memory", err);
}

// ---- descriptions -----------------------------------------------------------------------------------------

static mel_status describe_gemm(
    const product *g, dnnl_primitive_attr_t attr, dnnl_engine_t engine, dnnl_primitive_desc_t *pd, mel_error *err) {
    dnnl_memory_desc_t a, b, c, bias;
    int64_t ta[] = {g->transpose_a ? 1 : g->lda, g->transpose_a ? g->lda : 1};
    int64_t tb[] = {g->transpose_b ? 1 : g->n, g->transpose_b ? g->k : 1};
    mel_status s = dense(&a, 2, (int64_t[]){g->m, g->k}, ta, (mel_dtype)g->operand, err);
    if (!s) s = dense(&b, 2, (int64_t[]){g->k, g->n}, tb, (mel_dtype)g->operand, err);
    if (!s) s = dense(&c, 2, (int64_t[]){g->m, g->n}, (int64_t[]){g->n, 1}, (mel_dtype)g->result, err);
    if (!s && g->bias) s = dense(&bias, 2, (int64_t[]){1, g->n}, (int64_t[]){g->n, 1}, MEL_F32, err);
    if (s) return s;
    dnnl_matmul_desc_t desc;
    s = door_check(dnnl_matmul_desc_init(&desc, &a, &b, g->bias ? &bias : NULL, &c), "matmul", err);
    if (!s) s = door_check(dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL), "matmul", err);
    return s;
}

static int weight_shape(const mel_conv_geometry *g, int64_t *shape) {
    int n = 0;
    if (g->groups > 1) shape[n++] = g->groups;
    shape[n++] = g->oc / g->groups;
    shape[n++] = g->ic / g->groups;
    for (int i = 0; i < g->spatial; i++)
        shape[n++] = g->kernel[i];
    return n;
}

static mel_status plain_weights(const mel_conv_geometry *g, mel_dtype dtype, dnnl_memory_desc_t *md, mel_error *err) {
    int64_t shape[6], strides[6], step = 1;
    int n = weight_shape(g, shape);
    for (int i = n - 1; i >= 0; i--) {
        strides[i] = step;
        step *= shape[i];
    }
    return dense(md, n, shape, strides, dtype, err);
}

// Channels last: logical order N, C, spatial; memory order N, spatial, C.
static mel_status pixels(
    const mel_conv_geometry *g, int64_t channels, const int64_t *size, dnnl_memory_desc_t *md, mel_error *err) {
    int64_t shape[5] = {g->n, channels}, strides[5], step = channels;
    strides[1] = 1;
    for (int i = (int)g->spatial - 1; i >= 0; i--) {
        shape[2 + i] = size[i];
        strides[2 + i] = step;
        step *= size[i];
    }
    strides[0] = step;
    return dense(md, (int)g->spatial + 2, shape, strides, g->operand, err);
}

static mel_status describe_conv(mel_conv_pass pass, const mel_conv_geometry *g, dnnl_primitive_attr_t attr,
    dnnl_engine_t engine, dnnl_primitive_desc_t *pd, mel_error *err) {
    dnnl_memory_desc_t src, dst, weights, bias;
    dnnl_dims_t shape = {0}, stride = {0}, before = {0}, after = {0};
    int n = weight_shape(g, shape);
    memcpy(stride, g->stride, sizeof g->stride);
    memcpy(before, g->before, sizeof g->before);
    memcpy(after, g->after, sizeof g->after);
    mel_status s = pixels(g, g->ic, g->in, &src, err);
    if (!s) s = pixels(g, g->oc, g->out, &dst, err);
    dnnl_data_type_t type = door_type(pass == MEL_CONV_WEIGHTS ? MEL_F32 : g->operand);
    if (!s) s = door_check(dnnl_memory_desc_init_by_tag(&weights, n, shape, type, dnnl_format_tag_any), "conv", err);
    if (!s) s = dense(&bias, 1, &g->oc, (int64_t[]){1}, MEL_F32, err);
    if (s) return s;
    // The backward passes are described after a forward pass: weights there are operands in any layout.
    dnnl_memory_desc_t forward_weights = weights;
    if (pass == MEL_CONV_WEIGHTS)
        dnnl_memory_desc_init_by_tag(&forward_weights, n, shape, door_type(g->operand), dnnl_format_tag_any);
    dnnl_convolution_desc_t desc;
    dnnl_primitive_desc_t forward = NULL;
    dnnl_status_t d = dnnl_convolution_forward_desc_init(&desc,
        pass == MEL_CONV_FORWARD ? dnnl_forward_inference : dnnl_forward_training, dnnl_convolution_direct, &src,
        &forward_weights, pass == MEL_CONV_FORWARD ? &bias : NULL, &dst, stride, before, after);
    if (d == dnnl_success) d = dnnl_primitive_desc_create(&forward, &desc, attr, engine, NULL);
    if (d == dnnl_success && pass == MEL_CONV_FORWARD) {
        *pd = forward;
        return MEL_OK;
    }
    if (d == dnnl_success)
        d = pass == MEL_CONV_DATA ? dnnl_convolution_backward_data_desc_init(
                                        &desc, dnnl_convolution_direct, &src, &weights, &dst, stride, before, after)
                                  : dnnl_convolution_backward_weights_desc_init(&desc, dnnl_convolution_direct, &src,
                                        &weights, NULL, &dst, stride, before, after);
    if (d == dnnl_success) d = dnnl_primitive_desc_create(pd, &desc, attr, engine, forward);
    if (forward) dnnl_primitive_desc_destroy(forward);
    return door_check(d, "convolution", err);
}

// ---- the primitives kept ------------------------------------------------------------------------------------

static void add_arg(entry *e, dnnl_primitive_desc_t pd, int arg, dnnl_query_t query, int index) {
    e->arg[e->count] = arg;
    e->desc[e->count++] = *dnnl_primitive_desc_query_md(pd, query, index);
}

static mel_status make(const key *k, entry *e, mel_error *err) {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    mel_status s = door_engine(&engine, &stream, err);
    if (s) return s;
    dnnl_status_t d = dnnl_primitive_attr_create(&attr);
    if (d == dnnl_success) d = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    s = door_check(d, "attributes", err);
    omp_set_num_threads(1); // the work is divided for one thread when a primitive is described
    if (!s && k->kind == 0) s = describe_gemm(&k->u.gemm, attr, engine, &pd, err);
    if (!s && k->kind > 0) s = describe_conv((mel_conv_pass)(k->kind - 1), &k->u.conv, attr, engine, &pd, err);
    if (!s) s = door_check(dnnl_primitive_create(&e->primitive, pd), "primitive", err);
    omp_set_num_threads(mel_threads());
    if (!s) {
        e->count = 0;
        switch (k->kind) {
        case 0:
        case 1 + MEL_CONV_FORWARD:
            add_arg(e, pd, DNNL_ARG_SRC, dnnl_query_src_md, 0);
            add_arg(e, pd, DNNL_ARG_WEIGHTS, dnnl_query_weights_md, 0);
            add_arg(e, pd, DNNL_ARG_DST, dnnl_query_dst_md, 0);
            if (k->kind || k->u.gemm.bias) add_arg(e, pd, DNNL_ARG_BIAS, dnnl_query_weights_md, 1);
            break;
        case 1 + MEL_CONV_DATA:
            add_arg(e, pd, DNNL_ARG_DIFF_SRC, dnnl_query_diff_src_md, 0);
            add_arg(e, pd, DNNL_ARG_WEIGHTS, dnnl_query_weights_md, 0);
            add_arg(e, pd, DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md, 0);
            break;
        default:
            add_arg(e, pd, DNNL_ARG_SRC, dnnl_query_src_md, 0);
            add_arg(e, pd, DNNL_ARG_DIFF_WEIGHTS, dnnl_query_diff_weights_md, 0);
            add_arg(e, pd, DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md, 0);
        }
        e->scratch = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        e->scratch_bytes = (dnnl_memory_desc_get_size(&e->scratch) + 63) / 64 * 64;
        memcpy(&e->key, k, sizeof *k);
    }
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return s;
}

// Under the lock. The entries found last stay: only the one used longest ago goes.
static mel_status find(const key *k, const entry **out, mel_error *err) {
    entry *victim = &cache.entries[0];
    for (int i = 0; i < KEPT; i++) {
        entry *e = &cache.entries[i];
        // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): keys are cleared before they are filled
        if (e->primitive && memcmp(&e->key, k, sizeof *k) == 0) {
            e->used = ++cache.clock;
            *out = e;
            return MEL_OK;
        }
        if (!e->primitive) {
            victim = e;
            break;
        }
        if (e->used < victim->used) victim = e;
    }
    if (victim->primitive) dnnl_primitive_destroy(victim->primitive);
    memset(victim, 0, sizeof *victim);
    mel_status s = make(k, victim, err);
    if (s) return s;
    victim->used = ++cache.clock;
    *out = victim;
    return MEL_OK;
}

// One task: the calling thread alone.
static dnnl_status_t execute(
    const entry *e, dnnl_engine_t engine, dnnl_stream_t stream, void *const *data, void *scratch) {
    dnnl_exec_arg_t args[ARGS + 1] = {{0, NULL}};
    dnnl_status_t d = dnnl_success;
    int made = 0;
    for (; made < e->count && d == dnnl_success; made++) {
        args[made].arg = e->arg[made];
        d = dnnl_memory_create(&args[made].memory, &e->desc[made], engine, data[made]);
    }
    if (d == dnnl_success) {
        args[made].arg = DNNL_ARG_SCRATCHPAD;
        d = dnnl_memory_create(&args[made].memory, &e->scratch, engine, scratch);
        if (d == dnnl_success) made++;
    }
    if (d == dnnl_success) d = dnnl_primitive_execute(e->primitive, stream, made, args);
    for (int i = 0; i < made; i++)
        if (args[i].memory) dnnl_memory_destroy(args[i].memory);
    return d;
}

// Tasks 0..count-1: `whole` of all but the last, `rest` of the last. The pointers of task t are base + t * step bytes.
typedef struct tasks {
    int64_t count;
    const entry *whole, *rest;
    char *base[ARGS];
    int64_t step[ARGS];
} tasks;

static mel_status run_tasks(const tasks *t, mel_error *err) {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    mel_status s = door_engine(&engine, &stream, err);
    if (s) return s;
    size_t each = t->whole->scratch_bytes > t->rest->scratch_bytes ? t->whole->scratch_bytes : t->rest->scratch_bytes;
    int threads = t->count < mel_threads() ? (int)t->count : mel_threads();
    char *scratch = NULL;
    if (each && !(scratch = mel_alloc(each * (size_t)threads, err))) return MEL_ENOMEM;
    dnnl_status_t failed = dnnl_success;
#pragma omp parallel num_threads(threads)
    {
        omp_set_num_threads(1); // of this task of the team: no team within it
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < t->count; i++) {
            void *data[ARGS];
            for (int a = 0; a < ARGS; a++)
                data[a] = t->base[a] ? t->base[a] + i * t->step[a] : NULL;
            dnnl_status_t d = execute(i + 1 < t->count ? t->whole : t->rest, engine, stream, data,
                scratch ? scratch + each * (size_t)omp_get_thread_num() : NULL);
            if (d != dnnl_success) {
#pragma omp atomic write
                failed = d;
            }
        }
    }
    mel_free(scratch);
    return door_check(failed, "run", err);
}

// ---- products ---------------------------------------------------------------------------------------------

mel_status mel_gemm(
    const mel_gemm_spec *spec, const void *a, const void *b, const float *bias, void *c, mel_error *err) {
    double flop = 2.0 * (double)spec->m * (double)spec->n * (double)spec->k;
    int64_t rows = spec->m; // of a task
    if (flop >= 2 * TASK_FLOP) {
        int64_t least = spec->transpose_a ? 128 : 64;
        rows = (spec->m / TASKS + 63) / 64 * 64;
        rows = rows < least ? least : rows > 512 ? 512 : rows;
    }
    if (rows > spec->m) rows = spec->m;
    int64_t operand = mel_dtype_size(spec->operand);
    tasks t = {.count = (spec->m + rows - 1) / rows,
        .base = {(char *)a, (char *)b, c, (char *)bias},
        .step = {(spec->transpose_a ? rows : rows * spec->k) * operand, 0,
            rows * spec->n * mel_dtype_size(spec->result), 0}};
    key k;
    memset(&k, 0, sizeof k);
    k.u.gemm = (product){.m = rows,
        .n = spec->n,
        .k = spec->k,
        .lda = spec->transpose_a ? spec->m : spec->k,
        .transpose_a = spec->transpose_a,
        .transpose_b = spec->transpose_b,
        .operand = spec->operand,
        .result = spec->result,
        .bias = spec->bias};
    pthread_mutex_lock(&cache.lock);
    mel_status s = find(&k, &t.whole, err);
    k.u.gemm.m = spec->m - (t.count - 1) * rows;
    if (!s) s = find(&k, &t.rest, err);
    if (!s) s = run_tasks(&t, err);
    pthread_mutex_unlock(&cache.lock);
    return s;
}

// ---- convolutions -----------------------------------------------------------------------------------------

// Samples of a task: a divisor of n, so that all tasks are alike.
static int64_t samples_of_task(const mel_conv_geometry *g) {
    double flop = 2.0 * (double)g->n * (double)g->oc * (double)(g->ic / g->groups);
    for (int i = 0; i < g->spatial; i++)
        flop *= (double)(g->out[i] * g->kernel[i]);
    if (flop < 2 * TASK_FLOP) return g->n;
    int64_t wanted = (g->n + TASKS - 1) / TASKS;
    for (int64_t each = wanted; each <= (g->n + 3) / 4; each++)
        if (g->n % each == 0) return each;
    while (g->n % wanted)
        wanted--;
    return wanted;
}

static int64_t pixels_of(const mel_conv_geometry *g, const int64_t *size) {
    int64_t n = 1;
    for (int i = 0; i < g->spatial; i++)
        n *= size[i];
    return n;
}

mel_status mel_conv_train(mel_conv_pass pass, const mel_conv_geometry *g, void *src, void *weights, const float *bias,
    void *dst, mel_error *err) {
    key k;
    memset(&k, 0, sizeof k);
    k.kind = 1 + pass;
    memcpy(&k.u.conv, g, sizeof *g);
    k.u.conv.n = samples_of_task(g);
    int64_t size = mel_dtype_size(g->operand);
    tasks t = {.count = g->n / k.u.conv.n,
        .base = {src, NULL, dst, (char *)bias},
        .step = {
            k.u.conv.n * pixels_of(g, g->in) * g->ic * size, 0, k.u.conv.n * pixels_of(g, g->out) * g->oc * size, 0}};
    dnnl_memory_desc_t plain;
    void *packed = NULL, *back = NULL;
    pthread_mutex_lock(&cache.lock);
    mel_status s = plain_weights(g, pass == MEL_CONV_WEIGHTS ? MEL_F32 : g->operand, &plain, err);
    if (!s) s = find(&k, &t.whole, err);
    t.rest = t.whole;
    if (!s && pass == MEL_CONV_WEIGHTS) {
        t.step[1] = (int64_t)dnnl_memory_desc_get_size(&t.whole->desc[1]);
        if (!(packed = mel_alloc_zero((size_t)(t.count * t.step[1]), err))) s = MEL_ENOMEM;
    } else if (!s) {
        s = door_pack(&plain, weights, &t.whole->desc[1], &packed, err);
    }
    t.base[1] = packed;
    if (!s) s = run_tasks(&t, err);
    if (!s && pass == MEL_CONV_WEIGHTS) {
        const row_kernels *rows = mel_rows();
        for (int64_t i = 1; i < t.count; i++)
            rows->axpy(packed, 1.0f, (float *)(void *)(t.base[1] + i * t.step[1]), 1, NULL, 0, t.step[1] / 4);
        s = door_pack(&t.whole->desc[1], packed, &plain, &back, err);
        if (!s) memcpy(weights, back, dnnl_memory_desc_get_size(&plain));
    }
    pthread_mutex_unlock(&cache.lock);
    mel_free(packed);
    mel_free(back);
    return s;
}
