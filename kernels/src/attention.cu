// Entries of attention in bfloat16, and of the join of parts.
#include "attention.cuh"

using namespace oarlock;

#define ENTRY(name, ...) \
    extern "C" __global__ void __launch_bounds__(AttentionShape<__VA_ARGS__>::THREADS, 1) \
        name(const __grid_constant__ AttentionParams p) { attention<AttentionShape<__VA_ARGS__>>(p); }

ENTRY(attention_bf16_d64_w1, 64, 64, 3, 1)
ENTRY(attention_bf16_d64_w4, 64, 64, 3, 4)
ENTRY(attention_bf16_d128_w1, 128, 32, 3, 1)
ENTRY(attention_bf16_d128_w4, 128, 32, 3, 4)
ENTRY(attention_bf16_d256_w1, 256, 16, 4, 1)
ENTRY(attention_bf16_d256_w4, 256, 16, 4, 4)

#define JOIN(name, T) \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ AttentionJoinParams p) { attention_join<T>(p); }

JOIN(attention_join_bf16, Bf16)
JOIN(attention_join_f32, float)
