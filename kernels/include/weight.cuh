// Weights of tokens in fixed point, and searches among them by one block of threads, as
// crates/sampler/src/{sample,filter}.rs define them. Sums of integers have no order, so threads take
// tokens as it suits them.
#pragma once

#include "logits.cuh"
#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

constexpr int SAMPLE_THREADS = 512;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr int MAX_SEGMENTS = 512;  // of the greatest vocabulary, 2^19 - 1
constexpr int SEGMENTS_PER_LANE = MAX_SEGMENTS / 32;
constexpr uint32_t WEIGHT_BITS = 45;
constexpr uint32_t SUB_BITS = 4;  // bits below the leading one that choose a bucket
constexpr uint32_t NUM_BUCKETS = 48 << SUB_BITS;
constexpr int BUCKETS_PER_LANE = NUM_BUCKETS / 32;
constexpr uint32_t MAX_CANDIDATES = 1024;  // compared each with each: two per thread

typedef unsigned long long Mass;  // what atomics and shuffles take

// The last kept token: kept are those of greater weight, and of equal weight up to its id.
struct Cut {
    Mass weight;
    uint32_t id;

    __device__ __forceinline__ bool keeps(Mass other, uint32_t other_id) const {
        return other > weight || (other == weight && other_id <= id);
    }
};

// Memory of one block.
struct SampleShared {
    Mass masses[MAX_SEGMENTS];
    Mass bucket_masses[NUM_BUCKETS];
    Mass candidate_weights[MAX_CANDIDATES];
    uint32_t candidate_ids[MAX_CANDIDATES];
    uint32_t bucket_counts[NUM_BUCKETS];
    double terms[MAX_SEGMENTS];
    Best bests[MAX_SEGMENTS];
    Mass warp_sums[SAMPLE_WARPS];
    // What one thread found for all.
    Mass found_mass;
    Mass found_left;
    uint32_t found;
    uint32_t num_candidates;
    Cut cut;
};

constexpr uint32_t NOT_FOUND = 0xffffffffu;

// One row of logits with its temperature: the weight of each token.
struct WeightRow {
    const float *logits;  // [vocabulary]
    uint32_t vocabulary;
    float max;
    float temperature;

    // exp((logit - max) / temperature) times 2^45, truncated; 0 for NaN.
    __device__ __forceinline__ Mass weigh(float logit) const {
        const float value = exp_below_max(__fdiv_rn(logit - max, temperature));
        const uint32_t bits = __float_as_uint(value);
        const Mass mantissa = (bits & 0x007fffffu) | 0x00800000u;
        const uint32_t shift = min(127u - (bits >> 23), 63u);
        return (mantissa << (WEIGHT_BITS - 23)) >> shift;
    }

    // Calls `act(weight, token)` for every STRIDE-th token from `first` to `end`, with LOADS logits
    // under way at once: a row comes from the L2 cache, and one block has little else to wait with.
    template <uint32_t STRIDE, int LOADS, typename Act>
    __device__ __forceinline__ void each(uint32_t first, uint32_t end, const Act &act) const {
        for (uint32_t base = first; base < end; base += LOADS * STRIDE) {
            float values[LOADS];
#pragma unroll
            for (int i = 0; i < LOADS; i++) {
                const uint32_t token = base + i * STRIDE;
                values[i] = token < end ? logits[token] : negative_infinity();
            }
#pragma unroll
            for (int i = 0; i < LOADS; i++) {
                const uint32_t token = base + i * STRIDE;
                if (token < end) act(weigh(values[i]), token);
            }
        }
    }

    // For all tokens, dealt to the threads of the block.
    template <typename Act>
    __device__ __forceinline__ void each_of_block(const Act &act) const {
        each<SAMPLE_THREADS, 8>(threadIdx.x, vocabulary, act);
    }
};

__device__ __forceinline__ Mass warp_sum(Mass value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, apart);
    }
    return value;
}

// Sum over lanes up to this one.
__device__ __forceinline__ Mass inclusive_scan(Mass value) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
        const Mass before = __shfl_up_sync(0xffffffffu, value, apart);
        if (lane >= apart) value += before;
    }
    return value;
}

// Sum over the block, the same in every thread. `sums`: one for each warp.
__device__ __forceinline__ Mass block_sum(Mass value, Mass *sums) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    Mass total = 0;
    for (int i = 0; i < SAMPLE_WARPS; i++) total += sums[i];
    return total;
}

// masses[s] = sum of value(weight, token) over segment s. A warp takes a segment at a time.
template <typename Value>
__device__ __forceinline__ void sum_segments(SampleShared &shared, const WeightRow &row,
                                             const Value &value) {
    __syncthreads();
    for (uint32_t segment = threadIdx.x / 32; segment < MAX_SEGMENTS; segment += SAMPLE_WARPS) {
        Mass sum = 0;
        const uint32_t end = min(row.vocabulary, (segment + 1) * SEGMENT_LOGITS);
        row.each<32, 8>(segment * SEGMENT_LOGITS + threadIdx.x % 32, end,
                        [&](Mass weight, uint32_t token) { sum += value(weight, token); });
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) shared.masses[segment] = sum;
    }
    __syncthreads();
}

// By the first warp: the index in `sums` at which their running sum exceeds `target`, and what is
// left of it there. `sums` has 32 * PER_LANE entries; `at(i)` gives the i-th.
template <int PER_LANE, typename At>
__device__ __forceinline__ uint32_t find_in_sums(Mass &target, const At &at) {
    const uint32_t lane = threadIdx.x % 32;
    Mass own = 0;
    for (int i = 0; i < PER_LANE; i++) own += at(lane * PER_LANE + i);
    const Mass before = inclusive_scan(own) - own;
    const bool is_here = before <= target && target < before + own;
    const uint32_t who = __ballot_sync(0xffffffffu, is_here);
    if (who == 0) return NOT_FOUND;
    uint32_t index = NOT_FOUND;
    Mass left = 0;
    if (is_here) {
        left = target - before;
        index = lane * PER_LANE;
        while (left >= at(index)) {
            left -= at(index);
            index++;
        }
    }
    const int source = __ffs(who) - 1;
    target = __shfl_sync(0xffffffffu, left, source);
    return __shfl_sync(0xffffffffu, index, source);
}

// The first token in order of ids at which the running sum of value(weight, token) exceeds `target`,
// given the segments' sums. For the whole block.
template <typename Value>
__device__ __forceinline__ uint32_t find_token(SampleShared &shared, const WeightRow &row,
                                               Mass target, const Value &value) {
    if (threadIdx.x < 32) {
        const uint32_t segment = find_in_sums<SEGMENTS_PER_LANE>(
            target, [&](uint32_t i) { return shared.masses[i]; });
        uint32_t found = NOT_FOUND;
        if (segment != NOT_FOUND) {
            const uint32_t end = min(row.vocabulary, (segment + 1) * SEGMENT_LOGITS);
            for (uint32_t first = segment * SEGMENT_LOGITS; first < end; first += 32) {
                const uint32_t token = first + threadIdx.x;
                const Mass own = token < end ? value(row.weigh(row.logits[token]), token) : 0;
                const Mass sum = inclusive_scan(own);
                const uint32_t beyond = __ballot_sync(0xffffffffu, target < sum);
                if (beyond != 0) {
                    found = first + __ffs(beyond) - 1;
                    break;
                }
                target -= __shfl_sync(0xffffffffu, sum, 31);
            }
        }
        if (threadIdx.x == 0) shared.found = found;
    }
    __syncthreads();
    return shared.found;
}

}  // namespace oarlock
