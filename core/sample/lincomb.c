// The arithmetic of a sampler's step: one pass over all terms, summed in double, rounded once.
#include <melies/sample.h>
#include <string.h>

enum {
    MAX_TERMS = 16,
    CHUNK = 1024 // elements whose double sums stay in the first-level cache
};

static void lincomb_chunk(
    int count, const double *coefficients, const float *const *terms, int64_t first, int64_t length, float *out) {
    double sum[CHUNK];
    for (int64_t i = 0; i < length; i++)
        sum[i] = 0;
    for (int k = 0; k < count; k++) {
        const double c = coefficients[k];
        const float *x = terms[k] + first;
        for (int64_t i = 0; i < length; i++)
            sum[i] += c * (double)x[i];
    }
    for (int64_t i = 0; i < length; i++)
        out[first + i] = (float)sum[i];
}

static mel_status check_terms(int count, const mel_tensor *const *terms, mel_error *err) {
    if (count < 1 || count > MAX_TERMS)
        return mel_fail(err, MEL_EINVAL, "lincomb: %d terms, takes 1 to %d", count, MAX_TERMS);
    int ndim = mel_tensor_ndim(terms[0]);
    for (int k = 0; k < count; k++) {
        if (mel_tensor_dtype(terms[k]) != MEL_F32)
            return mel_fail(err, MEL_EINVAL, "lincomb: term %d is %s, needs f32", k + 1,
                mel_dtype_name(mel_tensor_dtype(terms[k])));
        if (mel_tensor_ndim(terms[k]) != ndim ||
            (ndim > 0 &&
                memcmp(mel_tensor_shape(terms[k]), mel_tensor_shape(terms[0]), sizeof(int64_t) * (size_t)ndim) != 0)) {
            char a[160], b[160];
            return mel_fail(err, MEL_EINVAL, "lincomb: term 1 is %s, term %d is %s",
                mel_tensor_shape_text(terms[0], a, sizeof a), k + 1, mel_tensor_shape_text(terms[k], b, sizeof b));
        }
    }
    return MEL_OK;
}

mel_status mel_lincomb(
    int count, const double *coefficients, const mel_tensor *const *terms, mel_tensor **out, mel_error *err) {
    mel_status status = check_terms(count, terms, err);
    if (status != MEL_OK) return status;

    mel_tensor *held[MAX_TERMS];
    const float *data[MAX_TERMS];
    double factors[MAX_TERMS];
    int used = 0;
    mel_tensor *result = NULL;
    for (int k = 0; k < count && status == MEL_OK; k++) {
        if (coefficients[k] == 0) continue;
        status = mel_tensor_contiguous(terms[k], &held[used], err);
        if (status == MEL_OK) {
            data[used] = mel_tensor_data(held[used]);
            factors[used++] = coefficients[k];
        }
    }
    if (status == MEL_OK)
        status = mel_tensor_create(MEL_F32, mel_tensor_ndim(terms[0]), mel_tensor_shape(terms[0]), &result, err);
    if (status == MEL_OK) {
        float *to = mel_tensor_data(result);
        int64_t numel = mel_tensor_numel(result), chunks = (numel + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) num_threads(mel_threads()) if (chunks > 64)
        for (int64_t c = 0; c < chunks; c++) {
            int64_t left = numel - c * CHUNK;
            lincomb_chunk(used, factors, data, c * CHUNK, left < CHUNK ? left : CHUNK, to);
        }
        *out = result;
    }
    for (int k = 0; k < used; k++)
        mel_tensor_unref(held[k]);
    return status;
}
