// What samplers need from C: counter-based noise and fused step arithmetic.
#ifndef MELIES_SAMPLE_H
#define MELIES_SAMPLE_H

#include <melies/tensor.h>

// Standard normal f32 values of the given shape: Philox4x32-10 keyed by seed and stream, Box-Muller in double. Element
// i depends on (seed, stream, offset + i) alone: any thread count and any split into parts gives the same numbers.
MEL_API mel_status mel_noise_normal(
    uint64_t seed, uint64_t stream, uint64_t offset, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err);
// Uniform in [0, 1), same rules.
MEL_API mel_status mel_noise_uniform(
    uint64_t seed, uint64_t stream, uint64_t offset, int ndim, const int64_t *shape, mel_tensor **out, mel_error *err);
// Uniform in [low, high) into a dense f32 tensor, 24 bits a value, several times faster than the above, of the quality
// that test data needs. Element i depends on (seed, stream, offset + i) alone.
MEL_API mel_status mel_noise_hash_uniform(
    uint64_t seed, uint64_t stream, uint64_t offset, double low, double high, mel_tensor *out, mel_error *err);
// out = sum_i coefficients[i] * terms[i], 1 <= count <= 16, one pass; f32 tensors of one shape. A term with coefficient
// 0 is not read.
MEL_API mel_status mel_lincomb(
    int count, const double *coefficients, const mel_tensor *const *terms, mel_tensor **out, mel_error *err);

#endif
