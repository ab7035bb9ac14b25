#define TRAIN_TABLE train_kernels_avx2
#include "train.inc"
