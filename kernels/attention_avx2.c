#define TABLE attention_kernels_avx2
#define VECTOR_BYTES 32
#define COLUMNS 2
#include "attention.inc"
