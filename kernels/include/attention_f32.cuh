// Paged attention in float32, by FMA: for exact tests. A warp takes one query at a time. Within a
// part lanes have positions for the scores and elements of the head for the values.
#pragma once

#include "attention_state.cuh"

namespace oarlock {

constexpr int F32_ATTENTION_THREADS = 128;
constexpr int PART_PER_LANE = PART_POSITIONS / 32;
constexpr int WIDTH_PER_LANE = 256 / 32;  // of the widest head

// One query's part: maximum, sum, and the lane's elements of the values.
struct FloatPart {
    float max, sum;
    float values[WIDTH_PER_LANE];
};

struct FloatQuery {
    const AttentionParams &p;
    const uint32_t *table;
    const float *query;  // [head_dim]
    uint32_t kv_head;
    Seen seen;

    // [2][16][head_dim] of the block that has a position, from the position's keys on.
    __device__ __forceinline__ const float *page(uint32_t position) const {
        return static_cast<const float *>(p.cache) +
               cache_offset(table[position / BLOCK_TOKENS], position, kv_head, p.num_kv_heads,
                            p.head_dim);
    }

    // One chain over the head.
    __device__ __forceinline__ float score(uint32_t position) const {
        const float *key = page(position);
        float product = 0.0f;
        for (uint32_t i = 0; i < p.head_dim; i += 4) {
            float q[4], k[4];
            load_4(q, query + i);
            load_4(k, key + i);
#pragma unroll
            for (int j = 0; j < 4; j++) product = fmaf(q[j], k[j], product);
        }
        const float scaled = product * p.scale;
        return p.soft_cap == 0.0f ? scaled : capped_score(scaled, p);
    }

    __device__ __forceinline__ FloatPart attend(uint32_t part) const {
        const uint32_t lane = threadIdx.x % 32, start = part * PART_POSITIONS;
        float weights[PART_PER_LANE];
        FloatPart result;
        result.max = lowest();
#pragma unroll
        for (int i = 0; i < PART_PER_LANE; i++) {
            const uint32_t position = start + i * 32 + lane;
            weights[i] = seen.has(position) ? score(position) : lowest();
            result.max = greater(result.max, weights[i]);
        }
#pragma unroll
        for (int apart = 16; apart > 0; apart /= 2) {
            result.max = greater(result.max, __shfl_xor_sync(0xffffffffu, result.max, apart));
        }
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PART_PER_LANE; i++) {
            const bool is_seen = seen.has(start + i * 32 + lane);
            weights[i] = is_seen ? exp_below_max(weights[i] - result.max) : 0.0f;
            sum += weights[i];
        }
        result.sum = warp_sum(sum);
#pragma unroll
        for (int k = 0; k < WIDTH_PER_LANE; k++) result.values[k] = 0.0f;
#pragma unroll
        for (int i = 0; i < PART_PER_LANE; i++) {
            for (uint32_t j = 0; j < 32; j++) {
                const uint32_t position = start + i * 32 + j;
                if (!seen.has(position)) continue;
                const float weight = __shfl_sync(0xffffffffu, weights[i], j);
                const float *value = page(position) + BLOCK_TOKENS * p.head_dim;
#pragma unroll
                for (int k = 0; k < WIDTH_PER_LANE; k++) {
                    const uint32_t at = k * 32 + lane;
                    if (at < p.head_dim) {
                        result.values[k] = fmaf(weight, value[at], result.values[k]);
                    }
                }
            }
        }
        return result;
    }
};

// Calls `at(k, index)` for each of the lane's elements of a head.
template <typename At>
__device__ __forceinline__ void each_element(uint32_t head_dim, const At &at) {
#pragma unroll
    for (int k = 0; k < WIDTH_PER_LANE; k++) {
        const uint32_t index = k * 32 + threadIdx.x % 32;
        if (index < head_dim) at(k, index);
    }
}

// One block of threads per item (at most 16 pairs) and KV head.
__device__ __forceinline__ void attention_float(const AttentionParams &p) {
    if (blockIdx.x >= *p.num_items) return;
    const AttentionItem item = p.items[blockIdx.x];
    const uint32_t kv_head = blockIdx.y, group = p.num_heads / p.num_kv_heads;
    const size_t row_width = static_cast<size_t>(p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
    for (uint32_t pair = threadIdx.x / 32; pair < item.num_pairs; pair += F32_ATTENTION_THREADS / 32) {
        const PairPlace place =
            place_of(pair, group, item.first_row, item.first_head, item.first_position);
        const uint32_t head = kv_head * group + place.head;
        const FloatQuery query = {p, p.tables + item.first_table_entry,
                                  static_cast<const float *>(p.qkv) + place.row * row_width +
                                      head * p.head_dim,
                                  kv_head, seen_from(place.position, p.window)};
        float max = lowest(), sum = 0.0f, values[WIDTH_PER_LANE] = {};
        bool is_first = true;
        for (uint32_t part = item.first_part; part < item.end_part; part++) {
            if (!sees_part(query.seen, part)) continue;
            const FloatPart next = query.attend(part);
            if (item.first_slot != WHOLE) {
                float *slot = p.workspace + slot_offset(item.first_slot + part - item.first_part,
                                                        kv_head, p.num_kv_heads, p.head_dim);
                each_element(p.head_dim, [&](int k, uint32_t at) {
                    slot[pair * p.head_dim + at] = next.values[k];
                });
                float *state = slot + TILE_PAIRS * p.head_dim + 2 * pair;
                if (threadIdx.x % 32 == 0) state[0] = next.max, state[1] = next.sum;
                continue;
            }
            const JoinFactors factors = join_part(max, sum, next.max, next.sum, is_first);
#pragma unroll
            for (int k = 0; k < WIDTH_PER_LANE; k++) {
                values[k] = join_value(values[k], next.values[k], factors, is_first);
            }
            is_first = false;
        }
        if (item.first_slot != WHOLE) continue;
        float *out = static_cast<float *>(p.out) +
                     (static_cast<size_t>(place.row) * p.num_heads + head) * p.head_dim;
        const float factor = reciprocal(sum);
        each_element(p.head_dim, [&](int k, uint32_t at) { out[at] = values[k] * factor; });
    }
}

}  // namespace oarlock
