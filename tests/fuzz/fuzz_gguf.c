// Bytes taken for a .gguf file. See weights_target.h.
#include "weights_target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    weights_target(data, size, "fuzz.gguf");
    return 0;
}

#ifdef MELIES_FUZZ_REPLAY
int main(int argc, char **argv) {
    return weights_replay(argc, argv, "fuzz.gguf");
}
#endif
