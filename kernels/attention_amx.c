#define DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#include "amx.inc"

static void tiled_product(
    int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, float *c, int64_t ldc, bool add) {
    const tiled_work w = {n, k / 2, a, b, TILED_FULL * k * 2, lda * 2, (char *)c, ldc * 4};
    tiled(&w, m, add);
}

#define TABLE attention_kernels_amx
#define VECTOR_BYTES 64
#define COLUMNS 4
#define BF16
#define PRODUCT tiled_product
#include "attention.inc"
