// Behind a fuzz harness: with -DMELIES_FUZZ_REPLAY a main that runs the harness on the files it is given.
#ifdef MELIES_FUZZ_REPLAY
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            perror(argv[i]);
            return 1;
        }
        fseek(file, 0, SEEK_END);
        size_t size = (size_t)ftell(file);
        rewind(file);
        // Exactly as long as the file, so that a sanitizer sees the first byte behind it.
        uint8_t *data = malloc(size ? size : 1);
        size = fread(data, 1, size, file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
    return 0;
}
#endif
