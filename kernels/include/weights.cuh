// Packed weights of the bfloat16 linear kernels: how one tile of 16 outputs comes into shared memory
// for a pair of steps of 64 columns (one for each chain), and from there, unpacked, into the A
// registers of mma.m16n8k16.
//
// A step has two halves of 32 columns with two mma each. kernels/README.md says which column lies
// where. Lane = 4 r + q has outputs r and r + 8.
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

// A pair of steps of one segment, in terms of the packed planes.
struct PairPlace {
    uint32_t num_tiles;       // of 16 outputs
    uint32_t steps;           // of one segment
    uint32_t segment;
    uint32_t step;            // the pair's first; the second may be one too many
    uint32_t segment_blocks;  // sub-blocks of 32 columns of one segment
};

// Index of a tile's step in planes that have one record for each; the pair's second is the next.
__device__ __forceinline__ size_t record(const LinearParams &p, const PairPlace &at, uint32_t tile) {
    return (static_cast<size_t>(tile) * p.segments + at.segment) * at.steps + at.step;
}

// Copies 16 bytes of `plane` if they are there, zeros if not.
__device__ __forceinline__ void copy_chunk(char *to, const void *plane, size_t offset,
                                           bool is_there) {
    copy_async_16(to, static_cast<const char *>(plane) + (is_there ? offset : 0), is_there);
}

// Copies a chunk of two consecutive records of RECORD bytes.
template <uint32_t RECORD>
__device__ __forceinline__ void copy_of_pair(char *to, const void *plane, uint32_t chunk,
                                             const LinearParams &p, const PairPlace &at,
                                             uint32_t tile) {
    const bool is_there =
        tile < at.num_tiles && at.step + chunk / (RECORD / 16) < at.steps;
    copy_chunk(to, plane, record(p, at, tile) * RECORD + 16 * chunk, is_there);
}

// Byte `i` of `bytes` as a float in [2^23, 2^23 + 255].
__device__ __forceinline__ float magic_byte(uint32_t bytes, uint32_t i) {
    return __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u | i));
}
constexpr float MAGIC = 8388608.0f;  // 2^23

// bfloat16, in the order of the registers.
struct Bf16Weights {
    static constexpr int STEP_BYTES = 2048;
    static constexpr int PAIR_BYTES = 2 * STEP_BYTES;
    static constexpr int CHUNKS = PAIR_BYTES / 16;

    struct Scales {};

    // Chunk `chunk` of a tile's pair, which starts at `to`; the loop over chunks is the caller's.
    static __device__ __forceinline__ void copy(char *to, uint32_t chunk, const LinearParams &p,
                                                const PairPlace &at, uint32_t tile) {
        copy_of_pair<STEP_BYTES>(to + 16 * chunk, p.weight, chunk, p, at, tile);
    }

    // Scales of the chain's step; `first_block`: the pair's first sub-block, counted from the start
    // of the super-block that has the view's first column.
    static __device__ __forceinline__ Scales scales(const char *, uint32_t, uint32_t, uint32_t) {
        return Scales{};
    }

    // Registers of both mma of one half of the chain's step.
    static __device__ __forceinline__ void unpack(uint32_t (&a)[2][4], const char *pair,
                                                  uint32_t chain, int half, uint32_t lane,
                                                  const Scales &) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 four = *reinterpret_cast<const uint4 *>(
                pair + chain * STEP_BYTES + (2 * half + i) * 512 + lane * 16);
            a[i][0] = four.x, a[i][1] = four.y, a[i][2] = four.z, a[i][3] = four.w;
        }
    }
};

// Q8_0: d * q.
struct Q80Weights {
    static constexpr int QUANT_BYTES = 1024;  // of a step
    static constexpr int SCALE_BYTES = 64;
    static constexpr int PAIR_BYTES = 2 * (QUANT_BYTES + SCALE_BYTES);
    static constexpr int CHUNKS = PAIR_BYTES / 16;

    // d of [output r or r + 8][half].
    struct Scales {
        float d[2][2];
    };

    static __device__ __forceinline__ void copy(char *to, uint32_t chunk, const LinearParams &p,
                                                const PairPlace &at, uint32_t tile) {
        constexpr uint32_t FIRST_SCALE = 2 * QUANT_BYTES / 16;
        if (chunk < FIRST_SCALE) {
            copy_of_pair<QUANT_BYTES>(to + 16 * chunk, p.weight, chunk, p, at, tile);
        } else {
            copy_of_pair<SCALE_BYTES>(to + 16 * chunk, p.scales, chunk - FIRST_SCALE, p, at, tile);
        }
    }

    static __device__ __forceinline__ Scales scales(const char *pair, uint32_t chain, uint32_t lane,
                                                    uint32_t) {
        Scales scales;
        const uint32_t *halves = reinterpret_cast<const uint32_t *>(
            pair + 2 * QUANT_BYTES + chain * SCALE_BYTES);  // [16 outputs]
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t both = halves[lane / 4 + 8 * i];
            scales.d[i][0] = half_to_float(both & 0xffffu);
            scales.d[i][1] = half_to_float(both >> 16);
        }
        return scales;
    }

    static __device__ __forceinline__ void unpack(uint32_t (&a)[2][4], const char *pair,
                                                  uint32_t chain, int half, uint32_t lane,
                                                  const Scales &scales) {
        const uint4 four = *reinterpret_cast<const uint4 *>(pair + chain * QUANT_BYTES +
                                                            half * 512 + lane * 16);
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
    static constexpr int QUANT_BYTES = 512;    // of a step
    static constexpr int SUB_SCALE_BYTES = 48;
    static constexpr int SUPER_BYTES = 64;     // of a super-block of 256 columns
    // A pair's four sub-blocks lie in one super-block or in two.
    static constexpr int USED_BYTES = 2 * (QUANT_BYTES + SUB_SCALE_BYTES + SUPER_BYTES);
    static constexpr int PAIR_BYTES = (USED_BYTES + 127) / 128 * 128;
    static constexpr int CHUNKS = USED_BYTES / 16;

    // [output r or r + 8][half]
    struct Scales {
        float scale[2][2];
        float minimum[2][2];
    };

    static __device__ __forceinline__ void copy(char *to, uint32_t chunk, const LinearParams &p,
                                                const PairPlace &at, uint32_t tile) {
        constexpr uint32_t FIRST_SUB = 2 * QUANT_BYTES / 16;
        constexpr uint32_t FIRST_SUPER = FIRST_SUB + 2 * SUB_SCALE_BYTES / 16;
        char *slot = to + 16 * chunk;
        if (chunk < FIRST_SUB) {
            copy_of_pair<QUANT_BYTES>(slot, p.weight, chunk, p, at, tile);
        } else if (chunk < FIRST_SUPER) {
            copy_of_pair<SUB_SCALE_BYTES>(slot, p.sub_scales, chunk - FIRST_SUB, p, at, tile);
        } else {
            const uint32_t which = (chunk - FIRST_SUPER) / (SUPER_BYTES / 16);
            const uint32_t segment = p.first_sub_block + at.segment * at.segment_blocks;
            const uint32_t first = segment + 2 * at.step;
            const uint32_t last = min(first + 3, segment + at.segment_blocks - 1);
            const uint32_t supers = (p.first_sub_block + p.columns / 32 + 7) / 8;
            const size_t index = static_cast<size_t>(tile) * supers + first / 8 + which;
            const bool is_there = tile < at.num_tiles && first / 8 + which <= last / 8;
            copy_chunk(slot, p.scales,
                       index * SUPER_BYTES + (chunk - FIRST_SUPER) % (SUPER_BYTES / 16) * 16,
                       is_there);
        }
    }

    static __device__ __forceinline__ float small_integer(uint32_t value) {
        return __uint_as_float(0x4b000000u | value) - MAGIC;
    }

    static __device__ __forceinline__ Scales scales(const char *pair, uint32_t chain, uint32_t lane,
                                                    uint32_t first_block) {
        const uint8_t *sub = reinterpret_cast<const uint8_t *>(
            pair + 2 * QUANT_BYTES + chain * SUB_SCALE_BYTES);  // [3][16 outputs]
        const uint32_t *supers = reinterpret_cast<const uint32_t *>(
            pair + 2 * (QUANT_BYTES + SUB_SCALE_BYTES));  // [2][16 outputs]
        Scales scales;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t output = lane / 4 + 8 * i;
            const uint32_t bits = sub[output] | sub[16 + output] << 8 | sub[32 + output] << 16;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t which = (first_block % 8 + 2 * chain + half) / 8;
                const uint32_t both = supers[16 * which + output];
                scales.scale[i][half] =
                    half_to_float(both & 0xffffu) * small_integer(bits >> (6 * half) & 63u);
                scales.minimum[i][half] =
                    half_to_float(both >> 16) * small_integer(bits >> (12 + 6 * half) & 63u);
            }
        }
        return scales;
    }

    static __device__ __forceinline__ void unpack(uint32_t (&a)[2][4], const char *pair,
                                                  uint32_t chain, int half, uint32_t lane,
                                                  const Scales &scales) {
        const uint4 four =
            *reinterpret_cast<const uint4 *>(pair + chain * QUANT_BYTES + lane * 16);
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
