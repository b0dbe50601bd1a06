// Entries of linear layers, and of those of experts, with packed weights of this kind.
#include "experts.cuh"
#include "linear.cuh"

using namespace oarlock;

// `blocks` at least are to fit on a multiprocessor, by their registers.
#define ENTRY(name, Tile, blocks) \
    extern "C" __global__ void __launch_bounds__(Tile::THREADS, blocks) name(const __grid_constant__ LinearParams p) { linear<Bf16Weights, Tile>(p); }

ENTRY(linear_bf16_n8, LinearN8, 4)
ENTRY(linear_bf16_n32, LinearN32, 4)
ENTRY(linear_bf16_n64, LinearN64, 2)

#define EXPERTS(name, Tile, blocks) \
    extern "C" __global__ void __launch_bounds__(Tile::THREADS, blocks) name(const __grid_constant__ ExpertLinearParams p) { experts<Bf16Weights, Tile>(p); }

EXPERTS(experts_bf16_n8, LinearN8, 4)
EXPERTS(experts_bf16_n32, LinearN32, 3)
EXPERTS(experts_bf16_n64, LinearN64, 2)
