// RMS norms. The sum of squares has one order for a width: thread by thread over the row, four
// chains in each, joined ((0 + 1) + (2 + 3)), then lanes 16 to 1 apart, then warps 4 to 1 apart.
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

constexpr int NORM_THREADS = 256;  // enough loads under way for a row of 4,096; one order for all
constexpr int NORM_WARPS = NORM_THREADS / 32;

// 1 / rms of a row of `width` values whose squares add up to the block's `sums`.
__device__ __forceinline__ float inverse_rms(float sum, uint32_t width, float eps) {
    const float mean = __fdiv_rn(sum, static_cast<float>(width));
    return __fdiv_rn(1.0f, __fsqrt_rn(mean + eps));
}

// Sum over the block, the same in every thread.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float sums[NORM_WARPS];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// residual[i] += delta[i] into `row` (shared), and back where there is a delta; the squares' sum.
__device__ __forceinline__ float add_and_square(float *row, float *residual, const float *delta,
                                                uint32_t width, bool by_4) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (by_4) {
        for (uint32_t i = 4 * threadIdx.x; i < width; i += 4 * NORM_THREADS) {
            float values[4];
            load_4(values, residual + i);
            if (delta != nullptr) {
                float added[4];
                load_4(added, delta + i);
#pragma unroll
                for (int j = 0; j < 4; j++) values[j] += added[j];
                store_4(residual + i, values);
            }
            store_4(row + i, values);
#pragma unroll
            for (int j = 0; j < 4; j++) sums[j] = fmaf(values[j], values[j], sums[j]);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < width; i += NORM_THREADS) {
            float value = residual[i];
            if (delta != nullptr) {
                value += delta[i];
                residual[i] = value;
            }
            row[i] = value;
            sums[0] = fmaf(value, value, sums[0]);
        }
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// out[i] = row[i] * inverse * weight[i]
template <typename T>
__device__ __forceinline__ void scale_row(T *out, const float *row, const float *weight,
                                          uint32_t width, float inverse, bool by_4) {
    if (by_4) {
        for (uint32_t i = 4 * threadIdx.x; i < width; i += 4 * NORM_THREADS) {
            float values[4], weights[4];
            load_4(values, row + i);
            load_4(weights, weight + i);
#pragma unroll
            for (int j = 0; j < 4; j++) values[j] = values[j] * inverse * weights[j];
            store_4(out + i, values);
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < width; i += NORM_THREADS) {
        out[i] = from_float<T>(row[i] * inverse * weight[i]);
    }
}

// One block of threads per row; `row` is shared memory for [width].
template <typename T>
__device__ __forceinline__ void norm_row(T *out, float *residual, const float *delta,
                                         const float *weight, uint32_t width, float eps) {
    extern __shared__ float4 dynamic_shared[];
    float *row = reinterpret_cast<float *>(dynamic_shared);
    // Rows of a width divisible by 4 are as aligned as their tensor.
    const bool by_4 = rows_of_4(residual, width) && rows_of_4(out, width) &&
                      rows_of_4(weight, width) && rows_of_4(delta, width);
    const float sum = block_sum(add_and_square(row, residual, delta, width, by_4));
    scale_row(out, row, weight, width, inverse_rms(sum, width, eps), by_4);
}

template <typename T>
__device__ __forceinline__ void add_rms_norm(const AddRmsNormParams &p) {
    if (blockIdx.x >= *p.num_rows) return;
    const size_t at = static_cast<size_t>(blockIdx.x) * p.width;
    norm_row(static_cast<T *>(p.out) + at, p.residual + at,
             p.delta == nullptr ? nullptr : p.delta + at, p.weight, p.width, p.eps);
}

__device__ __forceinline__ void rms_norm(const RmsNormParams &p) {
    if (blockIdx.x >= *p.num_rows) return;
    float *values = p.values + static_cast<size_t>(blockIdx.x) * p.width;
    norm_row(values, values, nullptr, p.weight, p.width, p.eps);
}

// One warp per head; a lane has pairs of neighbors, 64 apart.
template <typename T>
__device__ __forceinline__ void head_rms_norm(const HeadRmsNormParams &p) {
    constexpr int MAX_PAIRS = 256 / 64;  // the widest head
    const uint32_t head = blockIdx.y * NORM_WARPS + threadIdx.x / 32;
    if (blockIdx.x >= *p.num_rows || head >= p.num_heads + p.num_kv_heads) return;
    const size_t row_width = static_cast<size_t>(p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
    T *values = static_cast<T *>(p.qkv) + blockIdx.x * row_width + head * p.head_dim;
    const float *weight = head < p.num_heads ? p.query_weight : p.key_weight;  // [head_dim]
    float pairs[MAX_PAIRS][2];
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const uint32_t at = 64 * i + 2 * (threadIdx.x % 32);
        if (at < p.head_dim) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                pairs[i][j] = to_float(values[at + j]);
                sums[j] = fmaf(pairs[i][j], pairs[i][j], sums[j]);
            }
        }
    }
    const float inverse = inverse_rms(warp_sum(sums[0] + sums[1]), p.head_dim, p.eps);
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const uint32_t at = 64 * i + 2 * (threadIdx.x % 32);
        if (at < p.head_dim) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                values[at + j] = from_float<T>(pairs[i][j] * inverse * weight[at + j]);
            }
        }
    }
}

}  // namespace oarlock
