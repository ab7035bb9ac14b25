// SHA-256 through libavutil, which is linked for the codecs anyway.
#include <libavutil/mem.h>
#include <libavutil/sha.h>
#include <melies/hash.h>

mel_status mel_sha256(const void *data, int64_t size_bytes, uint8_t *digest, mel_error *err) {
    if (size_bytes < 0 || (!data && size_bytes > 0) || !digest)
        return mel_fail(err, MEL_EINVAL, "sha256: %lld bytes of %s", (long long)size_bytes, data ? "data" : "nothing");
    struct AVSHA *sha = av_sha_alloc();
    if (!sha) return mel_fail(err, MEL_ENOMEM, "sha256: out of memory");
    av_sha_init(sha, 256);
    if (size_bytes > 0) av_sha_update(sha, data, (size_t)size_bytes);
    av_sha_final(sha, digest);
    av_free(sha);
    return MEL_OK;
}
