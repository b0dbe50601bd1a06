// Paged attention in bfloat16, in the manner of FlashAttention-2: a warp has 16 queries, walks their
// context in tiles of positions, and keeps maximum, sum and weighted values in registers. Both
// products are mma.m16n8k16. The state starts anew with every part of 256 positions.
#pragma once

#include "attention_state.cuh"

namespace oarlock {

// WIDTH: head_dim, padded with zeros. TILE: positions of a stage; three stages (four, smaller ones, where
// heads are widest) keep 30 KiB or more under way in each block of one warp.
template <int WIDTH_, int TILE_, int STAGES_, int WARPS_>
struct AttentionShape {
    static constexpr int WIDTH = WIDTH_, TILE = TILE_, STAGES = STAGES_, WARPS = WARPS_;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int CHUNKS = WIDTH / 8;           // of 16 bytes, in a row
    static constexpr int ROW_BYTES = WIDTH * 2;
    static constexpr int QUERY_BYTES = 16 * ROW_BYTES; // of a warp
    static constexpr int KEY_BYTES = TILE * ROW_BYTES;
    static constexpr int STAGE_BYTES = 2 * KEY_BYTES;
    static constexpr int TILE_BLOCKS = TILE / static_cast<int>(BLOCK_TOKENS);
    static constexpr int VALUE_TILES = WIDTH / 8;      // n-tiles of the values
    static constexpr int SCORE_TILES = TILE / 8;       // n-tiles of the scores
};

// Byte of a row's chunk of 8 values: rotated by the row, so that the 8 rows of a matrix of ldmatrix
// lie in different banks. The chunk is `even` + `odd`, an even constant and a bit of the lane, so that
// a lane has four distinct offsets and no more.
template <typename Shape>
__host__ __device__ __forceinline__ uint32_t row_offset(uint32_t row, uint32_t even, uint32_t odd) {
    return row * Shape::ROW_BYTES + even / 8 * 128 + ((odd ^ row % 8) ^ even % 8) * 16;
}

// The same for row first + i * STEP, where first < STEP and STEP is a power of two: rows differ by
// constants only.
template <typename Shape, uint32_t STEP>
__host__ __device__ __forceinline__ uint32_t chunk_offset(uint32_t first, uint32_t i,
                                                          uint32_t chunk) {
    const uint32_t rotated = (chunk ^ first % 8) & 7;
    return first * Shape::ROW_BYTES + chunk / 8 * 128 + i * STEP * Shape::ROW_BYTES +
           (rotated ^ i * STEP % 8) * 16;
}

template <typename Shape>
struct Attention {
    const AttentionParams &p;
    const AttentionItem &item;  // stays in memory: registers are scarce
    const uint32_t *table;      // blocks of the sequence
    uint32_t kv_head, group;
    Seen seen;       // what any query of the block sees: nothing else is loaded
    uint32_t lane;
    uint32_t warp;
    uint32_t warp_pairs;  // of this warp
    Seen own[2];          // what the lane's queries (lane / 4, and 8 more) see
    Seen warp_seen;       // what any query of the warp sees
    Seen all_see;         // what every query of the warp sees

    // State of the part, of the lane's two queries; `sum` is the lane's own columns' only.
    float max[2], sum[2];
    float values[Shape::VALUE_TILES][4];

    __device__ __forceinline__ Attention(const AttentionParams &params, const AttentionItem &work)
        : p(params), item(work), table(params.tables + work.first_table_entry) {
        kv_head = blockIdx.y;
        group = p.num_heads / p.num_kv_heads;
        lane = threadIdx.x % 32;
        // A shuffle tells the compiler that all lanes agree, so that branches on it do not diverge.
        warp = Shape::WARPS == 1 ? 0 : __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
        const uint32_t first_pair = warp * TILE_PAIRS;
        warp_pairs = item.num_pairs > first_pair ? min(item.num_pairs - first_pair, TILE_PAIRS) : 0;
        const Seen newest = seen_of(item.num_pairs - 1);
        seen = Seen{seen_of(0).first, newest.last};
        // Queries beyond the last one see what it does; nothing of theirs is written.
        const uint32_t first = min(first_pair, item.num_pairs - 1);
        const uint32_t last = min(first_pair + TILE_PAIRS - 1, item.num_pairs - 1);
        for (int i = 0; i < 2; i++) own[i] = seen_of(min(first + lane / 4 + 8 * i, last));
        warp_seen = Seen{seen_of(first).first, seen_of(last).last};
        all_see = Seen{seen_of(last).first, seen_of(first).last};
    }

    __device__ __forceinline__ PairPlace place(uint32_t pair) const {
        return place_of(pair, group, item.first_row, item.first_head, item.first_position);
    }
    __device__ __forceinline__ Seen seen_of(uint32_t pair) const {
        return seen_from(place(pair).position, p.window);
    }

    // Queries of the whole block: [16 * warps, WIDTH], zeros beyond.
    __device__ __forceinline__ void load_queries(char *to) const {
        const size_t row_width = static_cast<size_t>(p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
        const Bf16 *qkv = static_cast<const Bf16 *>(p.qkv);
        for (uint32_t i = threadIdx.x; i < 16 * Shape::WARPS * Shape::CHUNKS; i += Shape::THREADS) {
            const uint32_t pair = i / Shape::CHUNKS, chunk = i % Shape::CHUNKS;
            const bool is_there = pair < item.num_pairs && chunk * 8 < p.head_dim;
            const PairPlace from = place(is_there ? pair : 0);
            const uint32_t head = kv_head * group + from.head;
            copy_async_16(to + row_offset<Shape>(pair, chunk & ~1u, chunk & 1),
                          qkv + from.row * row_width + head * p.head_dim + (is_there ? chunk * 8 : 0),
                          is_there);
        }
    }

    // The blocks of the tile that starts at `position`.
    __device__ __forceinline__ void load_table(uint32_t (&blocks)[Shape::TILE_BLOCKS],
                                               uint32_t position) const {
#pragma unroll
        for (int i = 0; i < Shape::TILE_BLOCKS; i++) {
            const uint32_t at = min(position, seen.last) / BLOCK_TOKENS + i;
            // Not beyond the table.
            blocks[i] = table[min(at, seen.last / BLOCK_TOKENS)];
        }
    }

    // Keys, then values of one tile: [TILE, WIDTH] each, zeros where nobody sees them. A thread has
    // one chunk of every THREADS / CHUNKS-th token.
    __device__ __forceinline__ void load_tile(char *to, uint32_t start,
                                              const uint32_t (&blocks)[Shape::TILE_BLOCKS]) const {
        const bool is_seen = seen.first <= start && start + Shape::TILE - 1 <= seen.last;
        if (is_seen && p.head_dim == Shape::WIDTH) {
            load_whole_tile<true>(to, start, blocks);
        } else {
            load_whole_tile<false>(to, start, blocks);
        }
    }

    // IS_EXACT: everybody's head is WIDTH wide and every position is seen by someone, so that nothing
    // is asked and all distances are constants.
    template <bool IS_EXACT>
    __device__ __forceinline__ void load_whole_tile(
        char *to, uint32_t start, const uint32_t (&blocks)[Shape::TILE_BLOCKS]) const {
        static_assert(Shape::THREADS % Shape::CHUNKS == 0, "a thread keeps its chunk");
        constexpr uint32_t STEP = Shape::THREADS / Shape::CHUNKS;
        const uint32_t width = IS_EXACT ? Shape::WIDTH : p.head_dim;
        const uint32_t chunk = threadIdx.x % Shape::CHUNKS, first = threadIdx.x / Shape::CHUNKS;
        const bool is_inside = IS_EXACT || chunk * 8 < width;
        const Bf16 *cache = static_cast<const Bf16 *>(p.cache);
#pragma unroll
        for (int b = 0; b < Shape::TILE_BLOCKS; b++) {
            const Bf16 *page = cache + cache_offset(blocks[b], first, kv_head, p.num_kv_heads, width) +
                               (is_inside ? chunk * 8 : 0);
            char *block = to + b * BLOCK_TOKENS * Shape::ROW_BYTES;
#pragma unroll
            for (uint32_t i = 0; i < BLOCK_TOKENS / STEP; i++) {
                const uint32_t token = first + i * STEP;
                const bool is_there =
                    IS_EXACT || (is_inside && seen.has(start + b * BLOCK_TOKENS + token));
                char *key = block + chunk_offset<Shape, STEP>(first, i, chunk);
                const Bf16 *from = page + i * STEP * width;
                copy_async_16(key, from, is_there);
                copy_async_16(key + Shape::KEY_BYTES, from + BLOCK_TOKENS * width, is_there);
            }
        }
    }

    __device__ __forceinline__ void start_part() {
#pragma unroll
        for (int i = 0; i < 2; i++) max[i] = lowest(), sum[i] = 0.0f;
#pragma unroll
        for (int n = 0; n < Shape::VALUE_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) values[n][i] = 0.0f;
        }
    }

    // scores = queries keys^T, over the head in order.
    __device__ __forceinline__ void multiply_keys(float (&scores)[Shape::SCORE_TILES][4],
                                                  const char *queries, const char *keys) const {
#pragma unroll
        for (int n = 0; n < Shape::SCORE_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
        }
#pragma unroll
        for (int k = 0; k < Shape::WIDTH / 16; k++) {
            uint32_t a[4];
            load_matrices(a, queries + row_offset<Shape>(lane % 16, 2 * k, lane / 16));
#pragma unroll
            for (int n = 0; n < Shape::SCORE_TILES; n += 2) {
                uint32_t b[4];
                const uint32_t row = n * 8 + lane / 16 * 8 + lane % 8;
                load_matrices(b, keys + row_offset<Shape>(row, 2 * k, lane / 8 % 2));
                mma_16x8x16(scores[n], a, b[0], b[1]);
                mma_16x8x16(scores[n + 1], a, b[2], b[3]);
            }
        }
    }

    // Products to scores; negative infinity where a query does not see the position.
    __device__ __forceinline__ void finish_scores(float (&scores)[Shape::SCORE_TILES][4],
                                                  uint32_t start) const {
#pragma unroll
        for (int n = 0; n < Shape::SCORE_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] *= p.scale;
        }
        if (p.soft_cap != 0.0f) {
#pragma unroll
            for (int n = 0; n < Shape::SCORE_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) scores[n][i] = capped_score(scores[n][i], p);
            }
        }
        if (all_see.first > start || all_see.last < start + Shape::TILE - 1) {
#pragma unroll
            for (int n = 0; n < Shape::SCORE_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint32_t position = start + n * 8 + lane % 4 * 2 + i % 2;
                    scores[n][i] = own[i / 2].has(position) ? scores[n][i] : lowest();
                }
            }
        }
    }

    // Scores to weights exp(score - max); earlier sums are brought to the new maximum.
    __device__ __forceinline__ void weigh(float (&scores)[Shape::SCORE_TILES][4]) {
        float factors[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float greatest = max[i];
#pragma unroll
            for (int n = 0; n < Shape::SCORE_TILES; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) greatest = greater(greatest, scores[n][2 * i + j]);
            }
            greatest = greater(greatest, __shfl_xor_sync(0xffffffffu, greatest, 1));
            greatest = greater(greatest, __shfl_xor_sync(0xffffffffu, greatest, 2));
            // Nothing seen yet: weights are exp(-inf) = 0 all the same.
            const float base = greatest == lowest() ? 0.0f : greatest;
            factors[i] = exp_below_max(max[i] - base);
            max[i] = greatest;
            float added = 0.0f;
#pragma unroll
            for (int n = 0; n < Shape::SCORE_TILES; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &weight = scores[n][2 * i + j];
                    weight = exp_below_max(weight - base);
                    added += weight;
                }
            }
            sum[i] = fmaf(sum[i], factors[i], added);
        }
        // A factor of 1 changes no bit.
        if (__any_sync(0xffffffffu, factors[0] != 1.0f || factors[1] != 1.0f)) {
#pragma unroll
            for (int n = 0; n < Shape::VALUE_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) values[n][i] *= factors[i / 2];
            }
        }
    }

    // Weights of 16 positions as an A operand.
    __device__ __forceinline__ void pack_weights(uint32_t (&a)[4],
                                                 const float (&weights)[Shape::SCORE_TILES][4],
                                                 int k) const {
        a[0] = pack_bf16(weights[2 * k][0], weights[2 * k][1]);
        a[1] = pack_bf16(weights[2 * k][2], weights[2 * k][3]);
        a[2] = pack_bf16(weights[2 * k + 1][0], weights[2 * k + 1][1]);
        a[3] = pack_bf16(weights[2 * k + 1][2], weights[2 * k + 1][3]);
    }

    // values += weights V, over the positions in order; ONLY_FINITE: NaN and infinity count as 0.
    template <bool ONLY_FINITE>
    __device__ __forceinline__ void multiply_values(const float (&weights)[Shape::SCORE_TILES][4],
                                                    const char *from) {
#pragma unroll
        for (int k = 0; k < Shape::TILE / 16; k++) {
            uint32_t a[4];
            pack_weights(a, weights, k);
#pragma unroll
            for (int n = 0; n < Shape::VALUE_TILES; n += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, from + row_offset<Shape>(k * 16 + lane % 16, n, lane / 16));
                if (ONLY_FINITE) {
#pragma unroll
                    for (int i = 0; i < 4; i++) b[i] &= ~non_finite(b[i]);
                }
                mma_16x8x16(values[n], a, b[0], b[1]);
                mma_16x8x16(values[n + 1], a, b[2], b[3]);
            }
        }
    }

    // All ones in each half of a pair that is a NaN or an infinity.
    static __device__ __forceinline__ uint32_t non_finite(uint32_t pair) {
        return ((pair & 0x7f80u) == 0x7f80u ? 0xffffu : 0u) |
               ((pair & 0x7f800000u) == 0x7f800000u ? 0xffff0000u : 0u);
    }

    // Whether a tile's values hold a NaN or an infinity, which a weight of 0 would not keep out.
    __device__ __forceinline__ bool has_non_finite(const char *from) const {
        bool is_bad = false;
#pragma unroll 4
        for (uint32_t i = lane; i < Shape::KEY_BYTES / 4; i += 32) {
            is_bad = is_bad || non_finite(reinterpret_cast<const uint32_t *>(from)[i]) != 0;
        }
        return __any_sync(0xffffffffu, is_bad);
    }

    // Adds what `multiply_values<true>` left out, for the queries that see it.
    __device__ __forceinline__ void add_non_finite(const float (&weights)[Shape::SCORE_TILES][4],
                                                   const char *from, uint32_t start) {
#pragma unroll
        for (int tile = 0; tile < Shape::SCORE_TILES; tile++) {
#pragma unroll 1
            for (uint32_t i = 0; i < 8; i++) {
                const uint32_t token = tile * 8 + i, source = lane / 4 * 4 + i / 2;
                float own_weights[2];
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const float weight = i % 2 == 0 ? weights[tile][2 * j] : weights[tile][2 * j + 1];
                    own_weights[j] = __shfl_sync(0xffffffffu, weight, source);
                    own_weights[j] = low_bf16(pack_bf16(own_weights[j], 0.0f));
                }
#pragma unroll
                for (int n = 0; n < Shape::VALUE_TILES; n++) {
                    const char *chunk = from + row_offset<Shape>(token, n & ~1, n & 1);
                    const uint32_t pair = reinterpret_cast<const uint32_t *>(chunk)[lane % 4];
                    const uint32_t bad = non_finite(pair);
                    if (bad == 0) continue;
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const bool is_bad = (j % 2 == 0 ? bad & 0xffffu : bad >> 16) != 0;
                        const float value = j % 2 == 0 ? low_bf16(pair) : high_bf16(pair);
                        if (is_bad && own[j / 2].has(start + token)) {
                            values[n][j] = fmaf(own_weights[j / 2], value, values[n][j]);
                        }
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void add_tile(const char *queries, const char *stage,
                                             uint32_t start) {
        const uint32_t end = start + Shape::TILE;
        if (warp_pairs == 0 || !warp_seen.meets(start, end)) return;
        float scores[Shape::SCORE_TILES][4];
        multiply_keys(scores, queries, stage);
        finish_scores(scores, start);
        weigh(scores);
        const char *from = stage + Shape::KEY_BYTES;
        // Loaded, but not for everyone.
        const bool is_partial = greater_of(start, seen.first) < all_see.first ||
                                min(end - 1, seen.last) > all_see.last;
        if (is_partial && has_non_finite(from)) {
            multiply_values<true>(scores, from);
            add_non_finite(scores, from, start);
        } else {
            multiply_values<false>(scores, from);
        }
    }

    static __device__ __forceinline__ uint32_t greater_of(uint32_t a, uint32_t b) {
        return a > b ? a : b;
    }

    // The sums over all columns of the part.
    __device__ __forceinline__ void finish_part() {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
        }
    }

    // The part's state to its slot of the workspace.
    __device__ __forceinline__ void write_part(uint32_t part) const {
        if (warp_pairs == 0 || !sees_part(warp_seen, part)) return;
        const uint32_t slot =
            item.first_slot + (part - item.first_part) * Shape::WARPS + warp;
        float *to = p.workspace + slot_offset(slot, kv_head, p.num_kv_heads, p.head_dim);
        float *states = to + TILE_PAIRS * p.head_dim;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t query = lane / 4 + 8 * i;
            if (query >= warp_pairs) continue;
#pragma unroll
            for (int n = 0; n < Shape::VALUE_TILES; n++) {
                const uint32_t at = n * 8 + lane % 4 * 2;
                if (at < p.head_dim) {
                    *reinterpret_cast<float2 *>(to + query * p.head_dim + at) =
                        make_float2(values[n][2 * i], values[n][2 * i + 1]);
                }
            }
            if (lane % 4 == 0) {
                *reinterpret_cast<float2 *>(states + 2 * query) = make_float2(max[i], sum[i]);
            }
        }
    }
};

// The state of all parts so far: values in shared memory, [VALUE_TILES][32 lanes][4] of each warp.
template <typename Shape>
struct Joined {
    float *values;  // of this warp
    float max[2], sum[2];
    bool is_empty[2];

    __device__ __forceinline__ Joined(float *shared, uint32_t warp)
        : values(shared + warp * (Shape::VALUE_TILES * 128)) {
#pragma unroll
        for (int i = 0; i < 2; i++) max[i] = lowest(), sum[i] = 0.0f, is_empty[i] = true;
    }

    __device__ __forceinline__ void add(const Attention<Shape> &work, uint32_t part) {
        bool sees[2];
        JoinFactors factors[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sees[i] = sees_part(work.own[i], part);
            factors[i] = JoinFactors{1.0f, 0.0f};
            if (sees[i]) {
                factors[i] = join_part(max[i], sum[i], work.max[i], work.sum[i], is_empty[i]);
            }
        }
#pragma unroll
        for (int n = 0; n < Shape::VALUE_TILES; n++) {
            float *slot = values + (n * 32 + work.lane) * 4;
            float joined[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (!(is_empty[0] && is_empty[1])) load_shared_4(joined, slot);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float next =
                    join_value(joined[j], work.values[n][j], factors[j / 2], is_empty[j / 2]);
                joined[j] = sees[j / 2] ? next : joined[j];
            }
            store_shared_4(slot, joined);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) is_empty[i] = is_empty[i] && !sees[i];
    }

    // Divides and writes, 8 values at a time.
    __device__ __forceinline__ void write(const Attention<Shape> &work) {
        const AttentionParams &p = work.p;
        __syncwarp();
        const uint32_t chunks = p.head_dim / 8;
        const float inverse[2] = {reciprocal(sum[0]), reciprocal(sum[1])};
        for (uint32_t base = 0; base < work.warp_pairs * chunks; base += 32) {
            const uint32_t i = min(base + work.lane, work.warp_pairs * chunks - 1);
            const uint32_t query = i / chunks, n = i - query * chunks;
            const float low = __shfl_sync(0xffffffffu, inverse[0], query % 8 * 4);
            const float high = __shfl_sync(0xffffffffu, inverse[1], query % 8 * 4);
            const float factor = query < 8 ? low : high;
            uint32_t packed[4];
#pragma unroll
            for (int q = 0; q < 4; q++) {
                const float2 pair = *reinterpret_cast<const float2 *>(
                    values + (n * 32 + query % 8 * 4 + q) * 4 + query / 8 * 2);
                packed[q] = pack_bf16(pair.x * factor, pair.y * factor);
            }
            const PairPlace place = work.place(work.warp * TILE_PAIRS + query);
            const size_t row = static_cast<size_t>(place.row) * p.num_heads +
                               work.kv_head * work.group + place.head;
            if (base + work.lane < work.warp_pairs * chunks) {
                *reinterpret_cast<uint4 *>(static_cast<Bf16 *>(p.out) + row * p.head_dim + n * 8) =
                    make_uint4(packed[0], packed[1], packed[2], packed[3]);
            }
        }
    }
};

// One block of threads per item and KV head.
template <typename Shape>
__device__ __forceinline__ void attention(const AttentionParams &p) {
    extern __shared__ uint4 dynamic_shared[];
    if (blockIdx.x >= *p.num_items) return;
    char *queries = reinterpret_cast<char *>(dynamic_shared);
    char *stages = queries + Shape::WARPS * Shape::QUERY_BYTES;
    Attention<Shape> work(p, p.items[blockIdx.x]);
    Joined<Shape> joined(reinterpret_cast<float *>(stages + Shape::STAGES * Shape::STAGE_BYTES),
                         work.warp);
    const AttentionItem &item = work.item;
    const char *own_queries = queries + work.warp * Shape::QUERY_BYTES;

    // From the first to the last tile that anyone sees, in the item's parts.
    const uint32_t first = max(item.first_part * PART_POSITIONS, work.seen.first);
    const uint32_t end = min(item.end_part * PART_POSITIONS, work.seen.last + 1);
    uint32_t next = first / Shape::TILE * Shape::TILE, load_slot = 0;
    uint32_t blocks[Shape::TILE_BLOCKS];
    work.load_table(blocks, next);
    const auto load_next = [&] {
        if (next < end) {
            work.load_tile(stages + load_slot * Shape::STAGE_BYTES, next, blocks);
            load_slot = load_slot + 1 == Shape::STAGES ? 0 : load_slot + 1;
            next += Shape::TILE;
            // Early, so that the copies of the next tile need not wait for it.
            work.load_table(blocks, next);
        }
        // Empty groups keep the count of groups that the waits rely on.
        copy_async_commit();
    };
    uint32_t start = next, slot = 0;
    work.load_queries(queries);
    for (int i = 0; i + 1 < Shape::STAGES; i++) load_next();

    for (uint32_t part = start / PART_POSITIONS; start < end; part++) {
        const uint32_t part_end = min((part + 1) * PART_POSITIONS, end);
        work.start_part();
#pragma unroll 1
        for (; start < part_end; start += Shape::TILE) {
            copy_async_wait<Shape::STAGES - 2>();
            // The stage has come for all threads, and all are done with the one that is loaded next.
            __syncthreads();
            load_next();
            work.add_tile(own_queries, stages + slot * Shape::STAGE_BYTES, start);
            slot = slot + 1 == Shape::STAGES ? 0 : slot + 1;
        }
        work.finish_part();
        if (item.first_slot == WHOLE) {
            joined.add(work, part);
        } else {
            work.write_part(part);
        }
    }
    if (item.first_slot == WHOLE) joined.write(work);
}

}  // namespace oarlock
