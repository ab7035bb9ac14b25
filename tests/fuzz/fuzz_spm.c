// sentencepiece models from anywhere: load, and where that works encode and decode.
// clang -g -O1 -fsanitize=fuzzer,address -Icore/include -Icore -Ibuild/generated tests/fuzz/fuzz_spm.c core/text/*.c
//   core/base/*.c -lpcre2-8 -ljansson -lm -o fuzz_spm; seeds: tests/golden/*.model, tests/fuzz/regress/spm
// With -DMELIES_FUZZ_REPLAY and without fuzzer it replays the files given.
#include <melies/text.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] =
        "The  quick \xE2\x96\x81 brown\xC2\xA0<extra_id_0> f\xC3\xB6x \xF0\x9F\x98\x80 1234\xFF </s> ";
    mel_tokenizer *t = NULL;
    mel_error err;
    if (mel_tokenizer_load_memory("fuzz", data, size, NULL, 0, &t, &err)) return 0;
    int32_t *ids = NULL;
    size_t count = 0, length = 0;
    char *decoded = NULL;
    if (!mel_tokenizer_encode(t, text, sizeof text - 1, &ids, &count, &err) &&
        !mel_tokenizer_decode(t, ids, count, &decoded, &length, &err))
        mel_free(decoded);
    mel_free(ids);
    // The model's own bytes as text reach more of its pieces and rules.
    ids = NULL;
    if (!mel_tokenizer_encode(t, (const char *)data, size < 4096 ? size : 4096, &ids, &count, &err)) mel_free(ids);
    mel_tokenizer_free(t);
    return 0;
}

#include "replay.h"
