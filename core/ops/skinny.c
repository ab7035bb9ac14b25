// Products with few rows: the weights are read once, straight from where they lie, against packed rows of x. What a
// prompt of a few dozen tokens needs is then bound by reading the weights.
#include "kernels/attention.h"
#include "ops/ops.h"

#include <string.h>

enum {
    ROWS = 48,
    DEPTH = 4096
}; // rows of w in a task; columns of w against one piece of x that stays in the cache

const attention_kernels *mel_product_kernels(mel_dtype dtype) {
    mel_isa isa = mel_cpu_isa();
    if (isa >= MEL_ISA_AVX512_BF16 && dtype == MEL_BF16)
        return isa == MEL_ISA_AMX ? &attention_kernels_amx : &attention_kernels_avx512bf16;
    if (isa >= MEL_ISA_AVX512) return &attention_kernels_avx512;
    if (isa == MEL_ISA_AVX2) return &attention_kernels_avx2;
    return &attention_kernels_ref;
}

int64_t mel_product_pairs(mel_dtype dtype) {
    return mel_product_kernels(dtype)->pairs;
}

void mel_pack_column(int64_t pairs, const void *row, int64_t depth, void *panel, int64_t columns, int64_t column) {
    if (pairs == 2) {
        const uint32_t *from = row;
        uint32_t *to = (uint32_t *)panel + column;
        for (int64_t c = 0; c < depth / 2; c++)
            to[c * columns] = from[c];
    } else {
        const float *from = row;
        float *to = (float *)panel + column;
        for (int64_t c = 0; c < depth; c++)
            to[c * columns] = from[c];
    }
}

mel_status mel_skinny_product(const mel_source *w, mel_dtype operand, const void *x, int64_t m, const float *bias,
    mel_act act, mel_dtype dtype, void *y, mel_error *err) {
    const attention_kernels *kernels = mel_product_kernels(operand);
    const int64_t size = mel_dtype_size(operand), k = w->columns, n = w->rows, pairs = kernels->pairs;
    const int64_t padded = (m + kernels->width - 1) / kernels->width * kernels->width;
    const int64_t tasks = (n + ROWS - 1) / ROWS;
    const bool direct = w->base && w->stored == operand;
    int threads = n * k >= 1 << 18 ? mel_threads() : 1;
    if (threads > tasks) threads = (int)tasks;
    const int64_t rows_bytes = direct ? 0 : (ROWS * k * size + 63) / 64 * 64, sums = ROWS * padded;
    const int64_t each = rows_bytes + (sums + ROWS) * 4;
    char *packed = mel_alloc((size_t)(padded * k * size), err);
    char *room = packed ? mel_alloc((size_t)(threads * each), err) : NULL;
    if (!room) {
        mel_free(packed);
        return MEL_ENOMEM;
    }
    // x as panels of its rows, one stretch of DEPTH after another.
    memset(packed, 0, (size_t)(padded * k * size));
    for (int64_t from = 0; from < k; from += DEPTH) {
        int64_t depth = k - from < DEPTH ? k - from : DEPTH;
        for (int64_t i = 0; i < m; i++) {
            int64_t panel = i / kernels->panel * kernels->panel;
            int64_t columns = padded - panel < kernels->panel ? padded - panel : kernels->panel;
            mel_pack_column(pairs, (const char *)x + (i * k + from) * size, depth,
                packed + (padded * from + panel * depth) * size, columns, i - panel);
        }
    }
    const row_kernels *rows = mel_rows();
    const int64_t out_size = mel_dtype_size(dtype);
    mel_status status = MEL_OK;
    mel_error first = {0};
    int next_room = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int mine;
#pragma omp atomic capture
        mine = next_room++;
        char *copy = room + mine * each;
        float *c = (float *)(void *)(copy + rows_bytes), *line = c + sums;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t at = task * ROWS, count = n - at < ROWS ? n - at : ROWS;
            const char *weights = copy;
            mel_error e;
            mel_status s = mel_check_cancel(&e);
            if (!s && direct)
                weights = w->base + at * k * size;
            else if (!s)
                s = mel_source_read(w, at, count, operand, copy, &e);
            if (s) {
#pragma omp critical(mel_skinny)
                if (!status) {
                    status = s;
                    first = e;
                }
                continue;
            }
            for (int64_t from = 0; from < k; from += DEPTH) {
                int64_t depth = k - from < DEPTH ? k - from : DEPTH;
                kernels->product(
                    count, padded, depth, weights + from * size, k, packed + padded * from * size, c, padded, from > 0);
            }
            for (int64_t i = 0; i < m; i++) {
                for (int64_t r = 0; r < count; r++)
                    line[r] = c[r * padded + i] + (bias ? bias[at + r] : 0.0f);
                if (act) rows->act((int)act, line, count);
                rows->store((int)dtype, line, (char *)y + (i * n + at) * out_size, count);
            }
        }
    }
    mel_free(room);
    mel_free(packed);
    if (status && err) *err = first;
    return status;
}
