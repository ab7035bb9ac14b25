#define ROWS_TABLE row_kernels_avx512
#include "rows.inc"
