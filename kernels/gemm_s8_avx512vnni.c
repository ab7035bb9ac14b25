#define TABLE gemm_s8_kernels_avx512
#include "gemm_s8.inc"
