#define ROWS_TABLE row_kernels_avx2
#include "rows.inc"
