// Entry of attention in float32.
#include "attention_f32.cuh"

using namespace oarlock;

extern "C" __global__ void __launch_bounds__(F32_ATTENTION_THREADS, 1) attention_f32(const __grid_constant__ AttentionParams p) { attention_float(p); }
