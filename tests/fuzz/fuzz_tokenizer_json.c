// tokenizer.json and CLIP's vocabulary from anywhere. Where the input holds a byte 0xFF (never in JSON), what
// stands behind it is the merges file.
// Built like fuzz_spm.c; seeds: tests/golden/*.tokenizer.json, tests/fuzz/regress/tokenizer_json
#include <melies/text.h>

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "The  quick \xE2\x96\x81 brown\xC2\xA0</s> f\xC3\xB6x \xCE\xA3 1234\xFF it's &amp;\n ";
    const uint8_t *split = size ? memchr(data, 0xFF, size) : NULL;
    size_t first = split ? (size_t)(split - data) : size;
    const void *merges = split ? split + 1 : NULL;
    mel_tokenizer *t = NULL;
    mel_error err;
    if (mel_tokenizer_load_memory("fuzz", data, first, merges, split ? size - first - 1 : 0, &t, &err)) return 0;
    int32_t *ids = NULL;
    size_t count = 0, length = 0;
    char *decoded = NULL;
    if (!mel_tokenizer_encode(t, text, sizeof text - 1, &ids, &count, &err) &&
        !mel_tokenizer_decode(t, ids, count, &decoded, &length, &err))
        mel_free(decoded);
    mel_free(ids);
    ids = NULL;
    if (!mel_tokenizer_encode(t, (const char *)data, size < 4096 ? size : 4096, &ids, &count, &err)) mel_free(ids);
    mel_tokenizer_free(t);
    return 0;
}

#include "replay.h"
