// Number types and the functions whose bits the contract fixes.
#pragma once

#include <stdint.h>

#include "arch.cuh"

namespace oarlock {

// bfloat16 as bits.
struct Bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(Bf16 value) {
    return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_float(float value) { return value; }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float value) {
    return Bf16{static_cast<uint16_t>(pack_bf16(value, 0.0f))};
}

__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// Four consecutive values at once; the address is aligned to all of them.
__device__ __forceinline__ void load_4(float (&to)[4], const float *from) {
    const float4 values = *reinterpret_cast<const float4 *>(from);
    to[0] = values.x, to[1] = values.y, to[2] = values.z, to[3] = values.w;
}
__device__ __forceinline__ void load_4(float (&to)[4], const Bf16 *from) {
    const uint2 pairs = *reinterpret_cast<const uint2 *>(from);
    to[0] = low_bf16(pairs.x), to[1] = high_bf16(pairs.x);
    to[2] = low_bf16(pairs.y), to[3] = high_bf16(pairs.y);
}
__device__ __forceinline__ void store_4(float *to, const float (&from)[4]) {
    *reinterpret_cast<float4 *>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
__device__ __forceinline__ void store_4(Bf16 *to, const float (&from)[4]) {
    *reinterpret_cast<uint2 *>(to) =
        make_uint2(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]));
}

// Eight at once.
__device__ __forceinline__ void load_8(float (&to)[8], const float *from) {
    const float4 a = reinterpret_cast<const float4 *>(from)[0];
    const float4 b = reinterpret_cast<const float4 *>(from)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
__device__ __forceinline__ void load_8(float (&to)[8], const Bf16 *from) {
    const uint4 pairs = *reinterpret_cast<const uint4 *>(from);
    to[0] = low_bf16(pairs.x), to[1] = high_bf16(pairs.x);
    to[2] = low_bf16(pairs.y), to[3] = high_bf16(pairs.y);
    to[4] = low_bf16(pairs.z), to[5] = high_bf16(pairs.z);
    to[6] = low_bf16(pairs.w), to[7] = high_bf16(pairs.w);
}
__device__ __forceinline__ void store_8(float *to, const float (&from)[8]) {
    reinterpret_cast<float4 *>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
    reinterpret_cast<float4 *>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}
__device__ __forceinline__ void store_8(Bf16 *to, const float (&from)[8]) {
    *reinterpret_cast<uint4 *>(to) = make_uint4(
        pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
        pack_bf16(from[6], from[7]));
}

// Whether a base is aligned for eight at a time.
template <typename T>
__device__ __forceinline__ bool rows_of_8(const T *base) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0;
}

// Whether rows of `width` values that start at `base` can be read four at a time.
template <typename T>
__device__ __forceinline__ bool rows_of_4(const T *base, uint32_t width) {
    return width % 4 == 0 && reinterpret_cast<uintptr_t>(base) % (4 * sizeof(T)) == 0;
}

// The constants of crates/sampler/src/math.rs.
constexpr float EXP_MIN = -87.33654f;
constexpr float EXP_MAX = 88.0f;
constexpr float EXP_LOG2_E = 1.44269504088896340736f;
constexpr float EXP_ROUND = 12582912.0f;
constexpr float EXP_LN2_HIGH = 0.6933594f;
constexpr float EXP_LN2_LOW = -2.1219444e-4f;

// The sampler's exp, operation by operation, for x at most EXP_MAX.
__device__ __forceinline__ float exp_below_max(float x) {
    const float rounded = fmaf(x, EXP_LOG2_E, EXP_ROUND);
    const float n = rounded - EXP_ROUND;
    float r = fmaf(n, -EXP_LN2_HIGH, x);
    r = fmaf(n, -EXP_LN2_LOW, r);
    float q = fmaf(0.0013926213f, r, 0.008363203f);
    q = fmaf(q, r, 0.041666556f);
    q = fmaf(q, r, 0.16666576f);
    q = fmaf(q, r, 0.5f);
    const float p = fmaf(r * r, q, r) + 1.0f;
    const uint32_t exponent = __float_as_uint(rounded) - __float_as_uint(EXP_ROUND) + 127u;
    const float scale = __uint_as_float(exponent << 23);
    return x < EXP_MIN ? 0.0f : p * scale;
}

// The sampler's exp.
__device__ __forceinline__ float exp_fixed(float x) {
    return x > EXP_MAX ? exp_below_max(EXP_MAX) : exp_below_max(x);
}

// 1 / x for normal x in [2^-60, 2^60], to about one unit of the last place: a guess from the bits,
// then Newton's steps. For inner loops, where the division's subroutine has no place.
__device__ __forceinline__ float reciprocal(float x) {
    float r = __uint_as_float(0x7ef311c7u - __float_as_uint(x));
#pragma unroll
    for (int step = 0; step < 4; step++) {
        r = fmaf(r, fmaf(-x, r, 1.0f), r);
    }
    return r;
}

// tanh as 1 - 2 / (exp(2 x) + 1); NaN stays.
__device__ __forceinline__ float tanh_fixed(float x) {
    return 1.0f - __fdiv_rn(2.0f, exp_fixed(2.0f * x) + 1.0f);
}

// The same without a division, for attention's scores. From 2 x = 40 on it is 1.
__device__ __forceinline__ float tanh_of_score(float x) {
    const float twice = 2.0f * x;
    const float clamped = twice > 40.0f ? 40.0f : twice;
    return 1.0f - 2.0f * reciprocal(exp_below_max(clamped) + 1.0f);
}

// Sum over a warp by lanes 16, 8, 4, 2 and 1 apart: the same in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, apart);
    }
    return value;
}

// The greater one, or `a` where they do not compare (NaN) or are equal.
__device__ __forceinline__ float greater(float a, float b) { return b > a ? b : a; }

}  // namespace oarlock
