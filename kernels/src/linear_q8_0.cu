// Entries of linear layers with packed weights of this kind.
#include "linear.cuh"

using namespace oarlock;

#define ENTRY(name, Tile) \
    extern "C" __global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS) name(const __grid_constant__ LinearParams p) { linear<Q80Weights, Tile>(p); }

ENTRY(linear_q8_0_bf16_n8, LinearN8)
ENTRY(linear_q8_0_bf16_n32, LinearN32)
ENTRY(linear_q8_0_bf16_n64, LinearN64)
