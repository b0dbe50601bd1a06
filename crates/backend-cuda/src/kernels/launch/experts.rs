//! Launches of routing and experts, and how their work is cut.

use super::{DeviceShape, LINEAR_TILES, Launch, LinearFormat, linear_entry, plain};

/// Outputs of a block of threads of `expert_combine_f32`.
const COMBINE_OUTPUTS: u32 = 128;

/// How the rows of a step are cut into tiles, each of rows of one expert. Layers' gate and up and their down
/// projection share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertTiling {
    /// Rows with one of their experts each.
    pub assignments: u32,
    /// Rows of a tile at most: 8, 32 or 64 as the entries have it; 32 in float32.
    pub tile_rows: u32,
    /// Tiles at most, whatever experts the rows take.
    pub tiles: u32,
}

impl ExpertTiling {
    /// The tiles for `rows` rows of layers with these formats: as large as the rows of an expert are on
    /// average, so that most experts' weights are read once, and few products are of padding. All tiles give
    /// the same bits.
    #[must_use]
    pub fn choose(
        device: DeviceShape,
        formats: &[LinearFormat],
        rows: u32,
        (top_k, num_experts): (u32, u32),
    ) -> Self {
        let assignments = rows * top_k;
        let of_one = assignments.div_ceil(num_experts);
        let has_many = || {
            formats
                .iter()
                .all(|&format| experts(format, 64, 1, 1).shared_bytes <= device.max_shared_bytes)
        };
        let tile_rows = match of_one {
            _ if formats.contains(&LinearFormat::F32) => 32,
            0..=8 => 8,
            33.. if has_many() => 64,
            _ => 32,
        };
        Self::with_rows(assignments, num_experts, tile_rows)
    }

    /// The tiles of this height for so many assignments: one for each assignment, or for each whole tile of
    /// them and for each expert, as `expert_plan` places them.
    #[must_use]
    pub fn with_rows(assignments: u32, num_experts: u32, tile_rows: u32) -> Self {
        let tiles = assignments.min(assignments / tile_rows + num_experts);
        Self { assignments, tile_rows, tiles }
    }
}

/// `route_f32`: a warp for each row.
#[must_use]
pub fn route(rows: u32) -> Launch {
    plain("route_f32", [rows.div_ceil(4), 1], 128)
}

/// `expert_plan`: a block for each expert, none where there is no row.
#[must_use]
pub fn expert_plan(rows: u32, num_experts: u32) -> Launch {
    plain("expert_plan", [if rows == 0 { 0 } else { num_experts }, 1], 256)
}

/// `experts_*`, in tiles of so many rows.
#[must_use]
pub fn experts(format: LinearFormat, tile_rows: u32, tiles: u32, outputs: u32) -> Launch {
    if format == LinearFormat::F32 {
        let grid = [tiles, outputs.div_ceil(32), 1];
        return Launch { entry: "experts_f32", grid, threads: 256, shared_bytes: 0 };
    }
    let tile = LINEAR_TILES.into_iter().find(|tile| tile.rows == tile_rows);
    let tile = tile.unwrap_or_else(|| panic!("no entry has tiles of {tile_rows} rows"));
    let entries = match format {
        LinearFormat::Bf16 | LinearFormat::F32 => {
            ["experts_bf16_n8", "experts_bf16_n32", "experts_bf16_n64"]
        }
        LinearFormat::Q8_0 => {
            ["experts_q8_0_bf16_n8", "experts_q8_0_bf16_n32", "experts_q8_0_bf16_n64"]
        }
        LinearFormat::Q4K => {
            ["experts_q4_k_bf16_n8", "experts_q4_k_bf16_n32", "experts_q4_k_bf16_n64"]
        }
    };
    // Segments are not joined here.
    linear_entry(tile, entries, format, [tiles, outputs.div_ceil(tile.outputs)], 1)
}

/// `expert_combine_f32`, for a range of so many segments: a warp for each.
#[must_use]
pub fn expert_combine(rows: u32, hidden: u32, segments: u32) -> Launch {
    plain("expert_combine_f32", [rows, hidden.div_ceil(COMBINE_OUTPUTS)], 32 * segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_suit_the_rows_of_an_expert() {
        let a100 = DeviceShape::default();
        let geforce = DeviceShape { multiprocessors: 82, max_shared_bytes: 99 << 10 };
        let choose = |device, formats: &[LinearFormat], rows| {
            let tiling = ExpertTiling::choose(device, formats, rows, (8, 128));
            (tiling.tile_rows, tiling.tiles)
        };
        let (bf16, q4_k) = (LinearFormat::Bf16, LinearFormat::Q4K);
        assert_eq!(choose(a100, &[bf16], 1), (8, 8));
        assert_eq!(choose(a100, &[q4_k, bf16], 128), (8, 64 * 2 + 128));
        assert_eq!(choose(a100, &[q4_k], 256), (32, 64 + 128));
        assert_eq!(choose(a100, &[q4_k, bf16], 2048), (64, 256 + 128));
        assert_eq!(choose(geforce, &[q4_k], 2048), (64, 256 + 128));
        assert_eq!(choose(geforce, &[q4_k, bf16], 2048), (32, 512 + 128));
        assert_eq!(choose(a100, &[LinearFormat::F32], 1), (32, 8));
    }
}
