// Optical flow for any processor.
#define FLOW_KERNELS flow_kernels_plain
#include "flow.inc"
