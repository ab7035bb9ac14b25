#define TABLE attention_s8_kernels_avx512
#include "attention_s8.inc"
