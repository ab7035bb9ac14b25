#define TABLE attention_kernels_avx512
#define VECTOR_BYTES 64
#define COLUMNS 4
#include "attention.inc"
