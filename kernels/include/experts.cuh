// Linear layers of experts: a block of threads multiplies some rows of one expert by 32 or 64 of its outputs,
// as `linear` does: each segment's sum has the same bits. Segments are not joined here but written one by
// one, since a row's experts are added up inside of segments.
#pragma once

#include "linear.cuh"
#include "linear_f32.cuh"
#include "numbers.cuh"
#include "params.cuh"

namespace oarlock {

// The tile of this block; an empty one where there is nothing to do.
__device__ __forceinline__ ExpertTile expert_tile(const ExpertLinearParams &p) {
    if (blockIdx.x >= *p.num_tiles) return ExpertTile{};
    const uint4 tile = reinterpret_cast<const uint4 *>(p.tiles)[blockIdx.x];
    return ExpertTile{tile.x, tile.y, tile.z, tile.w};
}

__device__ __forceinline__ LinearParams linear_of_expert(const ExpertLinearParams &p,
                                                         uint32_t expert) {
    LinearParams linear = p.linear;
    linear.weight = static_cast<const char *>(linear.weight) + expert * p.weight_bytes;
    linear.scales = static_cast<const char *>(linear.scales) + expert * p.scale_bytes;
    linear.sub_scales = static_cast<const char *>(linear.sub_scales) + expert * p.sub_scale_bytes;
    linear.bias = nullptr;
    return linear;
}

// Where a segment's sums go. Outputs in the working type have one segment.
__device__ __forceinline__ float *segment_out(const ExpertLinearParams &p, uint32_t segment) {
    return static_cast<float *>(p.linear.out) + (segment - p.first_segment) * p.segment_values;
}

template <typename Weights, typename Tile>
__device__ __forceinline__ void experts(const ExpertLinearParams &p) {
    using Loader = LinearLoader<Weights, Tile, ListedRows<Tile>>;
    extern __shared__ uint4 dynamic_shared[];
    const ExpertTile tile = expert_tile(p);
    if (tile.count == 0) return;
    const LinearParams linear = linear_of_expert(p, tile.expert);
    Loader loader(linear, ListedRows<Tile>(linear, p.rows, tile.first, tile.count),
                  p.first_segment);
    float sums[2][Tile::WARP_M][Tile::WARP_N][4] = {};
    sum_segments<Tile>(
        sums, loader, reinterpret_cast<char *>(dynamic_shared), p.end_segment,
        [&](uint32_t segment) {
            const WarpPlace<Tile> warp;
            store<Tile>(sums[0], linear, segment_out(p, segment), warp.first_output(),
                        tile.first + warp.first_row(), tile.first + tile.count);
        });
}

__device__ __forceinline__ void experts_float(const ExpertLinearParams &p) {
    __shared__ F32Squares squares;
    const ExpertTile tile = expert_tile(p);
    if (tile.count == 0) return;
    const LinearParams linear = linear_of_expert(p, tile.expert);
    const F32ListedRows rows = {p.rows, tile.first, tile.count};
    for (uint32_t segment = p.first_segment; segment < p.end_segment; segment++) {
        float sums[2][2];
        sum_segment(sums, squares, linear, rows, segment);
        store_square(sums, linear, segment_out(p, segment), tile.first, tile.first + tile.count);
    }
}

}  // namespace oarlock
