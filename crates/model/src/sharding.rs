//! What one rank of a tensor-parallel group holds of a model, and which degrees a model allows.
//!
//! Queries, keys, values, gate and up are cut by outputs (column-parallel), the attention output and
//! the down projection by inputs (row-parallel; Shoeybi et al. 2019, Megatron-LM), embedding and output
//! by vocabulary. A row-parallel layer is cut along the segments of the numbers contract only, so that
//! a rank owns whole subtrees of its sums.

use std::ops::Range;

use oarlock_backend::{InnerSplit, WeightKind};
use oarlock_types::Shard;

use crate::ModelError;
use crate::spec::DecoderSpec;

/// Columns that share a scale in quantized weights; see the numbers contract.
const SUB_BLOCK: usize = 32;
/// Ranges of the vocabulary begin at multiples of this: the tiles of kernels.
const VOCABULARY_UNIT: usize = 16;
/// Degrees that groups come in.
const DEGREES: [u32; 4] = [1, 2, 4, 8];

/// The ranges of a model that one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RankRanges {
    /// Query heads.
    pub(crate) heads: Range<usize>,
    /// Key/value heads; shared with other ranks where there are fewer than ranks.
    pub(crate) kv_heads: Range<usize>,
    /// Of the feed-forward width.
    pub(crate) feed_forward: Range<usize>,
    /// Of each expert's inner width.
    pub(crate) expert_feed_forward: Range<usize>,
    /// Tokens, of every rank: rank 0 puts the logits together.
    pub(crate) vocabulary: Vec<Range<usize>>,
    pub(crate) shard: Shard,
}

impl RankRanges {
    /// The ranges of one rank of a model that allows the degree.
    pub(crate) fn new(spec: &DecoderSpec, shard: Shard) -> Self {
        let (rank, ranks) = (shard.rank as usize, shard.ranks as usize);
        let part = |whole: usize| rank * whole / ranks..(rank + 1) * whole / ranks;
        let kv_heads = if spec.num_kv_heads >= ranks {
            part(spec.num_kv_heads)
        } else {
            let first = rank * spec.num_kv_heads / ranks;
            first..first + 1
        };
        let edge = |rank: usize| vocabulary_edge(spec.vocab_size, rank, ranks);
        Self {
            heads: part(spec.num_heads),
            kv_heads,
            feed_forward: part(spec.feed_forward),
            expert_feed_forward: part(
                spec.experts.as_ref().map_or(0, |experts| experts.feed_forward),
            ),
            vocabulary: (0..ranks).map(|rank| edge(rank)..edge(rank + 1)).collect(),
            shard,
        }
    }

    /// Tokens of this rank.
    pub(crate) fn own_vocabulary(&self) -> Range<usize> {
        self.vocabulary[self.shard.rank as usize].clone()
    }

    /// The vocabulary in the eight parts of the greatest degree, at whose edges those of every other one
    /// lie. Some are empty where it is very small.
    pub(crate) fn vocabulary_eighths(&self) -> [Range<usize>; 8] {
        let size = self.vocabulary.last().map_or(0, |last| last.end);
        std::array::from_fn(|part| {
            vocabulary_edge(size, part, 8)..vocabulary_edge(size, part + 1, 8)
        })
    }

    /// What is left to this rank of the segments of a row-parallel layer.
    pub(crate) fn own_split(&self, split: InnerSplit) -> InnerSplit {
        InnerSplit { segments: split.segments / self.shard.ranks as usize }
    }
}

/// The first token of a rank's part of the vocabulary.
fn vocabulary_edge(vocab_size: usize, rank: usize, ranks: usize) -> usize {
    let units = vocab_size.div_ceil(VOCABULARY_UNIT);
    (rank * units / ranks * VOCABULARY_UNIT).min(vocab_size)
}

/// Segments of the attention output: units are heads, with quantized weights the fewest heads that
/// fill whole sub-blocks.
pub(crate) fn attention_split(spec: &DecoderSpec, kind: WeightKind) -> InnerSplit {
    let mut heads_per_unit = 1;
    if kind.is_quantized() {
        while !(heads_per_unit * spec.head_dim).is_multiple_of(SUB_BLOCK) {
            heads_per_unit += 1;
        }
    }
    if spec.num_heads.is_multiple_of(heads_per_unit) {
        InnerSplit::of_units(spec.num_heads / heads_per_unit)
    } else {
        InnerSplit::WHOLE
    }
}

/// Segments of a down projection from this width: units are sub-blocks, or single columns in unquantized
/// weights.
pub(crate) fn feed_forward_split(columns: usize, kind: WeightKind) -> InnerSplit {
    InnerSplit::of_units(if kind.is_quantized() { columns / SUB_BLOCK } else { columns })
}

/// The degrees that a model allows, ascending. `splits` are those of its row-parallel layers.
pub(crate) fn degrees(spec: &DecoderSpec, splits: impl Iterator<Item = InnerSplit>) -> Vec<u32> {
    let least = splits.map(|split| split.segments).min().unwrap_or(1);
    let allows = |degree: usize| {
        least.is_multiple_of(degree)
            // Every rank's query heads share its key/value heads evenly.
            && (spec.num_kv_heads.is_multiple_of(degree) || degree.is_multiple_of(spec.num_kv_heads))
            && spec.vocab_size.div_ceil(VOCABULARY_UNIT) >= degree
    };
    DEGREES.into_iter().filter(|degree| allows(*degree as usize)).collect()
}

/// Refuses a degree that is not among those that the model allows.
pub(crate) fn check_degree(shard: Shard, degrees: &[u32]) -> Result<(), ModelError> {
    if degrees.contains(&shard.ranks) {
        return Ok(());
    }
    let allowed: Vec<_> = degrees.iter().map(ToString::to_string).collect();
    Err(ModelError::TensorParallel { ranks: shard.ranks, allowed: allowed.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::demo_spec;

    fn ranges(spec: &DecoderSpec, ranks: u32) -> Vec<RankRanges> {
        (0..ranks).map(|rank| RankRanges::new(spec, Shard { rank, ranks })).collect()
    }

    #[test]
    fn segments_follow_the_shape_of_the_demo_model() {
        let spec = demo_spec();
        assert_eq!(attention_split(&spec, WeightKind::Q5_0).segments, 2);
        assert_eq!(feed_forward_split(spec.feed_forward, WeightKind::Q6K).segments, 8);
        assert_eq!(feed_forward_split(160, WeightKind::Bf16).segments, 8);
        assert_eq!(feed_forward_split(160, WeightKind::Q8_0).segments, 1);
    }

    #[test]
    fn degrees_divide_segments_and_head_groups() {
        let spec = demo_spec();
        let of = |spec: &DecoderSpec, kind| {
            let splits = [attention_split(spec, kind), feed_forward_split(spec.feed_forward, kind)];
            degrees(spec, splits.into_iter())
        };
        assert_eq!(of(&spec, WeightKind::Q5_0), [1, 2]);
        let wide = DecoderSpec { num_heads: 32, num_kv_heads: 8, ..spec.clone() };
        assert_eq!(of(&wide, WeightKind::Q5_0), [1, 2, 4, 8]);
        // Twelve query heads over six key heads: four ranks of three heads would cut groups of two.
        let uneven = DecoderSpec { num_heads: 12, num_kv_heads: 6, ..spec.clone() };
        assert_eq!(of(&uneven, WeightKind::Bf16), [1, 2]);
        // 64 columns to a head are two sub-blocks; 16 are half of one.
        let small = DecoderSpec { num_heads: 8, num_kv_heads: 1, head_dim: 16, ..spec };
        assert_eq!(of(&small, WeightKind::Bf16), [1, 2, 4, 8]);
        assert_eq!(of(&small, WeightKind::Q8_0), [1, 2, 4]);
        let refused = check_degree(Shard { rank: 0, ranks: 3 }, &[1, 2]).unwrap_err();
        assert!(refused.to_string().contains("1, 2"), "{refused}");
    }

    #[test]
    fn ranges_cover_everything_once() {
        let spec =
            DecoderSpec { num_heads: 16, num_kv_heads: 2, vocab_size: 151_937, ..demo_spec() };
        for ranks in DEGREES {
            let all = ranges(&spec, ranks);
            let eighths = all[0].vocabulary_eighths();
            let mut next = [0; 3];
            for (rank, own) in all.iter().enumerate() {
                let parts = [own.heads.clone(), own.feed_forward.clone(), own.own_vocabulary()];
                for (next, part) in next.iter_mut().zip(parts) {
                    assert_eq!(part.start, *next);
                    assert!(!part.is_empty());
                    *next = part.end;
                }
                let edge = own.own_vocabulary().start;
                assert!(eighths.iter().any(|eighth| eighth.start == edge), "{edge}");
                // Each of its query heads finds its key head here.
                let group = spec.num_heads / spec.num_kv_heads;
                assert_eq!(own.heads.start / group, own.kv_heads.start, "rank {rank} of {ranks}");
                assert_eq!((own.heads.end - 1) / group, own.kv_heads.end - 1);
            }
            assert_eq!(next, [16, spec.feed_forward, 151_937]);
        }
    }
}
