// Optical flow in vectors of 256 bits.
#define FLOW_KERNELS flow_kernels_avx2
#include "flow.inc"
