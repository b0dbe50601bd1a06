// Linear layers in float32: each output is one chain of FMAs in order of columns, segment by segment,
// and segments are joined by the tree of neighbors. For exact tests, not for speed.
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

constexpr int F32_ROWS = 32;     // a thread has two rows of two outputs
constexpr int F32_OUTPUTS = 32;
constexpr int F32_COLUMNS = 32;  // a warp loads whole 128-byte lines
constexpr int F32_THREADS = 256;
constexpr int F32_PITCH = F32_COLUMNS + 1;  // neighboring rows in different banks

// 32 rows of 32 columns of `from` [.., columns] into shared memory, zeros beyond. `rows.has(i)` says whether
// there is an i-th row, `rows.index(i)` which one it is.
template <typename Rows>
__device__ __forceinline__ void load_square(float (&to)[32][F32_PITCH], const float *from,
                                            const Rows &rows, uint32_t columns,
                                            uint32_t first_column, uint32_t end_column) {
    const uint32_t column = first_column + threadIdx.x % 32;
    for (uint32_t i = threadIdx.x / 32; i < 32; i += F32_THREADS / 32) {
        const bool is_there = rows.has(i) && column < end_column;
        to[i][threadIdx.x % 32] = is_there ? from[rows.index(i) * columns + column] : 0.0f;
    }
}

// Consecutive rows of a matrix.
struct F32Rows {
    uint32_t first, end;
    __device__ __forceinline__ bool has(uint32_t row) const { return first + row < end; }
    __device__ __forceinline__ size_t index(uint32_t row) const { return first + row; }
};

// Rows that a list names, from its `first` entry on; without a list, consecutive ones.
struct F32ListedRows {
    const uint32_t *list;  // or null
    uint32_t first, count;
    __device__ __forceinline__ bool has(uint32_t row) const { return row < count; }
    __device__ __forceinline__ size_t index(uint32_t row) const {
        return list == nullptr ? first + row : list[first + row];
    }
};

struct F32Squares {
    float weights[F32_OUTPUTS][F32_PITCH];
    float inputs[F32_ROWS][F32_PITCH];
};

// A thread's outputs o and o + 16 (o = thread % 16) of rows r and r + 16 (r = thread / 16) of one segment:
// sums[row][output], from zero.
template <typename Rows>
__device__ __forceinline__ void sum_segment(float (&sums)[2][2], F32Squares &squares,
                                            const LinearParams &p, const Rows &rows,
                                            uint32_t segment) {
    const uint32_t o = threadIdx.x % 16, r = threadIdx.x / 16;
    const uint32_t segment_columns = p.columns / p.segments;
    const uint32_t end = (segment + 1) * segment_columns;
    const F32Rows outputs = {blockIdx.y * F32_OUTPUTS, p.outputs};
#pragma unroll
    for (int i = 0; i < 4; i++) sums[i / 2][i % 2] = 0.0f;
    for (uint32_t column = segment * segment_columns; column < end; column += F32_COLUMNS) {
        __syncthreads();
        load_square(squares.weights, static_cast<const float *>(p.weight), outputs, p.columns, column,
                    end);
        load_square(squares.inputs, static_cast<const float *>(p.input), rows, p.columns, column, end);
        __syncthreads();
        // A warp has two neighboring rows, and two more 16 on; rows come before what is none.
        if (!rows.has(threadIdx.x / 32 * 2)) continue;
        // Not beyond the segment: a padded product would change the sign of a zero.
        const uint32_t count = min(end - column, static_cast<uint32_t>(F32_COLUMNS));
        for (uint32_t k = 0; k < count; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &sum = sums[i / 2][i % 2];
                sum = fmaf(squares.weights[o + 16 * (i % 2)][k], squares.inputs[r + 16 * (i / 2)][k],
                           sum);
            }
        }
    }
}

// Joins a segment's sum with those before it; `pending` has one sum for each level of the tree.
__device__ __forceinline__ float join_segment(float sum, float (&pending)[3], uint32_t segment) {
    bool is_placed = false;
#pragma unroll
    for (int level = 0; level < 3; level++) {
        const bool has_left = (segment >> level & 1) != 0;
        if (!is_placed) {
            if (has_left) {
                sum = pending[level] + sum;
            } else {
                pending[level] = sum;
                is_placed = true;
            }
        }
    }
    return sum;
}

// Writes a thread's outputs, with the bias, of rows from `first_row` on and before `end_row`. `out`: as p.out.
__device__ __forceinline__ void store_square(const float (&totals)[2][2], const LinearParams &p,
                                             float *out, uint32_t first_row, uint32_t end_row) {
    const uint32_t stride = p.out_stride == 0 ? p.outputs : p.out_stride;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t row = first_row + threadIdx.x / 16 + 16 * (i / 2);
        const uint32_t output = blockIdx.y * F32_OUTPUTS + threadIdx.x % 16 + 16 * (i % 2);
        if (row < end_row && output < p.outputs) {
            const float total = totals[i / 2][i % 2];
            out[static_cast<size_t>(row) * stride + output] =
                p.bias == nullptr ? total : total + p.bias[output];
        }
    }
}

__device__ __forceinline__ void linear_float(const LinearParams &p) {
    __shared__ F32Squares squares;
    const uint32_t num_rows = *p.num_rows, first_row = blockIdx.x * F32_ROWS;
    if (first_row >= num_rows) return;
    const F32Rows rows = {first_row, num_rows};
    float totals[2][2] = {}, pending[2][2][3] = {};
    for (uint32_t segment = 0; segment < p.segments; segment++) {
        float sums[2][2];
        sum_segment(sums, squares, p, rows, segment);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            totals[i / 2][i % 2] = join_segment(sums[i / 2][i % 2], pending[i / 2][i % 2], segment);
        }
    }
    store_square(totals, p, static_cast<float *>(p.out), first_row, num_rows);
}

}  // namespace oarlock
