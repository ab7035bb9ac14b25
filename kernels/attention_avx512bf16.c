#define TABLE attention_kernels_avx512bf16
#define VECTOR_BYTES 64
#define COLUMNS 4
#define BF16
#include "attention.inc"
