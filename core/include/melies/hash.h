// SHA-256, for names of what is kept on disk: a key is the hash of everything that a result depends on.
#ifndef MELIES_HASH_H
#define MELIES_HASH_H

#include <melies/base.h>

// FIPS 180-4. digest: 32 bytes. MEL_EINVAL: a negative size, or data is NULL with a size. MEL_ENOMEM.
MEL_API mel_status mel_sha256(const void *data, int64_t size_bytes, uint8_t *digest, mel_error *err);

#endif
