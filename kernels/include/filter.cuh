// `min_p`, `top_k` and `top_p` as one cut through the order (weight descending, id ascending): the
// algorithm of crates/sampler/src/filter.rs by one block of threads.
#pragma once

#include "weight.cuh"

namespace oarlock {

// The greatest weight, that of the most likely token: exp(0) times 2^45.
constexpr Mass MAX_WEIGHT = 1ull << WEIGHT_BITS;
constexpr uint32_t SHARE_BITS = 32;
constexpr Mass WHOLE_SHARE = 1ull << SHARE_BITS;
constexpr uint32_t DIGIT_BITS = 9;  // of a finer histogram, which fits into the first one's memory

// value * share / 2^32, rounded down; `is_exact`: whether nothing was cut off.
__device__ __forceinline__ Mass share_of(Mass value, Mass share, bool &is_exact) {
    const Mass low = value * share;
    is_exact = (low & 0xffffffffu) == 0;
    return __umul64hi(value, share) << 32 | low >> 32;
}

__device__ __forceinline__ uint32_t bucket_of(Mass weight) {
    const uint32_t exponent = 63 - __clzll(static_cast<long long>(weight));
    const uint32_t sub = static_cast<uint32_t>((weight << SUB_BITS) >> exponent) & ((1 << SUB_BITS) - 1);
    return (exponent << SUB_BITS) + sub;
}

// The least weight of a bucket, and the binary logarithm of how many it has. Buckets below 2^4 hold
// one weight at most.
__device__ __forceinline__ Mass bucket_start(uint32_t bucket, uint32_t &span_bits) {
    const Mass sub = bucket & ((1 << SUB_BITS) - 1);
    const uint32_t exponent = bucket >> SUB_BITS;
    span_bits = exponent > SUB_BITS ? exponent - SUB_BITS : 0;
    return ((((1 << SUB_BITS) | sub) << exponent) + ((1 << SUB_BITS) - 1)) >> SUB_BITS;
}

// Counts and sums the tokens that `place` gives a bucket; those beyond NUM_BUCKETS are left out.
template <typename Place>
__device__ __forceinline__ void fill_histogram(SampleShared &shared, const WeightRow &row,
                                               const Place &place) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < NUM_BUCKETS; i += SAMPLE_THREADS) {
        shared.bucket_counts[i] = 0;
        shared.bucket_masses[i] = 0;
    }
    __syncthreads();
    row.each_of_block([&](Mass weight, uint32_t token) {
        const uint32_t bucket = place(weight, token);
        if (bucket < NUM_BUCKETS) {
            atomicAdd(&shared.bucket_counts[bucket], 1u);
            atomicAdd(&shared.bucket_masses[bucket], weight);
        }
    });
    __syncthreads();
}

// A search for the token at which the count or the mass, in order, reaches `left`.
struct Search {
    bool by_mass;
    Mass left;  // of the tokens that are not passed yet, at least 1
    Mass mass;  // of those that are
};

// Passes whole buckets from the greatest down; the bucket where the search ends, or NOT_FOUND.
__device__ __forceinline__ uint32_t pass_buckets(SampleShared &shared, Search &search) {
    if (threadIdx.x < 32) {
        Mass target = search.left - 1;
        const uint32_t at = find_in_sums<BUCKETS_PER_LANE>(target, [&](uint32_t i) {
            const uint32_t bucket = NUM_BUCKETS - 1 - i;
            return search.by_mass ? shared.bucket_masses[bucket]
                                  : static_cast<Mass>(shared.bucket_counts[bucket]);
        });
        const uint32_t found = at == NOT_FOUND ? NOT_FOUND : NUM_BUCKETS - 1 - at;
        Mass passed = 0;
        for (uint32_t i = threadIdx.x; i < NUM_BUCKETS; i += 32) {
            if (found == NOT_FOUND || i > found) passed += shared.bucket_masses[i];
        }
        passed = warp_sum(passed);
        if (threadIdx.x == 0) {
            shared.found = found;
            shared.found_left = target + 1;
            shared.found_mass = search.mass + passed;
        }
    }
    __syncthreads();
    search.left = shared.found_left;
    search.mass = shared.found_mass;
    return shared.found;
}

// Among at most MAX_CANDIDATES: each thread finds out what precedes its own.
__device__ __forceinline__ void search_candidates(SampleShared &shared, const Search &search) {
    const uint32_t count = shared.num_candidates;
    for (uint32_t i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
        const Mass weight = shared.candidate_weights[i];
        const uint32_t id = shared.candidate_ids[i];
        Mass number = 0, mass = 0;
        for (uint32_t j = 0; j < count; j++) {
            const Mass other = shared.candidate_weights[j];
            const bool is_before =
                other > weight || (other == weight && shared.candidate_ids[j] < id);
            number += is_before ? 1 : 0;
            mass += is_before ? other : 0;
        }
        const Mass before = search.by_mass ? mass : number;
        const Mass own = search.by_mass ? weight : 1;
        if (before < search.left && search.left <= before + own) {
            shared.cut = Cut{weight, id};
            shared.found_mass = search.mass + mass + weight;
        }
    }
    __syncthreads();
}

// Moves `cut` to the token where the search ends, if there is one, and gives the mass that is kept.
// Only tokens that `cut` keeps and of a weight of at least `bound` are looked at.
__device__ __forceinline__ Mass move_cut(SampleShared &shared, const WeightRow &row, Cut &cut,
                                         Mass bound, Search search) {
    fill_histogram(shared, row, [&](Mass weight, uint32_t token) {
        return weight >= bound && cut.keeps(weight, token) ? bucket_of(weight) : NUM_BUCKETS;
    });
    uint32_t bucket = pass_buckets(shared, search);
    if (bucket == NOT_FOUND) return search.mass;
    uint32_t span_bits;
    Mass least = bucket_start(bucket, span_bits);
    // Finer, until the candidates fit or are all of one weight.
    while (shared.bucket_counts[bucket] > MAX_CANDIDATES && span_bits > 0) {
        const uint32_t shift = span_bits > DIGIT_BITS ? span_bits - DIGIT_BITS : 0;
        const Mass span = 1ull << span_bits;
        fill_histogram(shared, row, [&](Mass weight, uint32_t token) {
            // The bucket of `bound` holds lighter ones, which were not counted.
            const bool is_here =
                weight >= bound && weight - least < span && cut.keeps(weight, token);
            return is_here ? static_cast<uint32_t>((weight - least) >> shift) : NUM_BUCKETS;
        });
        bucket = pass_buckets(shared, search);
        least += static_cast<Mass>(bucket) << shift;
        span_bits = shift;
    }
    if (shared.bucket_counts[bucket] > MAX_CANDIDATES) {
        // All of the weight `least`: in order of ids.
        const auto is_one = [&](Mass weight, uint32_t token) -> Mass {
            return weight == least && cut.keeps(least, token) ? 1 : 0;
        };
        const Mass number = search.by_mass ? (search.left + least - 1) / least : search.left;
        sum_segments(shared, row, is_one);
        cut = Cut{least, find_token(shared, row, number - 1, is_one)};
        return search.mass + number * least;
    }
    const Mass span = 1ull << span_bits;
    if (threadIdx.x == 0) shared.num_candidates = 0;
    __syncthreads();
    row.each_of_block([&](Mass weight, uint32_t token) {
        if (weight >= bound && weight - least < span && cut.keeps(weight, token)) {
            const uint32_t at = atomicAdd(&shared.num_candidates, 1u);
            shared.candidate_weights[at] = weight;
            shared.candidate_ids[at] = token;
        }
    });
    __syncthreads();
    search_candidates(shared, search);
    cut = shared.cut;
    const Mass mass = shared.found_mass;
    __syncthreads();
    return mass;
}

// Where the request's filters cut; {0, any} if they keep every token.
__device__ __forceinline__ Cut find_cut(SampleShared &shared, const WeightRow &row,
                                        const SampleRequest &request) {
    const uint32_t top_k = request.top_k >= row.vocabulary ? 0 : request.top_k;
    const bool has_top_p = request.top_p < WHOLE_SHARE;
    if (top_k == 0 && !has_top_p && request.min_p == 0) return Cut{0, 0xffffffffu};
    bool is_exact;
    const Mass floor = max(share_of(MAX_WEIGHT, request.min_p, is_exact), 1ull);
    Cut cut = {floor, 0xffffffffu};
    Mass mass = 0, bound = floor;
    if (top_k > 0) {
        mass = move_cut(shared, row, cut, floor, Search{false, top_k, 0});
    } else if (has_top_p) {
        row.each_of_block([&](Mass weight, uint32_t) { mass += weight >= floor ? weight : 0; });
        mass = block_sum(mass, shared.warp_sums);
        // All lighter tokens together have less than the share that is dropped.
        bound = max(floor,
                    share_of(mass, WHOLE_SHARE - request.top_p, is_exact) / row.vocabulary);
    }
    if (has_top_p) {
        // Rounded up: the kept share is at least `top_p`.
        const Mass wanted = share_of(mass, request.top_p, is_exact) + (is_exact ? 0 : 1);
        move_cut(shared, row, cut, bound, Search{true, max(wanted, 1ull), 0});
    }
    return cut;
}

}  // namespace oarlock
