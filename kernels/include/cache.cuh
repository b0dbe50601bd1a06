// The paged KV cache of one layer: [block][kv head][keys, values][16 tokens][head_dim].
#pragma once

#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

// Where a token's keys (values: one half block on) of one head start, in values of T.
__host__ __device__ __forceinline__ size_t cache_offset(uint32_t block, uint32_t position,
                                                        uint32_t kv_head, uint32_t num_kv_heads,
                                                        uint32_t head_dim) {
    const size_t page = static_cast<size_t>(block) * num_kv_heads + kv_head;
    return (page * 2 * BLOCK_TOKENS + position % BLOCK_TOKENS) * head_dim;
}

// Four pairs of one head, rotated: `low` and `high` are what a pair's cosine and sine apply to.
__device__ __forceinline__ void rotate_4(float (&low)[4], float (&high)[4], const float *cosines,
                                         const float *sines) {
    float cosine[4], sine[4];
    load_4(cosine, cosines);
    load_4(sine, sines);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float a = low[i], b = high[i];
        low[i] = fmaf(a, cosine[i], -(b * sine[i]));
        high[i] = fmaf(b, cosine[i], a * sine[i]);
    }
}

// Loads, rotates and stores four pairs from `pair` on; `copy` (if any) gets them, too.
template <typename T>
__device__ __forceinline__ void rotate_pairs(T *head, T *copy, uint32_t pair, uint32_t half,
                                             const float *cosines, const float *sines,
                                             bool interleaved) {
    const uint32_t first = interleaved ? 2 * pair : pair;
    const uint32_t second = interleaved ? 2 * pair + 4 : pair + half;
    float a[4], b[4];
    load_4(a, head + first);
    load_4(b, head + second);
    float low[4], high[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        // Interleaved, the eight values are pairs in turn.
        const int even = 2 * (i % 2);
        low[i] = interleaved ? (i < 2 ? a[even] : b[even]) : a[i];
        high[i] = interleaved ? (i < 2 ? a[even + 1] : b[even + 1]) : b[i];
    }
    rotate_4(low, high, cosines + pair, sines + pair);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int from = i / 2;
        a[i] = interleaved ? (i % 2 == 0 ? low[from] : high[from]) : low[i];
        b[i] = interleaved ? (i % 2 == 0 ? low[from + 2] : high[from + 2]) : high[i];
    }
    store_4(head + first, a);
    store_4(head + second, b);
    if (copy != nullptr) {
        store_4(copy + first, a);
        store_4(copy + second, b);
    }
}

// Copies the elements from `first` on of each key (value) head of one token, 16 bytes at a time, from `heads`
// [num_kv_heads, head_dim] to where the cache has them, `to` being the place of the first head.
template <typename T>
__device__ __forceinline__ void copy_heads(T *to, const T *heads, uint32_t first,
                                           const RotaryKvWriteParams &p) {
    constexpr uint32_t CHUNK = 16 / sizeof(T);
    const uint32_t chunks = (p.head_dim - first) / CHUNK;
    for (uint32_t i = threadIdx.x; i < p.num_kv_heads * chunks; i += blockDim.x) {
        const uint32_t head = i / chunks, at = first + i % chunks * CHUNK;
        const size_t page = static_cast<size_t>(head) * 2 * BLOCK_TOKENS * p.head_dim;
        *reinterpret_cast<uint4 *>(to + page + at) =
            *reinterpret_cast<const uint4 *>(heads + head * p.head_dim + at);
    }
}

// One block of threads per row.
template <typename T>
__device__ __forceinline__ void rotary_kv_write(const RotaryKvWriteParams &p) {
    const uint32_t row = blockIdx.x;
    if (row >= *p.num_rows) return;
    const uint32_t position = p.positions[row];
    const uint32_t block = p.tables[p.first_table_entry[row] + position / BLOCK_TOKENS];
    const uint32_t half = p.half;
    const size_t row_width = static_cast<size_t>(p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
    T *qkv = static_cast<T *>(p.qkv) + row * row_width;
    T *cache = static_cast<T *>(p.cache);
    const float *cosines = p.cosines + static_cast<size_t>(position) * half;
    const float *sines = p.sines + static_cast<size_t>(position) * half;
    const uint32_t per_head = half / 4;
    const uint32_t rotated = (p.num_heads + p.num_kv_heads) * per_head;
    for (uint32_t i = threadIdx.x; i < rotated; i += blockDim.x) {
        const uint32_t head = i / per_head;
        T *keys = nullptr;
        if (head >= p.num_heads) {
            keys = cache + cache_offset(block, position, head - p.num_heads, p.num_kv_heads,
                                        p.head_dim);
        }
        rotate_pairs(qkv + head * p.head_dim, keys, i % per_head * 4, half, cosines, sines,
                     p.interleaved != 0);
    }
    // What is not rotated. head_dim is a multiple of 16, 2 half one of 8: whole chunks of 16 bytes.
    const T *keys = qkv + static_cast<size_t>(p.num_heads) * p.head_dim;
    const T *values = keys + static_cast<size_t>(p.num_kv_heads) * p.head_dim;
    T *page = cache + cache_offset(block, position, 0, p.num_kv_heads, p.head_dim);
    copy_heads(page, keys, 2 * half, p);
    copy_heads(page + BLOCK_TOKENS * p.head_dim, values, 0, p);
}

// Block y copies pair x of one layer.
__device__ __forceinline__ void copy_block_pairs(const CopyBlocksParams &p) {
    if (blockIdx.x >= *p.num_pairs) return;
    char *layer = static_cast<char *>(p.cache) + blockIdx.y * p.layer_bytes;
    const uint4 *from =
        reinterpret_cast<const uint4 *>(layer + p.pairs[2 * blockIdx.x] * p.block_bytes);
    uint4 *to = reinterpret_cast<uint4 *>(layer + p.pairs[2 * blockIdx.x + 1] * p.block_bytes);
    for (uint64_t i = threadIdx.x; i < p.block_bytes / 16; i += blockDim.x) {
        to[i] = from[i];
    }
}

}  // namespace oarlock
