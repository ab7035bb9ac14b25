#define TRAIN_TABLE train_kernels_avx512
#include "train.inc"
