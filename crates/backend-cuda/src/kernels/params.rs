//! Mirrors of the structs in `kernels/include/params.cuh`; the comments on shapes are there.

#![expect(missing_docs, reason = "every field is described in params.cuh, once")]

use bytemuck::{Pod, Zeroable};
use oarlock_backend::Activation;

/// Address in a device's memory; 0 is null.
pub type DevicePointer = u64;

/// Positions of one part of a context.
pub const PART_POSITIONS: u32 = 256;
/// Query rows of one warp of attention.
pub const TILE_PAIRS: u32 = 16;
/// Columns of one step of the bfloat16 linear kernels.
pub const STEP_COLUMNS: usize = 64;
/// Outputs of one tile of packed weights.
pub const TILE_OUTPUTS: usize = 16;
/// In [`AttentionItem::first_slot`]: all parts are joined by one CTA. In [`SegmentStats::best`]: none.
pub const WHOLE: u32 = u32::MAX;

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)* })*) => {
        $($(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        pub struct $name {
            $(pub $field: $kind,)*
        })*

        /// Names and sizes, for the test against the compiled structs.
        pub const PARAM_SIZES: &[(&str, usize)] = &[$((stringify!($name), size_of::<$name>()),)*];
    };
}

params! {
    /// Of `embed_*`.
    EmbedParams {
        out: DevicePointer,
        table: DevicePointer,
        tokens: DevicePointer,
        num_rows: DevicePointer,
        width: u32,
        first_token: u32,
        table_rows: u32,
        scale: f32,
    }
    /// Of `add_rms_norm_*`.
    AddRmsNormParams {
        out: DevicePointer,
        residual: DevicePointer,
        delta: DevicePointer,
        weight: DevicePointer,
        num_rows: DevicePointer,
        width: u32,
        eps: f32,
    }
    /// Of `rms_norm_f32`.
    RmsNormParams {
        values: DevicePointer,
        weight: DevicePointer,
        num_rows: DevicePointer,
        width: u32,
        eps: f32,
    }
    /// Of `head_rms_norm_*`.
    HeadRmsNormParams {
        qkv: DevicePointer,
        query_weight: DevicePointer,
        key_weight: DevicePointer,
        num_rows: DevicePointer,
        num_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
        eps: f32,
    }
    /// Of `linear_*`.
    LinearParams {
        out: DevicePointer,
        input: DevicePointer,
        weight: DevicePointer,
        scales: DevicePointer,
        sub_scales: DevicePointer,
        bias: DevicePointer,
        num_rows: DevicePointer,
        outputs: u32,
        columns: u32,
        segments: u32,
        first_sub_block: u32,
        out_is_float: u32,
        out_stride: u32,
    }
    /// Of `route_f32`.
    RouteParams {
        experts: DevicePointer,
        weights: DevicePointer,
        logits: DevicePointer,
        num_rows: DevicePointer,
        parts: u32,
        num_experts: u32,
        top_k: u32,
        normalize: u32,
    }
    /// Rows of one expert that one block of threads multiplies.
    ExpertTile {
        expert: u32,
        first: u32,
        count: u32,
        padding: u32,
    }
    /// Of `expert_plan`.
    ExpertPlanParams {
        rows: DevicePointer,
        places: DevicePointer,
        tiles: DevicePointer,
        counts: DevicePointer,
        experts: DevicePointer,
        num_rows: DevicePointer,
        num_experts: u32,
        top_k: u32,
        tile_rows: u32,
        padding: u32,
    }
    /// Of `experts_*`.
    ExpertLinearParams {
        linear: LinearParams,
        rows: DevicePointer,
        tiles: DevicePointer,
        num_tiles: DevicePointer,
        weight_bytes: u64,
        scale_bytes: u64,
        sub_scale_bytes: u64,
        segment_values: u64,
        first_segment: u32,
        end_segment: u32,
    }
    /// Of `expert_combine_f32`.
    ExpertCombineParams {
        out: DevicePointer,
        pending: DevicePointer,
        sums: DevicePointer,
        places: DevicePointer,
        weights: DevicePointer,
        num_rows: DevicePointer,
        segment_values: u64,
        level_values: u64,
        hidden: u32,
        top_k: u32,
        range: u32,
        ranges: u32,
    }
    /// Of `soft_cap_f32`.
    SoftCapParams {
        values: DevicePointer,
        num_rows: DevicePointer,
        width: u32,
        cap: f32,
    }
    /// Of `add_bias_f32`.
    AddBiasParams {
        values: DevicePointer,
        bias: DevicePointer,
        num_rows: DevicePointer,
        width: u32,
        padding: u32,
    }
    /// Of `gather_*`.
    GatherParams {
        out: DevicePointer,
        input: DevicePointer,
        rows: DevicePointer,
        num_rows: DevicePointer,
        width: u32,
        padding: u32,
    }
    /// Of `rotary_kv_write_*`.
    RotaryKvWriteParams {
        qkv: DevicePointer,
        cache: DevicePointer,
        cosines: DevicePointer,
        sines: DevicePointer,
        positions: DevicePointer,
        first_table_entry: DevicePointer,
        tables: DevicePointer,
        num_rows: DevicePointer,
        num_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
        half: u32,
        interleaved: u32,
        padding: u32,
    }
    /// Of `gated_activation_*`.
    GatedActivationParams {
        out: DevicePointer,
        gate_up: DevicePointer,
        num_rows: DevicePointer,
        width: u32,
        activation: u32,
    }
    /// Work of one CTA of attention, for each KV head.
    AttentionItem {
        first_row: u32,
        first_head: u32,
        num_pairs: u32,
        first_table_entry: u32,
        first_position: u32,
        first_part: u32,
        end_part: u32,
        first_slot: u32,
    }
    /// States of several parts to be joined.
    AttentionJoin {
        first_row: u32,
        first_head: u32,
        num_pairs: u32,
        first_position: u32,
        first_part: u32,
        num_parts: u32,
        first_slot: u32,
        slot_stride: u32,
    }
    /// Of `attention_*`, but for the joins.
    AttentionParams {
        out: DevicePointer,
        qkv: DevicePointer,
        cache: DevicePointer,
        workspace: DevicePointer,
        tables: DevicePointer,
        items: DevicePointer,
        num_items: DevicePointer,
        num_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
        window: u32,
        scale: f32,
        soft_cap: f32,
        inverse_soft_cap: f32,
        padding: u32,
    }
    /// Of `attention_join_*`.
    AttentionJoinParams {
        out: DevicePointer,
        workspace: DevicePointer,
        joins: DevicePointer,
        num_joins: DevicePointer,
        num_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
        window: u32,
    }
    /// Of `copy_blocks`.
    CopyBlocksParams {
        cache: DevicePointer,
        pairs: DevicePointer,
        num_pairs: DevicePointer,
        block_bytes: u64,
        layer_bytes: u64,
    }
    /// Statistics of 1,024 logits.
    SegmentStats {
        max: f32,
        sum: f32,
        best: u32,
        padding: u32,
    }
    /// Of `logit_stats_f32`.
    LogitStatsParams {
        stats: DevicePointer,
        logits: DevicePointer,
        num_rows: DevicePointer,
        vocabulary: u32,
        padding: u32,
    }
    /// What is wanted of one row of logits.
    SampleRequest {
        random: u64,
        top_p: u64,
        min_p: u64,
        temperature: f32,
        top_k: u32,
        kind: u32,
        token: u32,
        with_score: u32,
        num_top: u32,
    }
    /// What a row of logits gave.
    SampleResult {
        status: u32,
        token: u32,
        log_sum_exp: f32,
        logit: f32,
        rank: u32,
        num_top: u32,
    }
    /// Of `sample_f32`.
    SampleParams {
        results: DevicePointer,
        top_ids: DevicePointer,
        top_logits: DevicePointer,
        logits: DevicePointer,
        stats: DevicePointer,
        requests: DevicePointer,
        num_rows: DevicePointer,
        vocabulary: u32,
        max_top: u32,
    }
}

/// [`SampleRequest::kind`]: the most likely token.
pub const SAMPLE_GREEDY: u32 = 0;
/// A seeded draw.
pub const SAMPLE_DRAW: u32 = 1;
/// The score of a given token.
pub const SAMPLE_SCORE: u32 = 2;
/// The row is the host's business.
pub const SAMPLE_NOTHING: u32 = 3;
/// [`SampleResult::status`]: fine.
pub const SAMPLE_OK: u32 = 0;
/// The row has a NaN or positive infinity, or nothing finite.
pub const SAMPLE_INVALID_LOGITS: u32 = 1;

/// [`GatedActivationParams::activation`].
#[must_use]
pub fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

/// A share as the sampler takes it: times 2^32, truncated.
#[must_use]
pub fn share(value: f32) -> u64 {
    (f64::from(value) * (1_u64 << 32) as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_as_large_as_the_compiled_ones() {
        let header = include_str!("../../../../kernels/include/params.cuh");
        let compiled: Vec<(&str, usize)> = header
            .lines()
            .filter_map(|line| line.strip_prefix("static_assert(sizeof("))
            .filter_map(|rest| rest.split_once(") == "))
            .filter_map(|(name, rest)| Some((name, rest.split_once(',')?.0.parse().ok()?)))
            .collect();
        assert_eq!(compiled, PARAM_SIZES);
    }
}
