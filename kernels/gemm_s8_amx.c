#define DOT(c, a, b) _tile_dpbusd(c, a, b)
#include "amx.inc"

static void tiled_product(int64_t m, int64_t n, int64_t k, const uint8_t *a, int64_t lda, const int8_t *b, int32_t *c,
    int64_t ldc, bool add) {
    const tiled_work w = {n, k / 4, (const char *)a, (const char *)b, TILED_FULL * k, lda, (char *)c, ldc * 4};
    tiled(&w, m, add);
}

#define TABLE gemm_s8_kernels_amx
#define PRODUCT tiled_product
#include "gemm_s8.inc"
