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

// 32 rows of 32 columns of `from` [rows, columns] into shared memory, zeros beyond.
__device__ __forceinline__ void load_square(float (&to)[32][F32_PITCH], const float *from,
                                            uint32_t first_row, uint32_t rows, uint32_t columns,
                                            uint32_t first_column, uint32_t end_column) {
    const uint32_t column = first_column + threadIdx.x % 32;
    for (uint32_t i = threadIdx.x / 32; i < 32; i += F32_THREADS / 32) {
        const bool is_there = first_row + i < rows && column < end_column;
        to[i][threadIdx.x % 32] =
            is_there ? from[static_cast<size_t>(first_row + i) * columns + column] : 0.0f;
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

__device__ __forceinline__ void linear_float(const LinearParams &p) {
    __shared__ float weights[F32_OUTPUTS][F32_PITCH];
    __shared__ float inputs[F32_ROWS][F32_PITCH];
    const uint32_t num_rows = *p.num_rows;
    const uint32_t first_row = blockIdx.x * F32_ROWS, first_output = blockIdx.y * F32_OUTPUTS;
    if (first_row >= num_rows) return;
    const uint32_t segment_columns = p.columns / p.segments;
    // Outputs o and o + 16 of rows r and r + 16.
    const uint32_t o = threadIdx.x % 16, r = threadIdx.x / 16;
    float totals[2][2] = {}, pending[2][2][3] = {};
    for (uint32_t segment = 0; segment < p.segments; segment++) {
        const uint32_t end = (segment + 1) * segment_columns;
        float sums[2][2] = {};
        for (uint32_t column = segment * segment_columns; column < end; column += F32_COLUMNS) {
            __syncthreads();
            load_square(weights, static_cast<const float *>(p.weight), first_output, p.outputs,
                        p.columns, column, end);
            load_square(inputs, static_cast<const float *>(p.input), first_row, num_rows,
                        p.columns, column, end);
            __syncthreads();
            // Not beyond the segment: a padded product would change the sign of a zero.
            const uint32_t count = min(end - column, static_cast<uint32_t>(F32_COLUMNS));
            for (uint32_t k = 0; k < count; k++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float &sum = sums[i / 2][i % 2];
                    sum = fmaf(weights[o + 16 * (i % 2)][k], inputs[r + 16 * (i / 2)][k], sum);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            totals[i / 2][i % 2] = join_segment(sums[i / 2][i % 2], pending[i / 2][i % 2], segment);
        }
    }
    const uint32_t stride = p.out_stride == 0 ? p.outputs : p.out_stride;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t row = first_row + r + 16 * (i / 2), output = first_output + o + 16 * (i % 2);
        if (row < num_rows && output < p.outputs) {
            const float total = totals[i / 2][i % 2];
            static_cast<float *>(p.out)[static_cast<size_t>(row) * stride + output] =
                p.bias == nullptr ? total : total + p.bias[output];
        }
    }
}

}  // namespace oarlock
