// Gated activations (eight values per thread), the soft cap of logits and biases (four).
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

// x / (1 + exp(-x))
__device__ __forceinline__ float silu(float x) { return __fdiv_rn(x, 1.0f + exp_fixed(-x)); }

// GELU by the tanh approximation (Hendrycks and Gimpel, 2016).
__device__ __forceinline__ float gelu_tanh(float x) {
    constexpr float ROOT = 0.79788456080286535588f;  // sqrt(2 / pi)
    const float cubic = 0.044715f * x * x * x;
    return 0.5f * x * (1.0f + tanh_fixed(ROOT * (x + cubic)));
}

__device__ __forceinline__ float gated(float gate, float up, uint32_t activation) {
    return up * (activation == 0 ? silu(gate) : gelu_tanh(gate));
}

template <typename T>
__device__ __forceinline__ void gated_activation(const GatedActivationParams &p) {
    const uint32_t row = blockIdx.x;
    const uint32_t first = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (first >= p.width || row >= *p.num_rows) return;
    const T *gate = static_cast<const T *>(p.gate_up) + static_cast<size_t>(row) * 2 * p.width;
    const T *up = gate + p.width;
    T *out = static_cast<T *>(p.out) + static_cast<size_t>(row) * p.width;
    if (p.width % 8 == 0 && rows_of_8(static_cast<const T *>(p.gate_up)) &&
        rows_of_8(static_cast<T *>(p.out))) {
        float gates[8], ups[8];
        load_8(gates, gate + first);
        load_8(ups, up + first);
#pragma unroll
        for (int i = 0; i < 8; i++) ups[i] = gated(gates[i], ups[i], p.activation);
        store_8(out + first, ups);
        return;
    }
    for (uint32_t i = first; i < min(first + 8, p.width); i++) {
        out[i] = from_float<T>(gated(to_float(gate[i]), to_float(up[i]), p.activation));
    }
}

__device__ __forceinline__ float capped(float value, float cap) {
    return cap * tanh_fixed(__fdiv_rn(value, cap));
}

__device__ __forceinline__ void soft_cap(const SoftCapParams &p) {
    const uint32_t first = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (blockIdx.x >= *p.num_rows || first >= p.width) return;
    float *values = p.values + static_cast<size_t>(blockIdx.x) * p.width;
    if (rows_of_4(p.values, p.width)) {
        float four[4];
        load_4(four, values + first);
#pragma unroll
        for (int i = 0; i < 4; i++) four[i] = capped(four[i], p.cap);
        store_4(values + first, four);
        return;
    }
    for (uint32_t i = first; i < min(first + 4, p.width); i++) {
        values[i] = capped(values[i], p.cap);
    }
}

__device__ __forceinline__ void add_bias(const AddBiasParams &p) {
    const uint32_t first = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (blockIdx.x >= *p.num_rows || first >= p.width) return;
    float *values = p.values + static_cast<size_t>(blockIdx.x) * p.width;
    if (rows_of_4(p.values, p.width) && rows_of_4(p.bias, p.width)) {
        float four[4], bias[4];
        load_4(four, values + first);
        load_4(bias, p.bias + first);
#pragma unroll
        for (int i = 0; i < 4; i++) four[i] += bias[i];
        store_4(values + first, four);
        return;
    }
    for (uint32_t i = first; i < min(first + 4, p.width); i++) {
        values[i] += p.bias[i];
    }
}

}  // namespace oarlock
