//! Which blocks of threads do which part of a step's attention.
//!
//! Pairs (token, head of the group) are cut into tiles of 16, one for each warp. A block of threads
//! walks its tiles' whole context, or, where that would leave the device idle, some parts of 256
//! positions whose states go through a workspace. Neither changes a bit of any row.

use super::params::{AttentionItem, AttentionJoin, PART_POSITIONS, TILE_PAIRS, WHOLE};

/// Tiles of a wide item at most: one for each warp of the wide entries.
const WIDE_TILES: u32 = 4;

/// What the plan depends on besides the chunks; layers that share it share the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanShape {
    /// Query heads of each KV head.
    pub group: u32,
    /// KV heads.
    pub num_kv_heads: u32,
    /// Positions that a query sees, its own included.
    pub window: Option<u32>,
    /// Whether there are wide entries: for bfloat16.
    pub has_wide: bool,
}

/// Bounds of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanBudget {
    /// Blocks of threads that fill the device.
    pub wanted_blocks: u32,
    /// Slots of the workspace, each of `num_kv_heads * 16 * (head_dim + 2)` floats.
    pub max_slots: u32,
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanChunk {
    /// First row of the step.
    pub first_row: u32,
    /// Rows.
    pub rows: u32,
    /// Position of the first row.
    pub start: u32,
    /// Where the sequence's block table starts in the step's tables.
    pub first_table_entry: u32,
}

/// Items of the launches of one layer's attention, and the joins after them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionPlan {
    /// For the entries of one warp.
    pub narrow: Vec<AttentionItem>,
    /// For the entries of four warps.
    pub wide: Vec<AttentionItem>,
    /// For `attention_join_*`; none if no context is cut.
    pub joins: Vec<AttentionJoin>,
    /// Slots of the workspace in use.
    pub num_slots: u32,
    tiles: Vec<AttentionItem>,
}

impl AttentionPlan {
    /// Plans a step anew; memory of the plan before is kept.
    pub fn plan(&mut self, chunks: &[PlanChunk], shape: &PlanShape, budget: PlanBudget) {
        self.narrow.clear();
        self.wide.clear();
        self.joins.clear();
        self.tiles.clear();
        self.num_slots = 0;
        for chunk in chunks {
            self.cut_chunk(chunk, shape);
        }
        let count_parts = |tile: &AttentionItem| tile.end_part - tile.first_part;
        let total: u64 = self.tiles.iter().map(|tile| u64::from(count_parts(tile))).sum();
        let wanted = u64::from(budget.wanted_blocks.max(1));
        // Every block gets as many parts, at least; 1 if even that does not fill the device.
        let per_block = (total * u64::from(shape.num_kv_heads)).div_ceil(wanted).max(1) as u32;
        // The longest contexts first: they are what a step waits for.
        self.tiles.sort_unstable_by_key(|tile| {
            (std::cmp::Reverse(count_parts(tile)), tile.first_row, tile.first_head)
        });
        let tiles = std::mem::take(&mut self.tiles);
        for tile in &tiles {
            let warps = if tile.num_pairs > TILE_PAIRS { WIDE_TILES } else { 1 };
            let slots = count_parts(tile) * warps;
            let is_short = count_parts(tile) <= per_block;
            if is_short || slots > budget.max_slots - self.num_slots {
                self.push(*tile);
            } else {
                self.split(*tile, shape, per_block, warps);
                self.num_slots += slots;
            }
        }
        self.tiles = tiles;
    }

    /// Cuts a chunk's pairs into items that are not split yet.
    fn cut_chunk(&mut self, chunk: &PlanChunk, shape: &PlanShape) {
        let pairs = chunk.rows * shape.group;
        let largest = if shape.has_wide { WIDE_TILES * TILE_PAIRS } else { TILE_PAIRS };
        let mut first = 0;
        while first < pairs {
            let num_pairs = largest.min(pairs - first);
            let first_position = chunk.start + first / shape.group;
            let last_position = chunk.start + (first + num_pairs - 1) / shape.group;
            let first_seen =
                shape.window.map_or(0, |window| (first_position + 1).saturating_sub(window));
            self.tiles.push(AttentionItem {
                first_row: chunk.first_row + first / shape.group,
                first_head: first % shape.group,
                num_pairs,
                first_table_entry: chunk.first_table_entry,
                first_position,
                first_part: first_seen / PART_POSITIONS,
                end_part: last_position / PART_POSITIONS + 1,
                first_slot: WHOLE,
            });
            first += num_pairs;
        }
    }

    fn push(&mut self, item: AttentionItem) {
        if item.num_pairs > TILE_PAIRS {
            self.wide.push(item);
        } else {
            self.narrow.push(item);
        }
    }

    /// Items of `per_block` parts each, and one join for each tile.
    fn split(&mut self, tile: AttentionItem, shape: &PlanShape, per_block: u32, warps: u32) {
        let mut part = tile.first_part;
        while part < tile.end_part {
            let end_part = tile.end_part.min(part + per_block);
            let first_slot = self.num_slots + (part - tile.first_part) * warps;
            self.push(AttentionItem { first_part: part, end_part, first_slot, ..tile });
            part = end_part;
        }
        for warp in 0..tile.num_pairs.div_ceil(TILE_PAIRS) {
            let first = tile.first_head + warp * TILE_PAIRS;
            self.joins.push(AttentionJoin {
                first_row: tile.first_row + first / shape.group,
                first_head: first % shape.group,
                num_pairs: TILE_PAIRS.min(tile.num_pairs - warp * TILE_PAIRS),
                first_position: tile.first_position + first / shape.group,
                first_part: tile.first_part,
                num_parts: tile.end_part - tile.first_part,
                first_slot: self.num_slots + warp,
                slot_stride: warps,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use oarlock_backend::quant::SplitMix;

    use super::*;

    const SHAPE: PlanShape = PlanShape { group: 7, num_kv_heads: 2, window: None, has_wide: true };

    /// Everything that an item or a join says about its pairs: (row, head, position).
    fn pairs(row: u32, head: u32, count: u32, position: u32, group: u32) -> Vec<(u32, u32, u32)> {
        (head..head + count).map(|i| (row + i / group, i % group, position + i / group)).collect()
    }

    /// Checks that every pair and every part it sees is done exactly once, in slots of its own.
    fn check(plan: &AttentionPlan, chunks: &[PlanChunk], shape: &PlanShape, budget: PlanBudget) {
        let mut done = BTreeSet::new();
        let mut slots = BTreeSet::new();
        for item in plan.narrow.iter().chain(&plan.wide) {
            let is_wide = item.num_pairs > TILE_PAIRS;
            assert!(item.num_pairs <= if is_wide { 64 } else { 16 }, "pairs of an item");
            let warps = if is_wide { 4 } else { 1 };
            for part in item.first_part..item.end_part {
                for pair in pairs(
                    item.first_row,
                    item.first_head,
                    item.num_pairs,
                    item.first_position,
                    shape.group,
                ) {
                    assert!(done.insert((pair, part)), "done twice");
                }
                for warp in 0..warps {
                    if item.first_slot != WHOLE {
                        let slot = item.first_slot + (part - item.first_part) * warps + warp;
                        assert!(slots.insert(slot) && slot < plan.num_slots, "a slot of its own");
                    }
                }
            }
        }
        assert!(plan.num_slots <= budget.max_slots, "the workspace suffices");
        for chunk in chunks {
            for row in 0..chunk.rows {
                let position = chunk.start + row;
                let first = shape.window.map_or(0, |w| (position + 1).saturating_sub(w)) / 256;
                for part in first..=position / 256 {
                    for head in 0..shape.group {
                        let pair = (chunk.first_row + row, head, position);
                        assert!(done.contains(&(pair, part)), "{pair:?} misses part {part}");
                    }
                }
            }
        }
        let mut joined = BTreeSet::new();
        for join in &plan.joins {
            let all = pairs(
                join.first_row,
                join.first_head,
                join.num_pairs,
                join.first_position,
                shape.group,
            );
            for pair in all {
                assert!(joined.insert(pair), "joined twice");
            }
            for part in 0..join.num_parts {
                let slot = join.first_slot + part * join.slot_stride;
                assert!(slots.contains(&slot), "a slot that was written");
            }
        }
        for item in plan.narrow.iter().chain(&plan.wide) {
            let all = pairs(
                item.first_row,
                item.first_head,
                item.num_pairs,
                item.first_position,
                shape.group,
            );
            for pair in all {
                let is_whole = item.first_slot == WHOLE;
                assert_eq!(joined.contains(&pair), !is_whole, "written once");
            }
        }
    }

    #[test]
    fn random_steps_are_covered() {
        let mut random = SplitMix(3);
        let mut plan = AttentionPlan::default();
        for _ in 0..300 {
            let mut draw = |below: u64| (random.next() % below) as u32;
            let shape = PlanShape {
                group: 1 + draw(12),
                num_kv_heads: 1 + draw(8),
                window: (draw(2) == 0).then(|| 1 + draw(600)),
                has_wide: draw(2) == 0,
            };
            let budget = PlanBudget { wanted_blocks: 1 + draw(300), max_slots: draw(200) };
            let mut chunks = Vec::new();
            let mut first_row = 0;
            for _ in 0..draw(6) {
                let rows = 1 + if draw(2) == 0 { 0 } else { draw(90) };
                let (start, first_table_entry) = (draw(3000), draw(1000));
                chunks.push(PlanChunk { first_row, rows, start, first_table_entry });
                first_row += rows;
            }
            plan.plan(&chunks, &shape, budget);
            check(&plan, &chunks, &shape, budget);
        }
    }

    #[test]
    fn one_long_context_fills_the_device() {
        let chunk = PlanChunk { first_row: 0, rows: 1, start: 4095, first_table_entry: 0 };
        let budget = PlanBudget { wanted_blocks: 264, max_slots: 1000 };
        let shape = PlanShape { group: 4, num_kv_heads: 8, ..SHAPE };
        let mut plan = AttentionPlan::default();
        plan.plan(&[chunk], &shape, budget);
        assert_eq!((plan.narrow.len(), plan.joins.len(), plan.num_slots), (16, 1, 16));
        let mut many = vec![chunk; 64];
        plan.plan(&many, &shape, budget);
        assert_eq!((plan.narrow.len(), plan.joins.len(), plan.num_slots), (64, 0, 0));
        // Nobody waits for one context that is much longer than the others.
        many[7].start = 100_000;
        plan.plan(&many, &shape, budget);
        assert_eq!((plan.narrow.len(), plan.joins.len(), plan.num_slots), (63 + 10, 1, 391));
    }

    #[test]
    fn prompts_take_wide_items() {
        let chunk = PlanChunk { first_row: 3, rows: 20, start: 0, first_table_entry: 0 };
        let budget = PlanBudget { wanted_blocks: 1, max_slots: 0 };
        let mut plan = AttentionPlan::default();
        plan.plan(&[chunk], &SHAPE, budget);
        // 140 pairs: 64, 64 and 12.
        assert_eq!((plan.wide.len(), plan.narrow.len()), (2, 1));
        let last = plan.narrow[0];
        assert_eq!((last.first_row, last.first_head, last.num_pairs), (3 + 18, 2, 12));
    }
}
