// Linear layers with bfloat16 activations: out = input weight^T + bias.
//
// One order of additions for every number of rows: steps of 64 columns alternate between two chains
// of warps, the four mma of a step between two chains of registers; a segment's four sums are joined
// ((step even, mma even) + (step even, mma odd)) + (the same of odd steps); segments by a tree of
// neighbors. Tiles only differ in how many outputs and rows they cover.
#pragma once

#include "linear_load.cuh"
#include "numbers.cuh"
#include "params.cuh"
#include "weights.cuh"

namespace oarlock {

// Adds one step of a warp's products. `weights`: the pair of the warp's first tile; `input`: the
// chain's step of the warp's first row.
template <typename Weights, typename Tile>
__device__ __forceinline__ void multiply(float (&sums)[2][Tile::WARP_M][Tile::WARP_N][4],
                                         const char *weights, const char *input, uint32_t chain,
                                         uint32_t lane, uint32_t first_block) {
    typename Weights::Scales scales[Tile::WARP_M];
#pragma unroll
    for (int m = 0; m < Tile::WARP_M; m++) {
        scales[m] = Weights::scales(weights + m * Weights::PAIR_BYTES, chain, lane, first_block);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t a[Tile::WARP_M][2][4];
#pragma unroll
        for (int m = 0; m < Tile::WARP_M; m++) {
            Weights::unpack(a[m], weights + m * Weights::PAIR_BYTES, chain, half, lane, scales[m]);
        }
#pragma unroll
        for (int n = 0; n < Tile::WARP_N; n++) {
            const uint4 b = *reinterpret_cast<const uint4 *>(
                input + input_offset(8 * n + lane / 4, 4 * half + lane % 4));
#pragma unroll
            for (int m = 0; m < Tile::WARP_M; m++) {
                mma_16x8x16(sums[0][m][n], a[m][0], b.x, b.y);
                mma_16x8x16(sums[1][m][n], a[m][1], b.z, b.w);
            }
        }
    }
}

// Joins the four sums of a segment; the first chain's threads have the result in sums[0]. `other`:
// shared, [SUMS][HALF].
template <typename Tile>
__device__ __forceinline__ void join_chains(float (&sums)[2][Tile::WARP_M][Tile::WARP_N][4],
                                            float *other) {
    const bool is_first = threadIdx.x < Tile::HALF;
    float *slot = other + threadIdx.x % Tile::HALF;
#pragma unroll
    for (int i = 0; i < Tile::SUMS; i++) {
        float &sum = (&sums[0][0][0][0])[i];
        sum += (&sums[1][0][0][0])[i];
        if (!is_first) slot[i * Tile::HALF] = sum;
    }
    __syncthreads();
    if (!is_first) return;
#pragma unroll
    for (int i = 0; i < Tile::SUMS; i++) {
        (&sums[0][0][0][0])[i] += slot[i * Tile::HALF];
    }
}

// Joins the sums of segment `segment` with those before it, as far as the tree of neighbors allows.
// `pending`: shared, [levels][SUMS][HALF].
template <typename Tile>
__device__ __forceinline__ void join_segments(float (&sums)[Tile::WARP_M][Tile::WARP_N][4],
                                              float *pending, uint32_t segment,
                                              uint32_t segments) {
    float *level = pending + threadIdx.x;
    for (uint32_t bits = segment; bits % 2 == 1; bits /= 2) {
#pragma unroll
        for (int i = 0; i < Tile::SUMS; i++) {
            float &sum = (&sums[0][0][0])[i];
            sum = level[i * Tile::HALF] + sum;
        }
        level += Tile::SUMS * Tile::HALF;
    }
    if (segment + 1 == segments) return;
#pragma unroll
    for (int i = 0; i < Tile::SUMS; i++) {
        level[i * Tile::HALF] = (&sums[0][0][0])[i];
    }
}

// Writes a warp's outputs, with the bias, of rows before `end_row`. `out`: as p.out.
template <typename Tile>
__device__ __forceinline__ void store(const float (&sums)[Tile::WARP_M][Tile::WARP_N][4],
                                      const LinearParams &p, void *out, uint32_t first_output,
                                      uint32_t first_row, uint32_t end_row) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t stride = p.out_stride == 0 ? p.outputs : p.out_stride;
#pragma unroll
    for (int m = 0; m < Tile::WARP_M; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t output = first_output + 16 * m + lane / 4 + i / 2 * 8;
            if (output >= p.outputs) continue;
            const float bias = p.bias == nullptr ? 0.0f : p.bias[output];
#pragma unroll
            for (int n = 0; n < Tile::WARP_N; n++) {
                const uint32_t row = first_row + 8 * n + lane % 4 * 2 + i % 2;
                if (row >= end_row) continue;
                const size_t at = static_cast<size_t>(row) * stride + output;
                const float value = p.bias == nullptr ? sums[m][n][i] : sums[m][n][i] + bias;
                if (p.out_is_float != 0) {
                    static_cast<float *>(out)[at] = value;
                } else {
                    static_cast<Bf16 *>(out)[at] = from_float<Bf16>(value);
                }
            }
        }
    }
}

// A warp's place in the block's tile.
template <typename Tile>
struct WarpPlace {
    uint32_t lane, chain, group_m, group_n;

    __device__ __forceinline__ WarpPlace()
        : lane(threadIdx.x % 32), chain(threadIdx.x / Tile::HALF),
          group_m(threadIdx.x % Tile::HALF / 32 % Tile::GROUPS_M),
          group_n(threadIdx.x % Tile::HALF / 32 / Tile::GROUPS_M) {}

    __device__ __forceinline__ uint32_t first_output() const {
        return (blockIdx.y * Tile::TILES + group_m * Tile::WARP_M) * TILE_OUTPUTS;
    }
    // In the tile.
    __device__ __forceinline__ uint32_t first_row() const { return group_n * Tile::WARP_N * 8; }
};

// Sums up segment after segment, from the loader's first one to `end_segment`. `finish(segment)` is called by
// the first chain's threads when sums[0] has a segment's sum; the last one's is left there. `shared`: the
// stages, then [SUMS][HALF] floats.
template <typename Tile, typename Loader, typename Finish>
__device__ __forceinline__ void sum_segments(float (&sums)[2][Tile::WARP_M][Tile::WARP_N][4],
                                             Loader &loader, char *shared, uint32_t end_segment,
                                             const Finish &finish) {
    using Weights = typename Loader::WeightKind;
    const WarpPlace<Tile> warp;
    float *other = reinterpret_cast<float *>(shared + Tile::STAGES * Loader::STAGE_BYTES);
    const uint32_t weight_at = warp.group_m * Tile::WARP_M * Weights::PAIR_BYTES;
    const uint32_t input_at =
        Loader::WEIGHT_BYTES + warp.chain * Tile::INPUT_BYTES + warp.first_row() * 128;

    const uint32_t pairs = (loader.place.steps + 1) / 2;
    uint32_t segment = loader.place.segment;
    const uint32_t total = pairs * (end_segment - segment);
    uint32_t loaded = 0, load_slot = 0;
    const auto load_next = [&] {
        if (loaded < total) {
            loader.load(shared + load_slot * Loader::STAGE_BYTES);
            loaded++;
            load_slot = load_slot + 1 == Tile::STAGES ? 0 : load_slot + 1;
        }
        // Empty groups keep the count of groups that the waits rely on.
        copy_async_commit();
    };
    for (int i = 0; i + 1 < Tile::STAGES; i++) load_next();

    uint32_t slot = 0, pair = 0;
    for (uint32_t i = 0; i < total; i++) {
        copy_async_wait<Tile::STAGES - 2>();
        // The stage has come for all threads, and all are done with the one that is loaded next.
        __syncthreads();
        load_next();
        const char *stage = shared + slot * Loader::STAGE_BYTES;
        const uint32_t first_block =
            loader.p.first_sub_block + segment * (loader.segment_columns / 32) + 4 * pair;
        multiply<Weights, Tile>(sums, stage + weight_at, stage + input_at, warp.chain, warp.lane,
                                first_block);
        slot = slot + 1 == Tile::STAGES ? 0 : slot + 1;
        pair++;
        if (pair == pairs) {
            join_chains<Tile>(sums, other);
            if (warp.chain == 0) finish(segment);
            pair = 0;
            segment++;
            if (segment < end_segment) {
#pragma unroll
                for (int j = 0; j < 2 * Tile::SUMS; j++) (&sums[0][0][0][0])[j] = 0.0f;
            }
        }
    }
}

template <typename Weights, typename Tile>
__device__ __forceinline__ void linear(const LinearParams &p) {
    using Loader = LinearLoader<Weights, Tile, ConsecutiveRows<Tile>>;
    extern __shared__ uint4 dynamic_shared[];
    char *shared = reinterpret_cast<char *>(dynamic_shared);
    const uint32_t num_rows = *p.num_rows, first_row = blockIdx.x * Tile::ROWS;
    if (first_row >= num_rows) return;
    Loader loader(p, ConsecutiveRows<Tile>(p, first_row, num_rows), 0);
    // Behind the other chain's sums.
    float *pending = reinterpret_cast<float *>(shared + Tile::STAGES * Loader::STAGE_BYTES) +
                     Tile::SUMS * Tile::HALF;
    float sums[2][Tile::WARP_M][Tile::WARP_N][4] = {};
    sum_segments<Tile>(sums, loader, shared, p.segments, [&](uint32_t segment) {
        join_segments<Tile>(sums[0], pending, segment, p.segments);
    });
    const WarpPlace<Tile> warp;
    if (warp.chain == 0) {
        store<Tile>(sums[0], p, p.out, warp.first_output(), first_row + warp.first_row(), num_rows);
    }
}

}  // namespace oarlock
