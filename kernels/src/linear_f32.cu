// Entry of linear layers in float32.
#include "linear_f32.cuh"

using namespace oarlock;

extern "C" __global__ void __launch_bounds__(F32_THREADS) linear_f32(const __grid_constant__ LinearParams p) { linear_float(p); }
