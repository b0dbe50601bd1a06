// Token embedding and gathering of rows.
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

// One block of threads per row. -0 for other ranks' tokens: adding it to anything changes no bit.
template <typename T>
__device__ __forceinline__ void embed(const EmbedParams &p) {
    const uint32_t row = blockIdx.x;
    if (row >= *p.num_rows) return;
    float *out = p.out + static_cast<size_t>(row) * p.width;  // [width]
    const uint32_t at = p.tokens[row] - p.first_token;
    const bool is_there = at < p.table_rows;
    const T *from = static_cast<const T *>(p.table) + static_cast<size_t>(is_there ? at : 0) * p.width;
    if (rows_of_4(static_cast<const T *>(p.table), p.width) && rows_of_4(p.out, p.width)) {
        for (uint32_t i = 4 * threadIdx.x; i < p.width; i += 4 * blockDim.x) {
            float values[4] = {-0.0f, -0.0f, -0.0f, -0.0f};
            if (is_there) {
                load_4(values, from + i);
                for (float &value : values) value *= p.scale;
            }
            store_4(out + i, values);
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
        out[i] = is_there ? to_float(from[i]) * p.scale : -0.0f;
    }
}

// out[row] = input[rows[row]]
template <typename T>
__device__ __forceinline__ void gather(const GatherParams &p) {
    const uint32_t row = blockIdx.x;
    if (row >= *p.num_rows) return;
    const T *from = static_cast<const T *>(p.input) + static_cast<size_t>(p.rows[row]) * p.width;
    T *out = static_cast<T *>(p.out) + static_cast<size_t>(row) * p.width;
    const uint32_t chunk = 16 / sizeof(T);
    const uintptr_t bits = reinterpret_cast<uintptr_t>(p.input) | reinterpret_cast<uintptr_t>(p.out);
    if (p.width % chunk == 0 && bits % 16 == 0) {
        for (uint32_t i = threadIdx.x; i < p.width / chunk; i += blockDim.x) {
            reinterpret_cast<uint4 *>(out)[i] = reinterpret_cast<const uint4 *>(from)[i];
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
        out[i] = from[i];
    }
}

}  // namespace oarlock
