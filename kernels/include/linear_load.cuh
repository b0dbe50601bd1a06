// How weights and rows of activations of one block of a linear layer come into shared memory.
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
    // Chunks of 8 columns are dealt to threads row by row: rows from one of a thread's chunks to the next,
    // how many it has of each chain, and for how many chains at once.
    static constexpr int ROW_STEP = THREADS / 8 < ROWS ? THREADS / 8 : ROWS;
    static constexpr int ROW_PASSES = ROWS / ROW_STEP;
    static constexpr int CHAINS_AT_ONCE = THREADS / 8 / ROW_STEP;

    static __device__ __forceinline__ uint32_t row_of_thread() {
        return threadIdx.x / 8 % ROW_STEP;
    }
    static __device__ __forceinline__ uint32_t chain_of_thread() {
        return threadIdx.x / (8 * ROW_STEP);
    }
    // Where a thread's first chunk of a segment begins, in columns.
    static __device__ __forceinline__ uint32_t column_of_thread() {
        return chain_of_thread() * STEP_COLUMNS + threadIdx.x % 8 * 8;
    }
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

// Consecutive rows of the input: which the tile has, and where this thread's chunks of them lie.
template <typename Tile>
struct ConsecutiveRows {
    uint32_t first, end;
    const Bf16 *chunk;  // of the thread's first row

    __device__ __forceinline__ ConsecutiveRows(const LinearParams &p, uint32_t first_row,
                                               uint32_t end_row)
        : first(first_row), end(end_row),
          chunk(static_cast<const Bf16 *>(p.input) +
                static_cast<size_t>(first_row + Tile::row_of_thread()) * p.columns +
                Tile::column_of_thread()) {}

    // Whether there is a row of the tile, and which of the input's it is.
    __device__ __forceinline__ bool has(uint32_t row) const { return first + row < end; }
    __device__ __forceinline__ size_t index(uint32_t row) const { return first + row; }

    // The thread's chunk in its row of a pass.
    __device__ __forceinline__ const Bf16 *at(int pass, const LinearParams &p) const {
        return chunk + static_cast<size_t>(pass * Tile::ROW_STEP) * p.columns;
    }
    __device__ __forceinline__ void advance(int columns) { chunk += columns; }
};

// The same of rows that a list names; without a list, consecutive ones.
template <typename Tile>
struct ListedRows {
    const uint32_t *list;  // of the tile's first row on, or null
    uint32_t first, count;
    const Bf16 *chunks[Tile::ROW_PASSES];

    __device__ __forceinline__ ListedRows(const LinearParams &p, const uint32_t *whole_list,
                                          uint32_t first_row, uint32_t rows)
        : list(whole_list == nullptr ? nullptr : whole_list + first_row), first(first_row),
          count(rows) {
#pragma unroll
        for (int pass = 0; pass < Tile::ROW_PASSES; pass++) {
            const uint32_t row = Tile::row_of_thread() + pass * Tile::ROW_STEP;
            chunks[pass] = static_cast<const Bf16 *>(p.input) +
                           (has(row) ? index(row) * p.columns : 0) + Tile::column_of_thread();
        }
    }

    __device__ __forceinline__ bool has(uint32_t row) const { return row < count; }
    __device__ __forceinline__ size_t index(uint32_t row) const {
        return list == nullptr ? first + row : list[row];
    }

    __device__ __forceinline__ const Bf16 *at(int pass, const LinearParams &) const {
        return chunks[pass];
    }
    __device__ __forceinline__ void advance(int columns) {
#pragma unroll
        for (const Bf16 *&chunk : chunks) chunk += columns;
    }
};

// Brings weights and input into shared memory, pair of steps by pair of steps.
template <typename Weights, typename Tile, typename Rows>
struct LinearLoader {
    using WeightKind = Weights;
    static constexpr int WEIGHT_BYTES = Tile::TILES * Weights::PAIR_BYTES;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + 2 * Tile::INPUT_BYTES;

    const LinearParams &p;
    Rows rows;
    uint32_t segment_columns;
    bool is_aligned;
    PairPlace place;
    typename Weights::template Cursor<Tile::TILES, Tile::THREADS> weights;

    __device__ __forceinline__ LinearLoader(const LinearParams &params, const Rows &rows_of_tile,
                                            uint32_t first_segment)
        : p(params), rows(rows_of_tile), segment_columns(params.columns / params.segments),
          is_aligned((params.columns | segment_columns) % 8 == 0 &&
                     reinterpret_cast<uintptr_t>(params.input) % 16 == 0),
          place{(segment_columns + STEP_COLUMNS - 1) / STEP_COLUMNS, first_segment, 0},
          weights(params, place.steps, blockIdx.y * Tile::TILES) {
        weights.skip(first_segment);
        rows.advance(static_cast<int>(first_segment * segment_columns));
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
        rows.advance(2 * STEP_COLUMNS);
        if (place.step >= place.steps) {
            // Back over what is padding.
            rows.advance(static_cast<int>(segment_columns) -
                         static_cast<int>(place.step * STEP_COLUMNS));
            place.step = 0;
            place.segment++;
        }
    }

    // [chain][row][64 columns], zeros beyond the segment and the rows.
    __device__ __forceinline__ void load_input(char *to) const {
#pragma unroll
        for (int base = 0; base < 2; base += Tile::CHAINS_AT_ONCE) {
            const uint32_t chain = base + Tile::chain_of_thread();
            const uint32_t column = (place.step + chain) * STEP_COLUMNS + threadIdx.x % 8 * 8;
#pragma unroll
            for (int pass = 0; pass < Tile::ROW_PASSES; pass++) {
                const uint32_t row = Tile::row_of_thread() + pass * Tile::ROW_STEP;
                const bool is_there = rows.has(row) && column < segment_columns;
                const Bf16 *from = rows.at(pass, p) + base * STEP_COLUMNS;
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
            if (rows.has(row) && column < segment_columns) {
                value = values[rows.index(row) * p.columns + place.segment * segment_columns + column];
            }
            char *chunk = to + chain * Tile::INPUT_BYTES + input_offset(row, i % 64 / 8);
            reinterpret_cast<uint16_t *>(chunk)[i % 8] = value;
        }
    }
};

}  // namespace oarlock
