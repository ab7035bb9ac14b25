// Replays through the fuzz harnesses: their seeds, every input that once failed, and the malformed fixtures.
#include "check.h"

#include <dirent.h>

#define LLVMFuzzerTestOneInput fuzz_spm
#include "../fuzz/fuzz_spm.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_tokenizer_json
#include "../fuzz/fuzz_tokenizer_json.c"
#undef LLVMFuzzerTestOneInput

static int replay(const char *folder, int (*harness)(const uint8_t *, size_t)) {
    int count = 0;
    DIR *dir = opendir(folder);
    if (!dir) return 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[1024];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "rb");
        CHECK(file != NULL);
        if (!file) continue;
        fseek(file, 0, SEEK_END);
        size_t size = (size_t)ftell(file);
        rewind(file);
        // Exactly as long as the file, so that a sanitizer sees the first byte behind it.
        uint8_t *data = malloc(size ? size : 1);
        CHECK(fread(data, 1, size, file) == size);
        fclose(file);
        double start = mel_seconds();
        harness(data, size);
        CHECK(mel_seconds() - start < 10);
        free(data);
        count++;
    }
    closedir(dir);
    return count;
}

static void seeds(void) {
    CHECK(replay(TEST_DATA "/fuzz/seeds/spm", fuzz_spm) > 3);
    CHECK(replay(TEST_DATA "/fuzz/seeds/tokenizer_json", fuzz_tokenizer_json) > 2);
}

static void regressions(void) {
    replay(TEST_DATA "/fuzz/regress/spm", fuzz_spm);
    replay(TEST_DATA "/fuzz/regress/tokenizer_json", fuzz_tokenizer_json);
}

static void malformed(void) {
    CHECK(replay(TEST_DATA "/golden/malformed", fuzz_spm) > 8);
    CHECK(replay(TEST_DATA "/golden/malformed", fuzz_tokenizer_json) > 8);
}

int main(void) {
    int64_t live = mel_mem_live();
    RUN(seeds);
    RUN(regressions);
    RUN(malformed);
    CHECK(mel_mem_live() == live);
    return CHECK_DONE();
}
