// From a row of logits to a token and its score, bit for bit as crates/sampler: one block of threads
// for a row.
#pragma once

#include "filter.cuh"
#include "logits.cuh"
#include "weight.cuh"

namespace oarlock {

// The sampler's ln of a positive normal number, operation by operation.
__device__ __forceinline__ double ln_fixed(double x) {
    constexpr double LN2_HIGH = 0.6931471803691238, LN2_LOW = 1.9082149292705877e-10;
    constexpr long long ROOT_HALF = 0x3fe6a09e667f3bcdll;  // bits of the square root of 1/2
    const long long bits = __double_as_longlong(x);
    const long long n = (bits - ROOT_HALF) >> 52;
    const double m = __longlong_as_double(bits - n * (1ll << 52));
    const double s = __ddiv_rn(m - 1.0, m + 1.0);
    const double z = __dmul_rn(s, s);
    constexpr double COEFFICIENTS[11] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                                         1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23};
    double tail = 0.0;
#pragma unroll
    for (int k = 10; k >= 0; k--) tail = fma(tail, z, COEFFICIENTS[k]);
    const double high = __dmul_rn(2.0, s);
    const double low = __dmul_rn(high, __dmul_rn(z, tail));
    const double count = static_cast<double>(n);
    return fma(count, LN2_HIGH, __dadd_rn(high, fma(count, LN2_LOW, low)));
}

// Log-sum-exp from the segments' statistics, joined in order; `max` is the row's.
__device__ __forceinline__ float log_sum_exp(SampleShared &shared, const SegmentStats *stats,
                                             uint32_t segments, float max) {
    for (uint32_t i = threadIdx.x; i < segments; i += SAMPLE_THREADS) {
        const SegmentStats segment = stats[i];
        const double sum = segment.sum;
        shared.terms[i] = segment.max == negative_infinity()
                              ? sum
                              : __dmul_rn(sum, exp_fixed(segment.max - max));
    }
    __syncthreads();
    // Every thread the same: no second barrier, and reads of one address are one.
    double total = 0.0;
    for (uint32_t i = 0; i < segments; i++) total = __dadd_rn(total, shared.terms[i]);
    if (total == 0.0) return negative_infinity();
    if (!(total > 0.0)) return not_a_number();
    return static_cast<float>(__dadd_rn(max, ln_fixed(total)));
}

// The best of the segments, in every lane of a warp.
__device__ __forceinline__ Best best_segment(const SampleShared &shared) {
    Best best = {negative_infinity(), WHOLE};
    for (int i = 0; i < SEGMENTS_PER_LANE; i++) {
        best = better(best, shared.bests[i * 32 + threadIdx.x % 32]);
    }
    return best_of_lanes<16>(best);
}

// By the first warp: the `count` best tokens in order. A segment that gave one is searched for its
// next.
__device__ __forceinline__ void top_tokens(SampleShared &shared, const float *logits,
                                           uint32_t vocabulary, uint32_t count, uint32_t *ids,
                                           float *values) {
    for (uint32_t i = 0; i < count; i++) {
        const Best last = best_segment(shared);
        if (threadIdx.x == 0) {
            ids[i] = last.token;
            values[i] = last.logit;
        }
        const uint32_t segment = last.token / SEGMENT_LOGITS;
        Best next = {negative_infinity(), WHOLE};
#pragma unroll 8
        for (uint32_t j = 0; j < SEGMENT_LOGITS / 32; j++) {
            const uint32_t token = segment * SEGMENT_LOGITS + j * 32 + threadIdx.x;
            if (token < vocabulary) {
                const float logit = logits[token];
                const bool is_after =
                    logit < last.logit || (logit == last.logit && token > last.token);
                if (is_after) next = better(next, Best{logit, token});
            }
        }
        next = best_of_lanes<16>(next);
        __syncwarp();
        if (threadIdx.x == 0) shared.bests[segment] = next;
        __syncwarp();
    }
}

// 1 plus the number of tokens before `token` in the order (logit descending, id ascending).
__device__ __forceinline__ uint32_t rank_of(SampleShared &shared, const float *logits,
                                            uint32_t vocabulary, uint32_t token) {
    const float logit = logits[token];
    Mass ahead = 0;
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < vocabulary; i += SAMPLE_THREADS) {
        const float other = logits[i];
        ahead += i < token ? other >= logit : (i > token && other > logit);
    }
    return 1 + static_cast<uint32_t>(block_sum(ahead, shared.warp_sums));
}

// A seeded draw; NOT_FOUND if all weights are cut.
__device__ __forceinline__ uint32_t draw(SampleShared &shared, const WeightRow &row,
                                         const SampleRequest &request) {
    const Cut cut = find_cut(shared, row, request);
    const auto kept = [&](Mass weight, uint32_t token) -> Mass {
        return cut.keeps(weight, token) ? weight : 0;
    };
    sum_segments(shared, row, kept);
    Mass total = 0;
    for (uint32_t i = threadIdx.x; i < MAX_SEGMENTS; i += SAMPLE_THREADS) total += shared.masses[i];
    total = block_sum(total, shared.warp_sums);
    if (total == 0) return NOT_FOUND;
    return find_token(shared, row, __umul64hi(request.random, total), kept);
}

__device__ __forceinline__ void sample(const SampleParams &p) {
    __shared__ SampleShared shared;
    const uint32_t row = blockIdx.x;
    if (row >= *p.num_rows) return;
    const SampleRequest request = p.requests[row];
    if (request.kind == SAMPLE_NOTHING) return;
    const float *logits = p.logits + static_cast<size_t>(row) * p.vocabulary;
    const uint32_t segments = (p.vocabulary + SEGMENT_LOGITS - 1) / SEGMENT_LOGITS;
    const SegmentStats *stats = p.stats + static_cast<size_t>(row) * segments;

    Mass num_nan = 0;
    for (uint32_t i = threadIdx.x; i < MAX_SEGMENTS; i += SAMPLE_THREADS) {
        Best best = {negative_infinity(), WHOLE};
        if (i < segments) {
            best = Best{stats[i].max, stats[i].best};
            num_nan += is_nan(stats[i].sum) ? 1 : 0;
        }
        shared.bests[i] = best;
    }
    const bool has_nan = block_sum(num_nan, shared.warp_sums) != 0;
    const Best best = best_segment(shared);
    const bool is_valid = !has_nan && best.logit > negative_infinity();

    SampleResult result = {is_valid ? SAMPLE_OK : SAMPLE_INVALID_LOGITS, request.token, 0.0f, 0.0f,
                           0, 0};
    if (is_valid && request.kind == SAMPLE_GREEDY) result.token = best.token;
    if (is_valid && request.kind == SAMPLE_DRAW) {
        const WeightRow weights = {logits, p.vocabulary, best.logit, request.temperature};
        result.token = draw(shared, weights, request);
        if (result.token == NOT_FOUND) result.status = SAMPLE_INVALID_LOGITS;
    }
    if (result.status == SAMPLE_OK && request.with_score != 0) {
        result.logit = logits[result.token];
        result.log_sum_exp = log_sum_exp(shared, stats, segments, best.logit);
        result.rank = rank_of(shared, logits, p.vocabulary, result.token);
        result.num_top = min(min(request.num_top, p.max_top), p.vocabulary);
        if (threadIdx.x < 32) {
            const size_t at = static_cast<size_t>(row) * p.max_top;
            top_tokens(shared, logits, p.vocabulary, result.num_top, p.top_ids + at,
                       p.top_logits + at);
        }
    }
    if (threadIdx.x == 0) p.results[row] = result;
}

}  // namespace oarlock
