// Packed weights of the bfloat16 linear kernels: how one tile of 16 outputs comes into shared memory
// for one step of 64 columns, and from there, unpacked, into the A registers of mma.m16n8k16.
//
// A step has two halves of 32 columns with two mma each. kernels/README.md says which column lies
// where. Lane = 4 r + q has outputs r and r + 8.
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

// A step of one segment, in terms of the packed planes.
struct StepPlace {
    uint32_t num_tiles;       // of 16 outputs
    uint32_t steps;           // of one segment
    uint32_t segment;
    uint32_t step;            // in the segment; may be one too many
    uint32_t segment_blocks;  // sub-blocks of 32 columns of one segment
};

// Index of a tile's step in planes that have one record for each.
__device__ __forceinline__ size_t record(const LinearParams &p, const StepPlace &at, uint32_t tile) {
    return (static_cast<size_t>(tile) * p.segments + at.segment) * at.steps + at.step;
}

// Copies `CHUNKS` times 16 bytes if they are there, zeros if not.
__device__ __forceinline__ void copy_chunk(char *to, const void *plane, size_t record_at,
                                           uint32_t record_bytes, uint32_t chunk, bool is_there) {
    const char *from = static_cast<const char *>(plane);
    copy_async_16(to + 16 * chunk, from + (is_there ? record_at * record_bytes + 16 * chunk : 0),
                  is_there);
}

// Byte `i` of `bytes` as a float in [2^23, 2^23 + 255].
__device__ __forceinline__ float magic_byte(uint32_t bytes, uint32_t i) {
    return __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u | i));
}
constexpr float MAGIC = 8388608.0f;  // 2^23

// bfloat16, in the order of the registers.
struct Bf16Weights {
    static constexpr int QUANT_BYTES = 2048;
    static constexpr int STEP_BYTES = QUANT_BYTES;

    struct Scales {};

    // Chunk `chunk` of a tile's step; the loop over chunks is the caller's.
    static constexpr int CHUNKS = STEP_BYTES / 16;
    static __device__ __forceinline__ void copy(char *to, uint32_t chunk, const LinearParams &p,
                                                const StepPlace &at, uint32_t tile) {
        const bool is_there = tile < at.num_tiles && at.step < at.steps;
        copy_chunk(to, p.weight, record(p, at, tile), QUANT_BYTES, chunk, is_there);
    }

    static __device__ __forceinline__ Scales scales(const char *, uint32_t, const LinearParams &,
                                                    const StepPlace &) {
        return Scales{};
    }

    // Registers of both mma of one half.
    static __device__ __forceinline__ void unpack(uint32_t (&a)[2][4], const char *from, int half,
                                                  uint32_t lane, const Scales &) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 four =
                *reinterpret_cast<const uint4 *>(from + (2 * half + i) * 512 + lane * 16);
            a[i][0] = four.x, a[i][1] = four.y, a[i][2] = four.z, a[i][3] = four.w;
        }
    }
};

// Q8_0: d * q.
struct Q80Weights {
    static constexpr int QUANT_BYTES = 1024;
    static constexpr int SCALE_BYTES = 64;
    static constexpr int STEP_BYTES = QUANT_BYTES + SCALE_BYTES;
    static constexpr int CHUNKS = STEP_BYTES / 16;

    // d of [output r or r + 8][half].
    struct Scales {
        float d[2][2];
    };

    static __device__ __forceinline__ void copy(char *to, uint32_t chunk, const LinearParams &p,
                                                const StepPlace &at, uint32_t tile) {
        const bool is_there = tile < at.num_tiles && at.step < at.steps;
        const size_t index = record(p, at, tile);
        if (chunk < QUANT_BYTES / 16) {
            copy_chunk(to, p.weight, index, QUANT_BYTES, chunk, is_there);
        } else {
            copy_chunk(to + QUANT_BYTES, p.scales, index, SCALE_BYTES, chunk - QUANT_BYTES / 16,
                       is_there);
        }
    }

    static __device__ __forceinline__ Scales scales(const char *from, uint32_t lane,
                                                    const LinearParams &, const StepPlace &) {
        Scales scales;
        const uint32_t *pairs = reinterpret_cast<const uint32_t *>(from + QUANT_BYTES);  // [16]
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t pair = pairs[lane / 4 + 8 * i];
            scales.d[i][0] = half_to_float(pair & 0xffffu);
            scales.d[i][1] = half_to_float(pair >> 16);
        }
        return scales;
    }

    static __device__ __forceinline__ void unpack(uint32_t (&a)[2][4], const char *from, int half,
                                                  uint32_t lane, const Scales &scales) {
        const uint4 four = *reinterpret_cast<const uint4 *>(from + half * 512 + lane * 16);
        const uint32_t words[2][2] = {{four.x, four.y}, {four.z, four.w}};  // [output][columns / 4]
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int output = 0; output < 2; output++) {
                // Signed bytes, made unsigned by adding 128.
                const uint32_t bytes = words[output][i] ^ 0x80808080u;
                float w[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    w[j] = (magic_byte(bytes, j) - (MAGIC + 128.0f)) * scales.d[output][half];
                }
                a[i][output] = pack_bf16(w[0], w[1]);
                a[i][output + 2] = pack_bf16(w[2], w[3]);
            }
        }
    }
};

// Q4_K: d * scale * q - dmin * minimum, where both products are exact in float32.
struct Q4KWeights {
    static constexpr int QUANT_BYTES = 512;
    static constexpr int SUB_SCALE_BYTES = 48;
    static constexpr int SUPER_BYTES = 64;
    // The halves may lie in different super-blocks, so there are two.
    static constexpr int STEP_BYTES = QUANT_BYTES + SUB_SCALE_BYTES + 2 * SUPER_BYTES;
    static constexpr int CHUNKS = STEP_BYTES / 16;

    // [output r or r + 8][half]
    struct Scales {
        float scale[2][2];
        float minimum[2][2];
    };

    // Sub-block of the view's first super-block on in which the step's first half lies.
    static __device__ __forceinline__ uint32_t sub_block(const LinearParams &p,
                                                         const StepPlace &at) {
        return p.first_sub_block + at.segment * at.segment_blocks + 2 * at.step;
    }

    static __device__ __forceinline__ void copy(char *to, uint32_t chunk, const LinearParams &p,
                                                const StepPlace &at, uint32_t tile) {
        constexpr uint32_t FIRST_SUB = QUANT_BYTES / 16;
        constexpr uint32_t FIRST_SUPER = FIRST_SUB + SUB_SCALE_BYTES / 16;
        const bool is_there = tile < at.num_tiles && at.step < at.steps;
        if (chunk < FIRST_SUB) {
            copy_chunk(to, p.weight, record(p, at, tile), QUANT_BYTES, chunk, is_there);
        } else if (chunk < FIRST_SUPER) {
            copy_chunk(to + QUANT_BYTES, p.sub_scales, record(p, at, tile), SUB_SCALE_BYTES,
                       chunk - FIRST_SUB, is_there);
        } else {
            const uint32_t which = (chunk - FIRST_SUPER) / (SUPER_BYTES / 16);
            const uint32_t first = sub_block(p, at);
            // A second half that is padding has no super-block; its activations are zeros.
            const bool is_padding = 2 * at.step + which >= at.segment_blocks;
            const uint32_t supers = (p.first_sub_block + p.columns / 32 + 7) / 8;
            const size_t index = static_cast<size_t>(tile) * supers + (first + which) / 8;
            copy_chunk(to + QUANT_BYTES + SUB_SCALE_BYTES + which * SUPER_BYTES, p.scales, index,
                       SUPER_BYTES, (chunk - FIRST_SUPER) % (SUPER_BYTES / 16),
                       is_there && !is_padding);
        }
    }

    static __device__ __forceinline__ float small_integer(uint32_t value) {
        return __uint_as_float(0x4b000000u | value) - MAGIC;
    }

    static __device__ __forceinline__ Scales scales(const char *from, uint32_t lane,
                                                    const LinearParams &, const StepPlace &) {
        const uint8_t *sub = reinterpret_cast<const uint8_t *>(from + QUANT_BYTES);  // [3][16]
        const uint32_t *supers =
            reinterpret_cast<const uint32_t *>(from + QUANT_BYTES + SUB_SCALE_BYTES);  // [2][16]
        Scales scales;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t output = lane / 4 + 8 * i;
            const uint32_t bits = sub[output] | sub[16 + output] << 8 | sub[32 + output] << 16;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t pair = supers[16 * half + output];
                scales.scale[i][half] =
                    half_to_float(pair & 0xffffu) * small_integer(bits >> (6 * half) & 63u);
                scales.minimum[i][half] =
                    half_to_float(pair >> 16) * small_integer(bits >> (12 + 6 * half) & 63u);
            }
        }
        return scales;
    }

    static __device__ __forceinline__ void unpack(uint32_t (&a)[2][4], const char *from, int half,
                                                  uint32_t lane, const Scales &scales) {
        const uint4 four = *reinterpret_cast<const uint4 *>(from + lane * 16);
        const uint32_t words[2][2] = {{four.x, four.y}, {four.z, four.w}};  // [half][output]
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int output = 0; output < 2; output++) {
                const uint32_t bytes = words[half][output] >> (4 * i) & 0x0f0f0f0fu;
                float w[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    w[j] = fmaf(magic_byte(bytes, j) - MAGIC, scales.scale[output][half],
                                -scales.minimum[output][half]);
                }
                a[i][output] = pack_bf16(w[0], w[1]);
                a[i][output + 2] = pack_bf16(w[2], w[3]);
            }
        }
    }
};

}  // namespace oarlock
