// Statistics of segments of 1,024 logits, as crates/sampler/src/segment.rs defines them.
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

constexpr int LOGIT_LANES = 16;  // the sampler's lanes: a half warp for each segment
constexpr int LOGITS_PER_LANE = SEGMENT_LOGITS / LOGIT_LANES;
constexpr int LOGIT_THREADS = 128;

__device__ __forceinline__ float negative_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ __forceinline__ bool is_nan(float value) { return value != value; }

// A logit and its token; better is greater, then lower.
struct Best {
    float logit;
    uint32_t token;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    const bool is_b = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    return is_b ? b : a;
}

// The best of 2 * APART lanes, in each of them.
template <int APART>
__device__ __forceinline__ Best best_of_lanes(Best best) {
#pragma unroll
    for (int apart = APART; apart > 0; apart /= 2) {
        const Best other = {__shfl_xor_sync(0xffffffffu, best.logit, apart),
                            __shfl_xor_sync(0xffffffffu, best.token, apart)};
        best = better(best, other);
    }
    return best;
}

// A lane has the logits of its number modulo 16 and sums their exponentials in order; then lanes 8,
// 4, 2 and 1 apart are joined.
__device__ __forceinline__ void logit_stats(const LogitStatsParams &p) {
    if (blockIdx.y >= *p.num_rows) return;
    const uint32_t segments = (p.vocabulary + SEGMENT_LOGITS - 1) / SEGMENT_LOGITS;
    const uint32_t segment = blockIdx.x * (LOGIT_THREADS / LOGIT_LANES) + threadIdx.x / LOGIT_LANES;
    const uint32_t lane = threadIdx.x % LOGIT_LANES;
    const uint32_t first = segment * SEGMENT_LOGITS + lane;
    const float *logits = p.logits + static_cast<size_t>(blockIdx.y) * p.vocabulary;
    float values[LOGITS_PER_LANE];
    Best best = {negative_infinity(), WHOLE};
    bool has_nan = false;
#pragma unroll
    for (int i = 0; i < LOGITS_PER_LANE; i++) {
        const uint32_t token = first + i * LOGIT_LANES;
        const bool is_there = token < p.vocabulary;
        values[i] = is_there ? logits[token] : negative_infinity();
        has_nan = has_nan || is_nan(values[i]);
        // Tokens ascend, so an equal logit is not better; the first negative infinity is.
        if (is_there && (values[i] > best.logit ||
                         (values[i] == best.logit && best.token == WHOLE))) {
            best = {values[i], token};
        }
    }
    best = best_of_lanes<LOGIT_LANES / 2>(best);
    // Segments of a warp's two halves may differ in all this; shuffles want every lane.
    const uint32_t half_mask = 0xffffu << (threadIdx.x & 16);
    has_nan = (__ballot_sync(0xffffffffu, has_nan) & half_mask) != 0;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LOGITS_PER_LANE; i++) {
        sum += exp_fixed(values[i] - best.logit);
    }
#pragma unroll
    for (int apart = LOGIT_LANES / 2; apart > 0; apart /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    }
    if (has_nan) {
        sum = not_a_number();
    } else if (best.logit == negative_infinity()) {
        sum = 0.0f;
    }
    if (lane == 0 && segment < segments) {
        p.stats[static_cast<size_t>(blockIdx.y) * segments + segment] =
            SegmentStats{best.logit, sum, best.token, 0};
    }
}

}  // namespace oarlock
