//! Launch geometry of every entry. `rows` is as many as the step may have: blocks of threads beyond
//! the number in device memory return at once.

use oarlock_backend::WeightKind;

use super::params::TILE_OUTPUTS;

mod experts;

pub use experts::{ExpertTiling, expert_combine, expert_plan, experts, route};

/// The type in which activations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkType {
    /// bfloat16.
    Bf16,
    /// float32: for exact tests.
    F32,
}

impl WorkType {
    /// Bytes of one value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// What a linear layer that is stored as `kind` takes the memory of once it is packed.
    #[must_use]
    pub fn packed_kind(self, kind: WeightKind) -> WeightKind {
        match (self, kind) {
            (Self::F32, _) => WeightKind::F32,
            (Self::Bf16, WeightKind::Q8_0 | WeightKind::Q4K) => kind,
            (Self::Bf16, _) => WeightKind::Bf16,
        }
    }

    fn pick(self, bf16: &'static str, f32: &'static str) -> &'static str {
        match self {
            Self::Bf16 => bf16,
            Self::F32 => f32,
        }
    }
}

/// How a linear layer's weights are packed; the activations' type follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinearFormat {
    /// float32 weights and activations.
    F32,
    /// bfloat16 weights and activations.
    Bf16,
    /// Q8_0 weights, bfloat16 activations.
    Q8_0,
    /// Q4_K weights, bfloat16 activations.
    Q4K,
}

/// One launch: the entry's name, grid, threads of a block (one dimension) and dynamic shared memory.
/// A driver must be asked for more than 48 KiB of it (`MAX_DYNAMIC_SHARED_SIZE_BYTES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the entry.
    pub entry: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

fn plain(entry: &'static str, grid: [u32; 2], threads: u32) -> Launch {
    Launch { entry, grid: [grid[0], grid[1], 1], threads, shared_bytes: 0 }
}

/// `embed_*`.
#[must_use]
pub fn embed(work: WorkType, rows: u32) -> Launch {
    plain(work.pick("embed_bf16", "embed_f32"), [rows, 1], 256)
}

/// `add_rms_norm_*`: the row is kept in shared memory.
#[must_use]
pub fn add_rms_norm(work: WorkType, rows: u32, width: u32) -> Launch {
    let entry = work.pick("add_rms_norm_bf16", "add_rms_norm_f32");
    Launch { shared_bytes: width * 4, ..plain(entry, [rows, 1], 256) }
}

/// `rms_norm_f32`.
#[must_use]
pub fn rms_norm(rows: u32, width: u32) -> Launch {
    Launch { shared_bytes: width * 4, ..plain("rms_norm_f32", [rows, 1], 256) }
}

/// `head_rms_norm_*`: a warp for each head.
#[must_use]
pub fn head_rms_norm(work: WorkType, rows: u32, num_heads: u32, num_kv_heads: u32) -> Launch {
    let entry = work.pick("head_rms_norm_bf16", "head_rms_norm_f32");
    plain(entry, [rows, (num_heads + num_kv_heads).div_ceil(8)], 256)
}

/// `soft_cap_f32`.
#[must_use]
pub fn soft_cap(rows: u32, width: u32) -> Launch {
    plain("soft_cap_f32", [rows, width.div_ceil(1024)], 256)
}

/// `add_bias_f32`.
#[must_use]
pub fn add_bias(rows: u32, width: u32) -> Launch {
    plain("add_bias_f32", [rows, width.div_ceil(1024)], 256)
}

/// `gather_*`.
#[must_use]
pub fn gather(work: WorkType, rows: u32) -> Launch {
    plain(work.pick("gather_bf16", "gather_f32"), [rows, 1], 256)
}

/// `rotary_kv_write_*`.
#[must_use]
pub fn rotary_kv_write(work: WorkType, rows: u32) -> Launch {
    plain(work.pick("rotary_kv_write_bf16", "rotary_kv_write_f32"), [rows, 1], 256)
}

/// `gated_activation_*`.
#[must_use]
pub fn gated_activation(work: WorkType, rows: u32, width: u32) -> Launch {
    let entry = work.pick("gated_activation_bf16", "gated_activation_f32");
    // Rows are many, and only the first dimension has no bound.
    plain(entry, [rows, width.div_ceil(2048)], 256)
}

/// `attention_*` over narrow items (at most 16 pairs each).
#[must_use]
pub fn attention_narrow(work: WorkType, items: u32, num_kv_heads: u32, head_dim: u32) -> Launch {
    attention(work, 1, [items, num_kv_heads], head_dim)
}

/// `attention_bf16_*_w4` over wide items (at most 64 pairs each).
#[must_use]
pub fn attention_wide(items: u32, num_kv_heads: u32, head_dim: u32) -> Launch {
    attention(WorkType::Bf16, 4, [items, num_kv_heads], head_dim)
}

/// `attention_join_*`.
#[must_use]
pub fn attention_join(work: WorkType, joins: u32, num_kv_heads: u32) -> Launch {
    let entry = work.pick("attention_join_bf16", "attention_join_f32");
    plain(entry, [joins, num_kv_heads], 256)
}

/// `copy_blocks`.
#[must_use]
pub fn copy_blocks(pairs: u32, layers: u32) -> Launch {
    plain("copy_blocks", [pairs, layers], 256)
}

/// `logit_stats_f32`: half a warp for each segment of 1,024 logits.
#[must_use]
pub fn logit_stats(rows: u32, vocabulary: u32) -> Launch {
    plain("logit_stats_f32", [vocabulary.div_ceil(8 * 1024), rows], 128)
}

/// `sample_f32`.
#[must_use]
pub fn sample(rows: u32) -> Launch {
    plain("sample_f32", [rows, 1], 512)
}

/// A tile of the bfloat16 linear kernels.
#[derive(Clone, Copy, Debug)]
struct LinearTile {
    rows: u32,
    outputs: u32,
    threads: u32,
    stages: u32,
    suffix: usize,
}

/// As in `kernels/include/linear.cuh`: the fewest rows first.
const LINEAR_TILES: [LinearTile; 3] = [
    LinearTile { rows: 8, outputs: 32, threads: 128, stages: 6, suffix: 0 },
    LinearTile { rows: 32, outputs: 32, threads: 128, stages: 4, suffix: 1 },
    LinearTile { rows: 64, outputs: 64, threads: 256, stages: 3, suffix: 2 },
];

/// What the choice of a tile looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceShape {
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that a block may be given (`MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`).
    pub max_shared_bytes: u32,
}

impl Default for DeviceShape {
    /// An A100.
    fn default() -> Self {
        Self { multiprocessors: 108, max_shared_bytes: 163 << 10 }
    }
}

impl DeviceShape {
    /// Whether `attention_bf16_*_w4` fits; a plan for a device where it does not has no wide items.
    #[must_use]
    pub fn has_wide_attention(&self, head_dim: u32) -> bool {
        attention_wide(1, 1, head_dim).shared_bytes <= self.max_shared_bytes
    }
}

/// `linear_*` on an A100; see [`linear_on`].
#[must_use]
pub fn linear(format: LinearFormat, rows: u32, outputs: u32, segments: u32) -> Launch {
    linear_on(DeviceShape::default(), format, rows, outputs, segments)
}

/// `linear_*`, in the tile that suits the number of rows and the device: the largest that fits and
/// has a block for every multiprocessor. All tiles give the same bits.
#[must_use]
pub fn linear_on(
    device: DeviceShape,
    format: LinearFormat,
    rows: u32,
    outputs: u32,
    segments: u32,
) -> Launch {
    if format == LinearFormat::F32 {
        let grid = [rows.div_ceil(32), outputs.div_ceil(32), 1];
        return Launch { entry: "linear_f32", grid, threads: 256, shared_bytes: 0 };
    }
    let [few, some, many] =
        LINEAR_TILES.map(|tile| linear_tile(tile, format, rows, outputs, segments));
    let is_filled = many.grid[0] * many.grid[1] >= device.multiprocessors;
    match rows {
        0..=8 => few,
        _ if rows > 32 && is_filled && many.shared_bytes <= device.max_shared_bytes => many,
        _ => some,
    }
}

fn linear_tile(
    tile: LinearTile,
    format: LinearFormat,
    rows: u32,
    outputs: u32,
    segments: u32,
) -> Launch {
    let entries = match format {
        LinearFormat::Bf16 | LinearFormat::F32 => {
            ["linear_bf16_n8", "linear_bf16_n32", "linear_bf16_n64"]
        }
        LinearFormat::Q8_0 => {
            ["linear_q8_0_bf16_n8", "linear_q8_0_bf16_n32", "linear_q8_0_bf16_n64"]
        }
        LinearFormat::Q4K => {
            ["linear_q4_k_bf16_n8", "linear_q4_k_bf16_n32", "linear_q4_k_bf16_n64"]
        }
    };
    let grid = [rows.div_ceil(tile.rows), outputs.div_ceil(tile.outputs)];
    linear_entry(tile, entries, format, grid, segments)
}

/// One of the entries for the three tiles, where `segments` are joined.
fn linear_entry(
    tile: LinearTile,
    entries: [&'static str; 3],
    format: LinearFormat,
    grid: [u32; 2],
    segments: u32,
) -> Launch {
    let pair_bytes = match format {
        LinearFormat::Bf16 | LinearFormat::F32 => 2 * 2048,
        LinearFormat::Q8_0 => 2 * (1024 + 64),
        LinearFormat::Q4K => (2 * (512 + 48 + 64_u32)).next_multiple_of(128),
    };
    // Per stage: two steps (one of each chain) of every tile of outputs, and their activations.
    let stage = tile.outputs / TILE_OUTPUTS as u32 * pair_bytes + tile.rows * 256;
    // One sum for the other chain, and one for each level of the tree of segments.
    let sums = tile.outputs * tile.rows * 4 * (1 + segments.ilog2());
    let shared_bytes = tile.stages * stage + sums;
    Launch { shared_bytes, ..plain(entries[tile.suffix], grid, tile.threads) }
}

fn attention(work: WorkType, warps: u32, grid: [u32; 2], head_dim: u32) -> Launch {
    let grid = [grid[0], grid[1], 1];
    if work == WorkType::F32 {
        return Launch { entry: "attention_f32", grid, threads: 128, shared_bytes: 0 };
    }
    // As in `kernels/src/attention.cu`: padded width, positions of a stage, stages.
    let (padded, tile, num_stages, entries) = match head_dim {
        0..=64 => (64, 64, 3, ["attention_bf16_d64_w1", "attention_bf16_d64_w4"]),
        65..=128 => (128, 32, 3, ["attention_bf16_d128_w1", "attention_bf16_d128_w4"]),
        _ => (256, 16, 4, ["attention_bf16_d256_w1", "attention_bf16_d256_w4"]),
    };
    // Queries, stages of keys and values, and the joined state of earlier parts in float32.
    let queries = warps * 16 * padded * 2;
    let stages = num_stages * 2 * tile * padded * 2;
    let joined = warps * 16 * padded * 4;
    let entry = entries[usize::from(warps > 1)];
    Launch { entry, grid, threads: 32 * warps, shared_bytes: queries + stages + joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_suit_rows_and_devices() {
        let entry = |device, rows, outputs, segments| {
            linear_on(device, LinearFormat::Bf16, rows, outputs, segments).entry
        };
        let a100 = DeviceShape::default();
        assert_eq!(entry(a100, 1, 4096, 1), "linear_bf16_n8");
        assert_eq!(entry(a100, 9, 4096, 1), "linear_bf16_n32");
        assert_eq!(entry(a100, 2048, 4096, 8), "linear_bf16_n64");
        // 32 blocks would leave most of the device idle.
        assert_eq!(entry(a100, 128, 1024, 1), "linear_bf16_n32");
        let geforce = DeviceShape { multiprocessors: 82, max_shared_bytes: 99 << 10 };
        assert_eq!(entry(geforce, 2048, 4096, 8), "linear_bf16_n32");
        assert!(!geforce.has_wide_attention(256) && geforce.has_wide_attention(128));
        for launch in [
            linear_on(geforce, LinearFormat::Bf16, 2048, 4096, 8),
            linear_on(geforce, LinearFormat::Bf16, 1, 4096, 8),
            attention_narrow(WorkType::Bf16, 1, 1, 256),
            attention_wide(1, 1, 128),
        ] {
            assert!(launch.shared_bytes <= geforce.max_shared_bytes, "{launch:?}");
        }
    }
}
