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

// The pair of steps that is loaded next.
struct PairPlace {
    uint32_t steps;    // of one segment
    uint32_t segment;
    uint32_t step;     // the pair's first; the second may be one too many
};

// Walks a plane that has RECORD bytes for each [tile][segment][step], a pair of steps at a time; if IS_CUT, a
// segment's last step has half of them where its second half (32 columns) would be padding. The block's
// THREADS threads copy TILES tiles; a thread's chunks keep their places in the pair, so that all it has is
// one address.
template <uint32_t RECORD, bool IS_CUT, uint32_t TILES, uint32_t THREADS>
struct PlaneCursor {
    static constexpr uint32_t CHUNKS = 2 * RECORD / 16;  // of a tile's pair
    static constexpr uint32_t PASSES = (TILES * CHUNKS + THREADS - 1) / THREADS;
    static_assert(PASSES == 1 || THREADS % CHUNKS == 0 || CHUNKS % THREADS == 0,
                  "a thread's chunks differ by constants");

    const char *from;        // this thread's first chunk
    size_t tile_bytes;       // from one tile to the next
    uint32_t segment_bytes;  // of one tile
    uint32_t tiles_left;     // that exist, from the block's first on

    // `thread`: this thread's number among those that copy; may be too large to have work.
    __device__ __forceinline__ PlaneCursor(const LinearParams &p, const void *plane, uint32_t steps,
                                           uint32_t first_tile, uint32_t thread) {
        const uint32_t tiles = (p.outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
        const uint32_t padding = steps * STEP_COLUMNS - p.columns / p.segments;
        segment_bytes = steps * RECORD - (IS_CUT && padding >= STEP_COLUMNS / 2 ? RECORD / 2 : 0);
        tile_bytes = static_cast<size_t>(p.segments) * segment_bytes;
        tiles_left = tiles > first_tile ? tiles - first_tile : 0;
        from = static_cast<const char *>(plane) + (first_tile + thread / CHUNKS) * tile_bytes +
               thread % CHUNKS * 16;
    }

    // Starts copying, zeros where nothing is stored; a tile's records lie at `to` + tile * stride.
    __device__ __forceinline__ void load(char *to, uint32_t stride, const void *plane,
                                         uint32_t thread, const PairPlace &at) const {
#pragma unroll
        for (uint32_t pass = 0; pass < PASSES; pass++) {
            const uint32_t i = thread + pass * THREADS;
            if (TILES * CHUNKS % THREADS != 0 && i >= TILES * CHUNKS) break;
            // Tile and chunk of this pass from those of the first, by constants.
            const uint32_t tiles_on = pass * THREADS / CHUNKS;
            const uint32_t chunk = thread % CHUNKS + pass * THREADS % CHUNKS;
            const uint32_t tile = thread / CHUNKS + tiles_on;
            const bool is_there = tile < tiles_left && at.step * RECORD + chunk * 16 < segment_bytes;
            const char *source = from + tiles_on * tile_bytes + pass * THREADS % CHUNKS * 16;
            copy_async_16(to + tile * stride + chunk * 16,
                          is_there ? source : static_cast<const char *>(plane), is_there);
        }
    }

    // Over whole segments.
    __device__ __forceinline__ void skip(uint32_t segments) {
        from += static_cast<size_t>(segments) * segment_bytes;
    }

    // To the next pair; after a segment's last one, of which not all may be stored, to the next segment.
    __device__ __forceinline__ void advance(const PairPlace &at) {
        const uint32_t end = (at.step + 2) * RECORD;
        from += 2 * RECORD;
        if (end > segment_bytes) from -= end - segment_bytes;
    }
};

// Byte `i` of `bytes` as a float in [2^23, 2^23 + 255].
__device__ __forceinline__ float magic_byte(uint32_t bytes, uint32_t i) {
    return __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u | i));
}
constexpr float MAGIC = 8388608.0f;  // 2^23

// bfloat16, in the order of the registers.
struct Bf16Weights {
    static constexpr int STEP_BYTES = 2048;
    static constexpr int PAIR_BYTES = 2 * STEP_BYTES;

    struct Scales {};

    template <uint32_t TILES, uint32_t THREADS>
    struct Cursor {
        PlaneCursor<STEP_BYTES, true, TILES, THREADS> weights;

        __device__ __forceinline__ Cursor(const LinearParams &p, uint32_t steps, uint32_t first_tile)
            : weights(p, p.weight, steps, first_tile, threadIdx.x) {}

        __device__ __forceinline__ void load(char *to, const LinearParams &p,
                                             const PairPlace &at) const {
            weights.load(to, PAIR_BYTES, p.weight, threadIdx.x, at);
        }

        __device__ __forceinline__ void skip(uint32_t segments) { weights.skip(segments); }
        __device__ __forceinline__ void advance(const PairPlace &at) { weights.advance(at); }
    };

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

    // d of [output r or r + 8][half].
    struct Scales {
        float d[2][2];
    };

    template <uint32_t TILES, uint32_t THREADS>
    struct Cursor {
        PlaneCursor<QUANT_BYTES, true, TILES, THREADS> quants;
        PlaneCursor<SCALE_BYTES, false, TILES, THREADS> scales;

        __device__ __forceinline__ Cursor(const LinearParams &p, uint32_t steps, uint32_t first_tile)
            : quants(p, p.weight, steps, first_tile, threadIdx.x),
              scales(p, p.scales, steps, first_tile, threadIdx.x) {}

        __device__ __forceinline__ void load(char *to, const LinearParams &p,
                                             const PairPlace &at) const {
            quants.load(to, PAIR_BYTES, p.weight, threadIdx.x, at);
            scales.load(to + 2 * QUANT_BYTES, PAIR_BYTES, p.scales, threadIdx.x, at);
        }

        __device__ __forceinline__ void skip(uint32_t segments) {
            quants.skip(segments);
            scales.skip(segments);
        }

        __device__ __forceinline__ void advance(const PairPlace &at) {
            quants.advance(at);
            scales.advance(at);
        }
    };

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

    // [output r or r + 8][half]
    struct Scales {
        float scale[2][2];
        float minimum[2][2];
    };

    template <uint32_t TILES, uint32_t THREADS>
    struct Cursor {
        static constexpr uint32_t CHUNKS = 2 * SUPER_BYTES / 16;  // of super-blocks, of one tile
        // Sub-scales and super-blocks are copied by different warps.
        static constexpr uint32_t FIRST_THREAD = THREADS - TILES * CHUNKS;

        PlaneCursor<QUANT_BYTES, true, TILES, THREADS> quants;
        PlaneCursor<SUB_SCALE_BYTES, false, TILES, THREADS> sub_scales;
        size_t super_at;          // bytes, of this thread's chunk for super-block 0
        uint32_t segment_blocks;  // sub-blocks of one segment

        __device__ __forceinline__ Cursor(const LinearParams &p, uint32_t steps, uint32_t first_tile)
            : quants(p, p.weight, steps, first_tile, threadIdx.x),
              sub_scales(p, p.sub_scales, steps, first_tile, threadIdx.x) {
            const uint32_t supers = (p.first_sub_block + p.columns / 32 + 7) / 8;
            const uint32_t i = threadIdx.x - FIRST_THREAD;
            super_at =
                static_cast<size_t>(first_tile + i / CHUNKS) * supers * SUPER_BYTES + i % CHUNKS * 16;
            segment_blocks = p.columns / p.segments / 32;
        }

        __device__ __forceinline__ void load(char *to, const LinearParams &p,
                                             const PairPlace &at) const {
            quants.load(to, PAIR_BYTES, p.weight, threadIdx.x, at);
            sub_scales.load(to + 2 * QUANT_BYTES, PAIR_BYTES, p.sub_scales, threadIdx.x, at);
            if (threadIdx.x < FIRST_THREAD) return;
            const uint32_t i = threadIdx.x - FIRST_THREAD, tile = i / CHUNKS;
            const uint32_t segment = p.first_sub_block + at.segment * segment_blocks;
            const uint32_t first = segment + 2 * at.step;
            const uint32_t last = min(first + 3, segment + segment_blocks - 1);
            const uint32_t which = i % CHUNKS / (SUPER_BYTES / 16);
            const bool is_there = tile < quants.tiles_left && first / 8 + which <= last / 8;
            const char *plane = static_cast<const char *>(p.scales);
            copy_async_16(to + 2 * (QUANT_BYTES + SUB_SCALE_BYTES) + tile * PAIR_BYTES +
                              i % CHUNKS * 16,
                          is_there ? plane + super_at + first / 8 * SUPER_BYTES : plane, is_there);
        }

        __device__ __forceinline__ void skip(uint32_t segments) {
            quants.skip(segments);
            sub_scales.skip(segments);
        }

        __device__ __forceinline__ void advance(const PairPlace &at) {
            quants.advance(at);
            sub_scales.advance(at);
        }
    };

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
        const uint2 both = *reinterpret_cast<const uint2 *>(pair + chain * QUANT_BYTES +
                                                            half * (QUANT_BYTES / 2) + lane * 8);
        const uint32_t words[2] = {both.x, both.y};  // [output]
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int output = 0; output < 2; output++) {
                const uint32_t bytes = words[output] >> (4 * i) & 0x0f0f0f0fu;
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
