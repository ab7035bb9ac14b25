// Uniform values of which billions are wanted, as for a test file of the size of a real model.
#include <melies/sample.h>

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

mel_status mel_noise_hash_uniform(
    uint64_t seed, uint64_t stream, uint64_t offset, double low, double high, mel_tensor *out, mel_error *err) {
    if (mel_tensor_dtype(out) != MEL_F32 || !mel_tensor_is_contiguous(out) || !mel_tensor_is_writable(out))
        return mel_fail(err, MEL_EINVAL, "hash_uniform: a dense writable f32 tensor is wanted");
    float *x = mel_tensor_data(out);
    int64_t n = mel_tensor_numel(out);
    uint64_t key = mix(seed + 0x9e3779b97f4a7c15u * mix(stream + 1));
    float scale = (float)((high - low) * 0x1p-24), base = (float)low;
#pragma omp parallel for num_threads(mel_threads()) schedule(static) if (n > 65536)
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = offset + (uint64_t)i;
        x[i] = base + scale * (float)(int32_t)(mix(key + 0x9e3779b97f4a7c15u * at) >> 40);
    }
    return MEL_OK;
}
