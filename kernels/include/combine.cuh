// What the experts of rows add up to.
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

constexpr int COMBINE_OUTPUTS = 4;  // of a thread
constexpr int MAX_RANGE = 8;        // segments of a range: a warp each

// sum = fma(weight, expert's, sum) over a row's experts in order, from zero. `sums`: of one segment and output,
// [assignments, hidden]. Outputs from `count` on are not there.
__device__ __forceinline__ void add_experts(float (&sum)[COMBINE_OUTPUTS], const float *sums,
                                            const uint32_t *places, const float *weights,
                                            const ExpertCombineParams &p, uint32_t count,
                                            bool by_4) {
#pragma unroll 8
    for (uint32_t i = 0; i < p.top_k; i++) {
        const float *from = sums + static_cast<size_t>(places[i]) * p.hidden;
        float values[COMBINE_OUTPUTS] = {};
        if (by_4) {
            load_4(values, from);
        } else {
#pragma unroll
            for (int j = 0; j < COMBINE_OUTPUTS; j++) {
                if (j < count) values[j] = from[j];
            }
        }
#pragma unroll
        for (int j = 0; j < COMBINE_OUTPUTS; j++) sum[j] = fmaf(weights[i], values[j], sum[j]);
    }
}

// Block x has a row and block y 128 of its outputs; a warp for each segment of the range, which the tree of
// neighbors joins, then with the ranges before it.
__device__ __forceinline__ void expert_combine(const ExpertCombineParams &p) {
    __shared__ uint32_t places[MAX_TOP_K];
    __shared__ float weights[MAX_TOP_K];
    __shared__ float4 segments[MAX_RANGE][32];
    const uint32_t row = blockIdx.x, segment = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= *p.num_rows) return;
    if (threadIdx.x < p.top_k) {
        places[threadIdx.x] = p.places[static_cast<size_t>(row) * p.top_k + threadIdx.x];
        weights[threadIdx.x] = p.weights[static_cast<size_t>(row) * p.top_k + threadIdx.x];
    }
    __syncthreads();
    const uint32_t first = COMBINE_OUTPUTS * (32 * blockIdx.y + lane);
    const uint32_t count = first < p.hidden ? p.hidden - first : 0;
    const bool by_4 = rows_of_4(p.sums, p.hidden) && rows_of_4(p.out, p.hidden);
    float sum[COMBINE_OUTPUTS] = {};
    if (count > 0) {
        add_experts(sum, p.sums + segment * p.segment_values + first, places, weights, p, count,
                    by_4);
    }
    float4 *slot = &segments[segment][lane];
    const uint32_t num_segments = blockDim.x / 32;
    for (uint32_t apart = 1; apart < num_segments; apart *= 2) {
        if (segment % (2 * apart) == apart) *slot = make_float4(sum[0], sum[1], sum[2], sum[3]);
        __syncthreads();
        if (segment % (2 * apart) == 0) {
            float right[COMBINE_OUTPUTS];
            load_4(right, reinterpret_cast<const float *>(slot + 32 * apart));
#pragma unroll
            for (int j = 0; j < COMBINE_OUTPUTS; j++) sum[j] += right[j];
        }
    }
    if (segment != 0) return;
    float *pending = p.pending + static_cast<size_t>(row) * p.hidden + first;
    for (uint32_t bits = p.range; bits % 2 == 1; bits /= 2) {
#pragma unroll
        for (int j = 0; j < COMBINE_OUTPUTS; j++) {
            if (j < count) sum[j] = pending[j] + sum[j];
        }
        pending += p.level_values;
    }
    float *out = p.range + 1 == p.ranges ? p.out + static_cast<size_t>(row) * p.hidden + first
                                         : pending;
    if (by_4 && count > 0) {
        store_4(out, sum);
        return;
    }
#pragma unroll
    for (int j = 0; j < COMBINE_OUTPUTS; j++) {
        if (j < count) out[j] = sum[j];
    }
}

}  // namespace oarlock
