// Storage, shapes and views.
#include "tensor/tensor.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int64_t size;
} dtypes[] = {{"f32", 4}, {"bf16", 2}, {"f16", 2}, {"s8", 1}, {"u8", 1}, {"s32", 4}, {"i64", 8}};

int64_t mel_dtype_size(mel_dtype dtype) {
    return dtype >= MEL_F32 && dtype <= MEL_I64 ? dtypes[dtype].size : 0;
}

const char *mel_dtype_name(mel_dtype dtype) {
    return dtype >= MEL_F32 && dtype <= MEL_I64 ? dtypes[dtype].name : "?";
}

bool mel_is_float(mel_dtype dtype) {
    return dtype == MEL_F32 || dtype == MEL_BF16 || dtype == MEL_F16;
}

// ---- making -----------------------------------------------------------------------------------

static mel_status check_shape(mel_dtype dtype, int ndim, const int64_t *shape, int64_t *bytes, mel_error *err) {
    if (!mel_dtype_size(dtype)) return mel_fail(err, MEL_EINVAL, "tensor: unknown dtype %d", (int)dtype);
    if (ndim < 0 || ndim > MEL_MAX_DIMS)
        return mel_fail(err, MEL_EINVAL, "tensor: %d dimensions, at most %d are possible", ndim, MEL_MAX_DIMS);
    int64_t n = mel_dtype_size(dtype);
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return mel_fail(err, MEL_EINVAL, "tensor: dimension %d is %lld", i + 1, (long long)shape[i]);
        if (shape[i] == 0)
            empty = true;
        else if (!mel_mul_ok(n, shape[i], &n) || n > INT64_MAX / 4)
            return mel_fail(
                err, MEL_EINVAL, "tensor: the size overflows at dimension %d (%lld)", i + 1, (long long)shape[i]);
    }
    *bytes = empty ? 0 : n;
    return MEL_OK;
}

static mel_tensor *new_handle(mel_dtype dtype, int ndim, const int64_t *shape, mel_error *err) {
    mel_tensor *t = mel_alloc_zero(sizeof *t, err);
    if (!t) return NULL;
    atomic_init(&t->refs, 1);
    t->dtype = dtype;
    t->ndim = ndim;
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        t->shape[i] = shape[i];
        t->strides[i] = stride;
        stride *= shape[i] > 0 ? shape[i] : 1;
    }
    return t;
}

mel_status mel_tensor_wrap(mel_dtype dtype, int ndim, const int64_t *shape, void *data, bool writable,
    void (*release)(void *owner), void *owner, mel_tensor **out, mel_error *err) {
    int64_t bytes;
    mel_status s = check_shape(dtype, ndim, shape, &bytes, err);
    if (s) return s;
    if ((uintptr_t)data & (uintptr_t)(mel_dtype_size(dtype) - 1)) // sizes are powers of two
        return mel_fail(err, MEL_EINVAL, "tensor: the data is not aligned to %s", mel_dtype_name(dtype));
    mel_tensor *t = new_handle(dtype, ndim, shape, err);
    if (!t) return MEL_ENOMEM;
    mel_storage *st = mel_alloc_zero(sizeof *st, err);
    if (!st) {
        mel_free(t);
        return MEL_ENOMEM;
    }
    atomic_init(&st->refs, 1);
    st->release = release;
    st->owner = owner;
    t->storage = st;
    t->data = data;
    t->writable = writable;
    *out = t;
    return MEL_OK;
}

mel_status mel_tensor_create(mel_dtype dtype, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    int64_t bytes;
    mel_status s = check_shape(dtype, ndim, shape, &bytes, err);
    if (s) return s;
    void *data = mel_alloc((size_t)bytes, err);
    if (!data) return MEL_ENOMEM;
    s = mel_tensor_wrap(dtype, ndim, shape, data, true, mel_free, data, out, err);
    if (s) mel_free(data);
    return s;
}

mel_status mel_tensor_zeros(mel_dtype dtype, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    mel_status s = mel_tensor_create(dtype, ndim, shape, out, err);
    if (s == MEL_OK) memset((*out)->data, 0, (size_t)mel_tensor_bytes(*out));
    return s;
}

mel_status mel_tensor_like(const mel_tensor *a, mel_dtype dtype, mel_tensor **out, mel_error *err) {
    return mel_tensor_create(dtype, a->ndim, a->shape, out, err);
}

mel_tensor *mel_tensor_ref(mel_tensor *t) {
    if (t) atomic_fetch_add(&t->refs, 1);
    return t;
}

void mel_tensor_unref(mel_tensor *t) {
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1) return;
    mel_storage *st = t->storage;
    if (atomic_fetch_sub(&st->refs, 1) == 1) {
        if (st->release) st->release(st->owner);
        mel_free(st);
    }
    mel_free(t);
}

// ---- looking ------------------------------------------------------------------------------------

mel_dtype mel_tensor_dtype(const mel_tensor *t) {
    return t->dtype;
}
int mel_tensor_ndim(const mel_tensor *t) {
    return t->ndim;
}
const int64_t *mel_tensor_shape(const mel_tensor *t) {
    return t->shape;
}
const int64_t *mel_tensor_strides(const mel_tensor *t) {
    return t->strides;
}
void *mel_tensor_data(const mel_tensor *t) {
    return t->data;
}
bool mel_tensor_is_writable(const mel_tensor *t) {
    return t->writable;
}

int64_t mel_tensor_numel(const mel_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++)
        n *= t->shape[i];
    return n;
}

int64_t mel_tensor_bytes(const mel_tensor *t) {
    return mel_tensor_numel(t) * mel_dtype_size(t->dtype);
}

bool mel_tensor_is_contiguous(const mel_tensor *t) {
    int64_t stride = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] == 0) return true;
        if (t->shape[i] != 1 && t->strides[i] != stride) return false;
        stride *= t->shape[i];
    }
    return true;
}

const char *mel_tensor_shape_text(const mel_tensor *t, char *buffer, size_t size_bytes) {
    size_t at = 0;
    if (size_bytes) buffer[0] = 0;
    for (int i = -1; i <= t->ndim && at < size_bytes; i++) {
        int n;
        if (i < 0)
            n = snprintf(buffer + at, size_bytes - at, "[");
        else if (i == t->ndim)
            n = snprintf(buffer + at, size_bytes - at, "]");
        else
            n = snprintf(buffer + at, size_bytes - at, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
        at += (size_t)n;
    }
    return buffer;
}

mel_status mel_axis(const mel_tensor *t, int axis, const char *what, int *out, mel_error *err) {
    int a = axis < 0 ? axis + t->ndim : axis;
    char shape[128];
    if (a < 0 || a >= t->ndim)
        return mel_fail(err, MEL_EINVAL, "%s: no axis %d in a tensor of shape %s", what, axis < 0 ? axis : axis + 1,
            mel_tensor_shape_text(t, shape, sizeof shape));
    *out = a;
    return MEL_OK;
}

// ---- views --------------------------------------------------------------------------------------

static mel_tensor *view_of(const mel_tensor *src, mel_error *err) {
    mel_tensor *t = mel_alloc(sizeof *t, err);
    if (!t) return NULL;
    memcpy(t, src, sizeof *t);
    atomic_init(&t->refs, 1);
    atomic_fetch_add(&t->storage->refs, 1);
    return t;
}

mel_status mel_tensor_slice(
    const mel_tensor *src, int axis, int64_t first, int64_t count, mel_tensor **out, mel_error *err) {
    int a = 0;
    mel_status s = mel_axis(src, axis, "slice", &a, err);
    if (s) return s;
    char shape[128];
    if (first < 0 || count < 0 || first > src->shape[a] || count > src->shape[a] - first)
        return mel_fail(err, MEL_EINVAL, "slice: %lld elements from %lld on are outside axis %d of %s",
            (long long)count, (long long)first + 1, a + 1, mel_tensor_shape_text(src, shape, sizeof shape));
    mel_tensor *t = view_of(src, err);
    if (!t) return MEL_ENOMEM;
    t->shape[a] = count;
    t->data += first * src->strides[a] * mel_dtype_size(src->dtype);
    *out = t;
    return MEL_OK;
}

mel_status mel_tensor_permute(const mel_tensor *src, const int *axes, mel_tensor **out, mel_error *err) {
    unsigned seen = 0;
    for (int i = 0; i < src->ndim; i++) {
        if (axes[i] < 0 || axes[i] >= src->ndim || (seen >> axes[i] & 1))
            return mel_fail(err, MEL_EINVAL, "permute: the axes are not a permutation of 1..%d", src->ndim);
        seen |= 1u << axes[i];
    }
    mel_tensor *t = view_of(src, err);
    if (!t) return MEL_ENOMEM;
    for (int i = 0; i < src->ndim; i++) {
        t->shape[i] = src->shape[axes[i]];
        t->strides[i] = src->strides[axes[i]];
    }
    *out = t;
    return MEL_OK;
}

static void dense_strides(int ndim, const int64_t *shape, int64_t *strides) {
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= shape[i] > 0 ? shape[i] : 1;
    }
}

// Strides of `shape` over src's memory without moving anything; false where there are none.
static bool reshape_strides(const mel_tensor *src, int ndim, const int64_t *shape, int64_t *strides) {
    int64_t old_shape[MEL_MAX_DIMS], old_strides[MEL_MAX_DIMS];
    int n = 0;
    for (int i = 0; i < src->ndim; i++) {
        if (src->shape[i] == 1) continue;
        old_shape[n] = src->shape[i];
        old_strides[n++] = src->strides[i];
    }
    int oi = 0, ni = 0;
    while (ni < ndim) {
        if (shape[ni] == 1) {
            strides[ni++] = 1;
            continue;
        }
        if (oi == n) return false;
        int oj = oi + 1, nj = ni + 1;
        int64_t op = old_shape[oi], np = shape[ni];
        while (np != op) {
            if (np < op) {
                if (nj == ndim) return false;
                np *= shape[nj++];
            } else {
                if (oj == n) return false;
                op *= old_shape[oj++];
            }
        }
        for (int k = oi; k + 1 < oj; k++)
            if (old_strides[k] != old_strides[k + 1] * old_shape[k + 1]) return false;
        int64_t stride = old_strides[oj - 1];
        for (int k = nj - 1; k >= ni; k--) {
            strides[k] = stride;
            stride *= shape[k];
        }
        oi = oj;
        ni = nj;
    }
    return oi == n;
}

mel_status mel_tensor_reshape(const mel_tensor *src, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    if (ndim < 0 || ndim > MEL_MAX_DIMS) return mel_fail(err, MEL_EINVAL, "reshape: %d dimensions", ndim);
    int64_t dims[MEL_MAX_DIMS], known = 1, total = mel_tensor_numel(src);
    int wild = -1;
    for (int i = 0; i < ndim; i++) {
        dims[i] = shape[i];
        if (shape[i] == -1) {
            if (wild >= 0) return mel_fail(err, MEL_EINVAL, "reshape: more than one -1");
            wild = i;
        } else if (shape[i] < 0 || !mel_mul_ok(known, shape[i], &known)) {
            return mel_fail(err, MEL_EINVAL, "reshape: dimension %d is %lld", i + 1, (long long)shape[i]);
        }
    }
    bool fits = known == total;
    if (wild >= 0) {
        fits = known > 0 && total % known == 0;
        if (fits) dims[wild] = total / known;
    }
    if (!fits) {
        mel_tensor want = {.ndim = ndim};
        memcpy(want.shape, shape, sizeof(int64_t) * (size_t)ndim);
        char text[128], asked[128];
        return mel_fail(err, MEL_EINVAL, "reshape: %s has %lld elements, which do not fill %s",
            mel_tensor_shape_text(src, text, sizeof text), (long long)total,
            mel_tensor_shape_text(&want, asked, sizeof asked));
    }
    int64_t strides[MEL_MAX_DIMS];
    mel_tensor *t = NULL;
    if (total == 0 || mel_tensor_is_contiguous(src)) {
        dense_strides(ndim, dims, strides);
        t = view_of(src, err);
    } else if (reshape_strides(src, ndim, dims, strides)) {
        t = view_of(src, err);
    } else {
        mel_status s = mel_tensor_clone(src, &t, err);
        if (s) return s;
        dense_strides(ndim, dims, strides);
    }
    if (!t) return MEL_ENOMEM;
    t->ndim = ndim;
    memcpy(t->shape, dims, sizeof(int64_t) * (size_t)ndim);
    memcpy(t->strides, strides, sizeof(int64_t) * (size_t)ndim);
    *out = t;
    return MEL_OK;
}

bool mel_broadcast_strides(const mel_tensor *t, int ndim, const int64_t *shape, int64_t *strides) {
    if (t->ndim > ndim) return false;
    for (int i = 0; i < ndim; i++) {
        int k = i - (ndim - t->ndim);
        if (k < 0 || (t->shape[k] == 1 && shape[i] != 1))
            strides[i] = 0;
        else if (t->shape[k] == shape[i])
            strides[i] = t->strides[k];
        else
            return false;
    }
    return true;
}

mel_status mel_tensor_expand(const mel_tensor *src, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err) {
    int64_t strides[MEL_MAX_DIMS];
    char text[128];
    if (ndim < 0 || ndim > MEL_MAX_DIMS || !mel_broadcast_strides(src, ndim, shape, strides))
        return mel_fail(err, MEL_EINVAL, "expand: %s does not stretch to the shape asked for",
            mel_tensor_shape_text(src, text, sizeof text));
    mel_tensor *t = view_of(src, err);
    if (!t) return MEL_ENOMEM;
    t->ndim = ndim;
    t->writable = false;
    memcpy(t->shape, shape, sizeof(int64_t) * (size_t)ndim);
    memcpy(t->strides, strides, sizeof(int64_t) * (size_t)ndim);
    *out = t;
    return MEL_OK;
}
