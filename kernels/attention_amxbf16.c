// The matrix product on AMX tiles: 32 rows of c by 32 columns stay in four of the eight tiles. Its panels are those of
// attention_avx512bf16.c, whose rows [k/2][columns][2] are tiles as they stand. A sum's order depends on its place along
// k alone, so rows and columns may be divided anyhow.
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define TABLE attention_kernels_amxbf16
#define VECTOR_BYTES 64
#define COLUMNS 4
#define BF16
#define PRODUCT tiled_product

enum {
    SIDE = 16,  // rows of a tile
    DEPTH = 32, // bf16 in a row of it
    FULL = 64   // columns of a full panel
};

typedef struct work {
    int64_t n, k;
    const uint16_t *a, *b;
    int64_t lda;
    float *c;
    int64_t ldc;
} work;

// Tiles 0 to 3 are c's (two of the first `rows` up to 16, two of the rest), 4 and 5 a's, 6 and 7 b's, `depth` deep.
static void configure(int rows, int depth) {
    struct {
        uint8_t palette, start, none[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    const int first = rows < SIDE ? rows : SIDE, second = rows - first;
    for (int i = 0; i < 8; i++) {
        tiles.rows[i] = (uint8_t)(i >= 6 ? depth / 2 : i == 4 || i < 2 ? first : second);
        tiles.row_bytes[i] = (uint16_t)(tiles.rows[i] == 0 ? 0 : i == 4 || i == 5 ? depth * 2 : 64);
    }
    _tile_loadconfig(&tiles);
}

// c's rows [first, first + blocks * rows), `rows` (up to 32) at a time, of `steps` steps of `depth` along k from `from`.
static void pass(
    const work *w, int64_t first, int64_t blocks, int rows, int64_t from, int64_t steps, int depth, bool add) {
    if (blocks == 0 || steps == 0) return;
    configure(rows, depth);
    const bool lower = rows > SIDE;
    const int64_t down_a = SIDE * w->lda, down_c = SIDE * w->ldc;
    for (int64_t j = 0; j < w->n; j += SIDE * 2) {
        const int64_t panel = j / FULL * FULL, columns = w->n - panel < FULL ? w->n - panel : FULL;
        const bool right = w->n - j > SIDE;
        for (int64_t i = 0; i < blocks; i++) {
            const uint16_t *a = w->a + (first + i * rows) * w->lda + from;
            const uint16_t *b = w->b + panel * w->k + from * columns + (j - panel) * 2;
            float *c = w->c + (first + i * rows) * w->ldc + j;
            if (add) {
                _tile_loadd(0, c, w->ldc * 4);
                if (right) _tile_loadd(1, c + SIDE, w->ldc * 4);
                if (lower) _tile_loadd(2, c + down_c, w->ldc * 4);
                if (right && lower) _tile_loadd(3, c + down_c + SIDE, w->ldc * 4);
            } else {
                _tile_zero(0);
                if (right) _tile_zero(1);
                if (lower) _tile_zero(2);
                if (right && lower) _tile_zero(3);
            }
            for (int64_t t = 0; t < steps; t++, a += depth, b += depth * columns) {
                _tile_loadd(4, a, w->lda * 2);
                _tile_loadd(6, b, columns * 4);
                _tile_dpbf16ps(0, 4, 6);
                if (right) {
                    _tile_loadd(7, b + SIDE * 2, columns * 4);
                    _tile_dpbf16ps(1, 4, 7);
                }
                if (lower) {
                    _tile_loadd(5, a + down_a, w->lda * 2);
                    _tile_dpbf16ps(2, 5, 6);
                    if (right) _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, c, w->ldc * 4);
            if (right) _tile_stored(1, c + SIDE, w->ldc * 4);
            if (lower) _tile_stored(2, c + down_c, w->ldc * 4);
            if (right && lower) _tile_stored(3, c + down_c + SIDE, w->ldc * 4);
        }
    }
}

static void tiled_product(
    int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, float *c, int64_t ldc, bool add) {
    const work w = {n, k, a, b, lda, c, ldc};
    const int64_t blocks = m / (2 * SIDE), whole = blocks * 2 * SIDE, steps = k / DEPTH;
    const int rest = (int)(m - whole), last = (int)(k - steps * DEPTH);
    if (k == 0 && !add)
        for (int64_t i = 0; i < m; i++)
            memset(c + i * ldc, 0, (size_t)n * 4);
    pass(&w, 0, blocks, 2 * SIDE, 0, steps, DEPTH, add);
    pass(&w, whole, rest > 0, rest, 0, steps, DEPTH, add);
    pass(&w, 0, blocks, 2 * SIDE, steps * DEPTH, last > 0, last, add || steps > 0);
    pass(&w, whole, rest > 0, rest, steps * DEPTH, last > 0, last, add || steps > 0);
    _tile_release();
}

#include "attention.inc"
