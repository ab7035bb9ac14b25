// Sums over samples: power spectra and K-weighted power.
#include "media_internal.h"

#include <libavutil/mem.h>
#include <libavutil/tx.h>
#include <math.h>
#include <melies/audio.h>
#include <string.h>

static mel_status check_samples(const char *what, const mel_tensor *samples, int64_t most, mel_error *err) {
    if (!samples) return mel_fail(err, MEL_EINVAL, "%s: no samples", what);
    char text[128];
    mel_tensor_shape_text(samples, text, sizeof text);
    if (mel_tensor_dtype(samples) != MEL_F32 || mel_tensor_ndim(samples) != 2 || mel_tensor_shape(samples)[1] < 1 ||
        mel_tensor_shape(samples)[1] > most || !mel_tensor_is_contiguous(samples))
        return mel_fail(err, MEL_EINVAL, "%s: samples are %s %s, wanted f32 [N, %s], contiguous", what,
            mel_dtype_name(mel_tensor_dtype(samples)), text, most == 1 ? "1" : "1 or 2");
    return MEL_OK;
}

mel_status mel_power_spectrum(const mel_tensor *samples, int64_t first, int32_t window, int32_t hop, int64_t count,
    mel_tensor **out, mel_error *err) {
    mel_status status = check_samples("power_spectrum", samples, 1, err);
    if (status != MEL_OK) return status;
    if (!out || window < 32 || window > 65536 || (window & (window - 1)) || hop < 1 || count < 1 ||
        count > INT64_MAX / 4 / hop || first < -INT64_MAX / 4 || first > INT64_MAX / 4)
        return mel_fail(err, MEL_EINVAL,
            "power_spectrum: %lld windows of %d, %d apart; a power of two from 32 to 65536 is wanted", (long long)count,
            window, hop);
    int bins = window / 2 + 1;
    mel_tensor *result = NULL;
    status = mel_tensor_create(MEL_F32, 2, (int64_t[]){count, bins}, &result, err);
    if (status != MEL_OK) return status;
    // av_malloc aligns as the transform wants it.
    float *hann = av_malloc((size_t)window * sizeof *hann), *in = av_malloc((size_t)window * sizeof *in);
    float *bin = av_malloc((size_t)bins * 2 * sizeof *bin);
    AVTXContext *tx = NULL;
    av_tx_fn transform = NULL;
    float scale = 1;
    if (!hann || !in || !bin || av_tx_init(&tx, &transform, AV_TX_FLOAT_RDFT, 0, window, &scale, 0) < 0) {
        status = mel_fail(err, MEL_ENOMEM, "power_spectrum: no memory for windows of %d", window);
    } else {
        for (int i = 0; i < window; i++)
            hann[i] = (float)((1 - cos(2 * M_PI * i / window)) * 2 / window);
        const float *x = mel_tensor_data(samples);
        float *power = mel_tensor_data(result);
        int64_t n = mel_tensor_shape(samples)[0];
        for (int64_t k = 0; k < count && status == MEL_OK; k++, power += bins) {
            int64_t at = first + k * hop;
            for (int i = 0; i < window; i++)
                in[i] = at + i >= 0 && at + i < n ? x[at + i] * hann[i] : 0;
            transform(tx, bin, in, sizeof(float));
            // The first and the last bin are real; FFmpeg 5.1 leaves what was there in the imaginary part of the last.
            bin[1] = bin[2 * bins - 1] = 0;
            for (int i = 0; i < bins; i++)
                power[i] = bin[2 * i] * bin[2 * i] + bin[2 * i + 1] * bin[2 * i + 1];
            if (k % 1024 == 0) status = mel_check_cancel(err);
        }
    }
    av_tx_uninit(&tx);
    av_free(hann);
    av_free(in);
    av_free(bin);
    if (status != MEL_OK) {
        mel_tensor_unref(result);
        return status;
    }
    *out = result;
    return MEL_OK;
}

// Table 1: the head as a high shelf. Table 2: the RLB high-pass, whose numerator is 1, -2, 1.
static double k_weighted(double x, double z[4]) {
    static const double b0 = 1.53512485958697, b1 = -2.69169618940638, b2 = 1.19839281085285;
    static const double a1 = -1.69065929318241, a2 = 0.73248077421585;
    static const double c1 = -1.99004745483398, c2 = 0.99007225036621;
    double shelf = b0 * x + z[0]; // transposed direct form II
    z[0] = b1 * x - a1 * shelf + z[1];
    z[1] = b2 * x - a2 * shelf;
    double y = shelf + z[2];
    z[2] = -2 * shelf - c1 * y + z[3];
    z[3] = shelf - c2 * y;
    return y;
}

mel_status mel_k_power(const mel_tensor *samples, int32_t block, mel_k_state *state, mel_tensor **out, mel_error *err) {
    mel_status status = check_samples("k_power", samples, 2, err);
    if (status != MEL_OK) return status;
    int64_t n = mel_tensor_shape(samples)[0];
    int channels = (int)mel_tensor_shape(samples)[1];
    if (!state || !out || block < 1 || n < block || n % block)
        return mel_fail(err, MEL_EINVAL, "k_power: %lld samples are no whole blocks of %d", (long long)n, block);
    mel_tensor *result = NULL;
    status = mel_tensor_create(MEL_F32, 1, (int64_t[]){n / block}, &result, err);
    if (status != MEL_OK) return status;
    const float *x = mel_tensor_data(samples);
    float *power = mel_tensor_data(result);
    for (int64_t k = 0; k < n / block; k++) {
        double sum = 0;
        for (int64_t i = 0; i < block; i++, x += channels)
            for (int c = 0; c < channels; c++) {
                double y = k_weighted(x[c], state->z[c]);
                sum += y * y;
            }
        power[k] = (float)(sum / block);
    }
    // Denormal numbers of a filter that rings out are slow.
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < 4; i++)
            if (fabs(state->z[c][i]) < 1e-30) state->z[c][i] = 0;
    *out = result;
    return MEL_OK;
}
