// What all attention kernels share: which position a pair has and what it sees, scores, and the state
// of a part (maximum, sum of weights, weighted sum of values) with its join.
//
// Parts are joined in order of positions. A part that a row does not see is skipped, by positions and
// not by values, so that neither other rows of a tile nor the way the work was cut change a bit.
#pragma once

#include "cache.cuh"
#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

__device__ __forceinline__ float lowest() { return __uint_as_float(0xff800000u); }

// The positions that a query sees.
struct Seen {
    uint32_t first;
    uint32_t last;  // the query's own

    // Whether any of `start..end` is among them.
    __device__ __forceinline__ bool meets(uint32_t start, uint32_t end) const {
        return first < end && last >= start;
    }
    __device__ __forceinline__ bool has(uint32_t position) const {
        return first <= position && position <= last;
    }
};

__device__ __forceinline__ Seen seen_from(uint32_t position, uint32_t window) {
    return Seen{window == 0 || position < window ? 0 : position + 1 - window, position};
}

__device__ __forceinline__ bool sees_part(const Seen &seen, uint32_t part) {
    return seen.meets(part * PART_POSITIONS, (part + 1) * PART_POSITIONS);
}

// A query's row of the step and head of the group.
struct PairPlace {
    uint32_t row;
    uint32_t head;
    uint32_t position;
};

__device__ __forceinline__ PairPlace place_of(uint32_t pair, uint32_t group, uint32_t first_row,
                                              uint32_t first_head, uint32_t first_position) {
    const uint32_t at = first_head + pair;
    const uint32_t token = at / group;
    return PairPlace{first_row + token, at - token * group, first_position + token};
}

// cap * tanh(score / cap)
__device__ __forceinline__ float capped_score(float score, const AttentionParams &p) {
    return p.soft_cap * tanh_of_score(score * p.inverse_soft_cap);
}

// Factors that bring two states to their common maximum.
struct JoinFactors {
    float before;
    float part;
};

// Joins the maximum and the sum of a part into those before it.
__device__ __forceinline__ JoinFactors join_part(float &max, float &sum, float part_max,
                                                 float part_sum, bool is_first) {
    if (is_first) {
        max = part_max;
        sum = part_sum;
        return JoinFactors{0.0f, 1.0f};
    }
    const float common = greater(max, part_max);
    const JoinFactors factors = {exp_below_max(max - common), exp_below_max(part_max - common)};
    sum = fmaf(sum, factors.before, part_sum * factors.part);
    max = common;
    return factors;
}

__device__ __forceinline__ float join_value(float before, float part, JoinFactors factors,
                                            bool is_first) {
    return is_first ? part : fmaf(before, factors.before, part * factors.part);
}

// A slot of the workspace for one KV head: sums of values [16, head_dim], then [16] pairs of maximum
// and sum.
__host__ __device__ __forceinline__ size_t slot_offset(uint32_t slot, uint32_t kv_head,
                                                       uint32_t num_kv_heads, uint32_t head_dim) {
    return (static_cast<size_t>(slot) * num_kv_heads + kv_head) * TILE_PAIRS * (head_dim + 2);
}

// One block of threads per join and KV head; a thread walks the parts for one value at a time.
template <typename T>
__device__ __forceinline__ void attention_join(const AttentionJoinParams &p) {
    if (blockIdx.x >= *p.num_joins) return;
    const AttentionJoin join = p.joins[blockIdx.x];
    const uint32_t kv_head = blockIdx.y, group = p.num_heads / p.num_kv_heads;
    for (uint32_t i = threadIdx.x; i < join.num_pairs * p.head_dim; i += blockDim.x) {
        const uint32_t pair = i / p.head_dim, at = i - pair * p.head_dim;
        const PairPlace place =
            place_of(pair, group, join.first_row, join.first_head, join.first_position);
        const Seen seen = seen_from(place.position, p.window);
        float max = lowest(), sum = 0.0f, value = 0.0f;
        bool is_first = true;
        for (uint32_t part = 0; part < join.num_parts; part++) {
            if (!sees_part(seen, join.first_part + part)) continue;
            const float *slot = p.workspace + slot_offset(join.first_slot + part * join.slot_stride,
                                                          kv_head, p.num_kv_heads, p.head_dim);
            const float2 state =
                *reinterpret_cast<const float2 *>(slot + TILE_PAIRS * p.head_dim + 2 * pair);
            const JoinFactors factors = join_part(max, sum, state.x, state.y, is_first);
            value = join_value(value, slot[pair * p.head_dim + at], factors, is_first);
            is_first = false;
        }
        const size_t row = static_cast<size_t>(place.row) * p.num_heads + kv_head * group + place.head;
        static_cast<T *>(p.out)[row * p.head_dim + at] = from_float<T>(value * reciprocal(sum));
    }
}

}  // namespace oarlock
