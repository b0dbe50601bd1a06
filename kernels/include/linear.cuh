// Linear layers with bfloat16 activations: out = input weight^T + bias.
//
// One order of additions for every number of rows: steps of 64 columns alternate between two chains
// of warps, the four mma of a step between two chains of registers; a segment's four sums are joined
// ((step even, mma even) + (step even, mma odd)) + (the same of odd steps); segments by a tree of
// neighbors. Tiles only differ in how many outputs and rows they cover.
#pragma once

#include "numbers.cuh"
#include "params.cuh"
#include "weights.cuh"

namespace oarlock {

// GROUPS_M x GROUPS_N groups of two warps (one for each chain); a warp has WARP_M tiles of 16 outputs
// and WARP_N of 8 rows.
template <int WARP_M_, int WARP_N_, int GROUPS_M_, int GROUPS_N_, int STAGES_>
struct LinearTile {
    static constexpr int WARP_M = WARP_M_, WARP_N = WARP_N_;
    static constexpr int GROUPS_M = GROUPS_M_, GROUPS_N = GROUPS_N_;
    static constexpr int STAGES = STAGES_;
    static constexpr int TILES = WARP_M * GROUPS_M;        // of 16 outputs
    static constexpr int ROWS = 8 * WARP_N * GROUPS_N;
    static constexpr int HALF = 32 * GROUPS_M * GROUPS_N;  // threads of one chain
    static constexpr int THREADS = 2 * HALF;
    static constexpr int SUMS = WARP_M * WARP_N * 4;       // of one thread
    static constexpr int INPUT_BYTES = ROWS * 128;         // of one step
};

// Few rows: the weights' bytes are what takes time, and 32 outputs per block give 128 blocks for
// 4,096. Of six stages five are under way, 40 KiB of bfloat16 weights.
using LinearN8 = LinearTile<1, 1, 2, 1, 6>;
// Up to 64 rows: as many blocks, the weights read once for every 32 rows.
using LinearN32 = LinearTile<1, 4, 2, 1, 4>;
// More: a warp's 32 x 32 products reuse each fragment four and two times.
using LinearN64 = LinearTile<2, 4, 2, 2, 3>;

// Byte of a row's chunk of 8 columns in a step of the input. Odd rows have their halves swapped, so
// that the 8 lanes of a phase, which read half of two neighboring rows, hit all banks once.
__host__ __device__ __forceinline__ uint32_t input_offset(uint32_t row, uint32_t chunk) {
    return row * 128 + (chunk ^ (row % 2 * 4)) * 16;
}

// Brings weights and input into shared memory, pair of steps by pair of steps.
template <typename Weights, typename Tile>
struct LinearLoader {
    static constexpr int WEIGHT_BYTES = Tile::TILES * Weights::PAIR_BYTES;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + 2 * Tile::INPUT_BYTES;
    // Rows from one of a thread's chunks of input to the next, and how many it has of each chain.
    static constexpr int ROW_STEP = Tile::THREADS / 8 < Tile::ROWS ? Tile::THREADS / 8 : Tile::ROWS;
    static constexpr int CHAINS_AT_ONCE = Tile::THREADS / 8 / ROW_STEP;

    const LinearParams &p;
    uint32_t num_rows;
    uint32_t first_row;
    uint32_t segment_columns;
    bool is_aligned;
    PairPlace place;
    typename Weights::template Cursor<Tile::TILES, Tile::THREADS> weights;
    const Bf16 *input;  // this thread's first chunk

    __device__ __forceinline__ LinearLoader(const LinearParams &params, uint32_t rows,
                                            uint32_t columns_of_segment)
        : p(params), num_rows(rows), first_row(blockIdx.x * Tile::ROWS),
          segment_columns(columns_of_segment),
          is_aligned((params.columns | columns_of_segment) % 8 == 0 &&
                     reinterpret_cast<uintptr_t>(params.input) % 16 == 0),
          place{(columns_of_segment + STEP_COLUMNS - 1) / STEP_COLUMNS, 0, 0},
          weights(params, place.steps, blockIdx.y * Tile::TILES),
          input(static_cast<const Bf16 *>(params.input) +
                static_cast<size_t>(first_row + row_of_thread()) * params.columns +
                chain_of_thread() * STEP_COLUMNS + threadIdx.x % 8 * 8) {}

    static __device__ __forceinline__ uint32_t row_of_thread() {
        return threadIdx.x / 8 % ROW_STEP;
    }
    static __device__ __forceinline__ uint32_t chain_of_thread() {
        return threadIdx.x / (8 * ROW_STEP);
    }

    // Starts copying the next pair.
    __device__ __forceinline__ void load(char *stage) {
        weights.load(stage, p, place);
        if (is_aligned) {
            load_input(stage + WEIGHT_BYTES);
        } else {
            load_input_unaligned(stage + WEIGHT_BYTES);
        }
        weights.advance(place);
        place.step += 2;
        input += 2 * STEP_COLUMNS;
        if (place.step >= place.steps) {
            // Back over what is padding.
            input += static_cast<int>(segment_columns) - static_cast<int>(place.step * STEP_COLUMNS);
            place.step = 0;
            place.segment++;
        }
    }

    // [chain][row][64 columns], zeros beyond the segment and the rows.
    __device__ __forceinline__ void load_input(char *to) const {
#pragma unroll
        for (int base = 0; base < 2; base += CHAINS_AT_ONCE) {
            const uint32_t chain = base + chain_of_thread();
            const uint32_t column = (place.step + chain) * STEP_COLUMNS + threadIdx.x % 8 * 8;
#pragma unroll
            for (int on = 0; on < Tile::ROWS; on += ROW_STEP) {
                const uint32_t row = row_of_thread() + on;
                const bool is_there = first_row + row < num_rows && column < segment_columns;
                const Bf16 *from =
                    input + base * STEP_COLUMNS + static_cast<size_t>(on) * p.columns;
                copy_async_16(to + chain * Tile::INPUT_BYTES + input_offset(row, threadIdx.x % 8),
                              is_there ? from : static_cast<const Bf16 *>(p.input), is_there);
            }
        }
    }

    // The same value by value: rows or segments do not start at multiples of 16 bytes.
    __device__ __forceinline__ void load_input_unaligned(char *to) const {
        const uint16_t *values = static_cast<const uint16_t *>(p.input);
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < 2 * Tile::ROWS * 64; i += Tile::THREADS) {
            const uint32_t chain = i / (Tile::ROWS * 64);
            const uint32_t row = i / 64 % Tile::ROWS;
            const uint32_t column = (place.step + chain) * STEP_COLUMNS + i % 64;
            uint16_t value = 0;
            if (first_row + row < num_rows && column < segment_columns) {
                value = values[static_cast<size_t>(first_row + row) * p.columns +
                               place.segment * segment_columns + column];
            }
            char *chunk = to + chain * Tile::INPUT_BYTES + input_offset(row, i % 64 / 8);
            reinterpret_cast<uint16_t *>(chunk)[i % 8] = value;
        }
    }
};

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

// Writes a warp's outputs, with the bias.
template <typename Tile>
__device__ __forceinline__ void store(const float (&sums)[Tile::WARP_M][Tile::WARP_N][4],
                                      const LinearParams &p, uint32_t first_output,
                                      uint32_t first_row, uint32_t num_rows) {
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
                if (row >= num_rows) continue;
                const size_t at = static_cast<size_t>(row) * stride + output;
                const float value = p.bias == nullptr ? sums[m][n][i] : sums[m][n][i] + bias;
                if (p.out_is_float != 0) {
                    static_cast<float *>(p.out)[at] = value;
                } else {
                    static_cast<Bf16 *>(p.out)[at] = from_float<Bf16>(value);
                }
            }
        }
    }
}

template <typename Weights, typename Tile>
__device__ __forceinline__ void linear(const LinearParams &p) {
    using Loader = LinearLoader<Weights, Tile>;
    extern __shared__ uint4 dynamic_shared[];
    char *shared = reinterpret_cast<char *>(dynamic_shared);
    const uint32_t num_rows = *p.num_rows;
    if (blockIdx.x * Tile::ROWS >= num_rows) return;
    const uint32_t segment_columns = p.columns / p.segments;
    Loader loader(p, num_rows, segment_columns);
    float *other = reinterpret_cast<float *>(shared + Tile::STAGES * Loader::STAGE_BYTES);
    float *pending = other + Tile::SUMS * Tile::HALF;

    const uint32_t lane = threadIdx.x % 32;
    const uint32_t chain = threadIdx.x / Tile::HALF;
    const uint32_t group = threadIdx.x % Tile::HALF / 32;
    const uint32_t group_m = group % Tile::GROUPS_M, group_n = group / Tile::GROUPS_M;
    const uint32_t weight_at = group_m * Tile::WARP_M * Weights::PAIR_BYTES;
    const uint32_t input_at = Loader::WEIGHT_BYTES + chain * Tile::INPUT_BYTES +
                              group_n * Tile::WARP_N * 8 * 128;

    const uint32_t pairs = (loader.place.steps + 1) / 2;
    const uint32_t total = pairs * p.segments;
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

    float sums[2][Tile::WARP_M][Tile::WARP_N][4] = {};
    uint32_t slot = 0, segment = 0, pair = 0;
    for (uint32_t i = 0; i < total; i++) {
        copy_async_wait<Tile::STAGES - 2>();
        // The stage has come for all threads, and all are done with the one that is loaded next.
        __syncthreads();
        load_next();
        const char *stage = shared + slot * Loader::STAGE_BYTES;
        const uint32_t first_block =
            p.first_sub_block + segment * (segment_columns / 32) + 4 * pair;
        multiply<Weights, Tile>(sums, stage + weight_at, stage + input_at, chain, lane, first_block);
        slot = slot + 1 == Tile::STAGES ? 0 : slot + 1;
        pair++;
        if (pair == pairs) {
            join_chains<Tile>(sums, other);
            if (chain == 0) join_segments<Tile>(sums[0], pending, segment, p.segments);
            pair = 0;
            segment++;
            if (segment < p.segments) {
#pragma unroll
                for (int j = 0; j < 2 * Tile::SUMS; j++) (&sums[0][0][0][0])[j] = 0.0f;
            }
        }
    }
    if (chain == 0) {
        const uint32_t first_tile = blockIdx.y * Tile::TILES + group_m * Tile::WARP_M;
        store<Tile>(sums[0], p, first_tile * TILE_OUTPUTS,
                    loader.first_row + group_n * Tile::WARP_N * 8, num_rows);
    }
}

}  // namespace oarlock
