// Which experts rows take, and where their work lies.
#pragma once

#include "logits.cuh"
#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

constexpr int ROUTE_WARPS = 4;  // a row each
constexpr int PLAN_THREADS = 256;
constexpr int PLAN_WARPS = PLAN_THREADS / 32;

__device__ __forceinline__ uint32_t lanes_below() { return (1u << threadIdx.x % 32) - 1; }

// A row's logits in shared memory: a lane has those of experts lane, lane + 32, .., and reads no others.
struct RouterLogits {
    float *values;  // [num_experts]
    uint32_t num_experts;

    // Calls act(i, expert) for this lane's experts.
    template <typename Act>
    __device__ __forceinline__ void each(const Act &act) const {
        uint32_t i = 0;
        for (uint32_t expert = threadIdx.x % 32; expert < num_experts; expert += 32) {
            act(i++, expert);
        }
    }

    // Adds up the parts of each, the last one first: it is the least. Whether one is no number.
    __device__ __forceinline__ bool load(const float *parts, uint32_t num_parts) {
        bool has_nan = false;
        each([&](uint32_t, uint32_t expert) {
            uint32_t part = num_parts - 1;
            float value = parts[part * num_experts + expert];
#pragma unroll 1
            while (part > 0) value += parts[--part * num_experts + expert];
            values[expert] = value;
            has_nan = has_nan || is_nan(value);
        });
        return __any_sync(0xffffffffu, has_nan);
    }

    // The greatest logit that is not in `taken`, bit i for this lane's i-th expert; of equal ones the first.
    __device__ __forceinline__ Best best(uint32_t taken) const {
        Best best = {negative_infinity(), WHOLE};
        each([&](uint32_t i, uint32_t expert) {
            if ((taken >> i & 1) == 0) best = better(best, Best{values[expert], expert});
        });
        return best_of_lanes<16>(best);
    }
};

// One warp per row.
__device__ __forceinline__ void route(const RouteParams &p) {
    __shared__ float shared_logits[ROUTE_WARPS][MAX_EXPERTS];
    __shared__ float shared_terms[ROUTE_WARPS][MAX_TOP_K];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t row = blockIdx.x * ROUTE_WARPS + warp;
    if (row >= *p.num_rows) return;
    uint32_t *experts = p.experts + static_cast<size_t>(row) * p.top_k;
    float *weights = p.weights + static_cast<size_t>(row) * p.top_k;
    RouterLogits logits = {shared_logits[warp], p.num_experts};
    if (logits.load(p.logits + static_cast<size_t>(row) * p.parts * p.num_experts, p.parts)) {
        if (lane < p.top_k) {
            experts[lane] = lane;
            weights[lane] = not_a_number();
        }
        return;
    }
    uint32_t taken = 0;
    float greatest = 0.0f;
    for (uint32_t i = 0; i < p.top_k; i++) {
        const Best best = logits.best(taken);
        if (i == 0) greatest = best.logit;
        if (best.token % 32 == lane) taken |= 1u << best.token / 32;
    }
    // The chosen ones in order of experts, which is that of i and then of lanes: where this lane's are.
    float *terms = shared_terms[warp];  // [top_k]: exp(logit - greatest)
    float sum = 0.0f;                   // of all of the lane's experts
    uint32_t place = 0;
    for (uint32_t i = 0; 32 * i < p.num_experts; i++) {
        const uint32_t expert = 32 * i + lane;
        const float term =
            expert < p.num_experts ? exp_below_max(logits.values[expert] - greatest) : 0.0f;
        sum += term;
        const bool is_taken = (taken >> i & 1) != 0;
        const uint32_t all = __ballot_sync(0xffffffffu, is_taken);
        if (is_taken) {
            const uint32_t at = place + __popc(all & lanes_below());
            experts[at] = expert;
            terms[at] = term;
        }
        place += __popc(all);
    }
    __syncwarp();
    if (p.normalize != 0) {
        sum = 0.0f;
        for (uint32_t i = 0; i < p.top_k; i++) sum += terms[i];
    } else {
        sum = warp_sum(sum);
    }
    if (lane < p.top_k) weights[lane] = __fdiv_rn(terms[lane], sum);
}

__device__ __forceinline__ uint32_t warp_count(uint32_t value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, apart);
    }
    return value;
}

// One block of threads per expert: its rows and its tiles. It finds its place in the list by counting what
// goes to experts before it. Tiles have room for the worst case and are empty where there are fewer: one for
// each assignment, or, where that is less, one for each whole tile of assignments and for each expert.
__device__ __forceinline__ void plan_experts(const ExpertPlanParams &p) {
    __shared__ uint32_t warps_before[PLAN_WARPS], warps_own[PLAN_WARPS];
    const uint32_t expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t assignments = *p.num_rows * p.top_k;
    // A warp looks at a range of the choices, twice.
    const uint32_t span = (assignments + PLAN_THREADS - 1) / PLAN_THREADS * 32;
    const uint32_t start = min(assignments, warp * span), end = min(assignments, start + span);
    uint32_t before = 0, own = 0;
#pragma unroll 4
    for (uint32_t i = start + lane; i < end; i += 32) {
        const uint32_t other = p.experts[i];
        before += other < expert ? 1 : 0;
        own += other == expert ? 1 : 0;
    }
    before = warp_count(before);
    own = warp_count(own);
    if (lane == 0) {
        warps_before[warp] = before;
        warps_own[warp] = own;
    }
    __syncthreads();
    uint32_t first = 0, count = 0, place = 0;
    for (uint32_t i = 0; i < PLAN_WARPS; i++) {
        first += warps_before[i];
        place += i < warp ? warps_own[i] : 0;
        count += warps_own[i];
    }
    place += first;
    if (own > 0) {
        for (uint32_t i = start + lane; i - lane < end; i += 32) {
            const bool is_own = i < end && p.experts[i] == expert;
            const uint32_t all = __ballot_sync(0xffffffffu, is_own);
            if (is_own) {
                const uint32_t at = place + __popc(all & lanes_below());
                p.rows[at] = i / p.top_k;
                p.places[i] = at;
            }
            place += __popc(all);
        }
    }
    const bool is_few = assignments <= assignments / p.tile_rows + p.num_experts;
    const uint32_t first_tile = is_few ? first : first / p.tile_rows + expert;
    const uint32_t end_tile =
        is_few ? first + count : (first + count) / p.tile_rows + expert + 1;
    for (uint32_t i = threadIdx.x; i < end_tile - first_tile; i += PLAN_THREADS) {
        const uint32_t done = min(count, i * p.tile_rows);
        p.tiles[first_tile + i] =
            ExpertTile{expert, first + done, min(p.tile_rows, count - done), 0};
    }
    if (expert == 0 && threadIdx.x == 0) {
        p.counts[0] = assignments;
        p.counts[1] = is_few ? assignments : assignments / p.tile_rows + p.num_experts;
    }
}

}  // namespace oarlock
