//! Ranks of a group give the bits of one rank that holds everything, whatever the batch, the chunks and
//! the degree.

use std::thread;

use oarlock_backend::{
    BackendLimits, BlockTables, ChunkRows, History, HostBackend, LogitKind, LogitRow,
    OracleBackend, RowResult, StepInput,
};
use oarlock_backend_cpu::{CpuBackend, CpuConfig};
use oarlock_collective::{Alone, Collective, HostCollective, local_group};
use oarlock_model::{Checkpoint, TraceRecord, Tracer, load};
use oarlock_testkit::{TINY_MODELS, fixture};
use oarlock_types::{BlockId, SamplingParams, SlotId, TokenId};
use proptest::prelude::*;

const NUM_SLOTS: usize = 4;
const MAX_BLOCKS: usize = 8;
const LIMITS: BackendLimits = BackendLimits {
    max_tokens: 64,
    // Fewer than a step may want: logits go in tiles.
    max_gathered: 3,
    max_chunks: NUM_SLOTS,
    max_positions: MAX_BLOCKS * 16,
};

/// One step: for each of some slots, how many tokens are computed next.
type Step = Vec<(usize, u32)>;

/// What a step gave, to the bit: token, logprob, best tokens.
fn bits(results: &[RowResult]) -> Vec<String> {
    let one = |result: &RowResult| match &result.outcome {
        Ok((token, Some(score))) => {
            let top: Vec<_> =
                score.top.iter().map(|top| (top.token.0, top.logprob.to_bits())).collect();
            format!("{token} {:x} {} {top:x?}", score.logprob.to_bits(), score.rank)
        }
        other => format!("{other:?}"),
    };
    results.iter().map(one).collect()
}

/// A fixture; `NAME@q8_0` is quantized at load.
fn open(name: &str) -> Checkpoint {
    let (name, quantization) = name.split_once('@').unwrap_or((name, "none"));
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    checkpoint.with_quantization(quantization.parse().unwrap())
}

/// Runs all steps on one rank: the results of each.
fn run_rank<B: HostBackend>(
    name: &str,
    mut backend: B,
    collective: Box<dyn Collective<B>>,
    prompts: &[Vec<TokenId>],
    steps: &[Step],
    tracer: Option<Box<dyn Tracer>>,
) -> Vec<Vec<RowResult>> {
    let checkpoint = open(name);
    let num_blocks = NUM_SLOTS * MAX_BLOCKS;
    let mut decoder = load(&checkpoint, &mut backend, collective, num_blocks, &mut |_| ()).unwrap();
    if let Some(tracer) = tracer {
        decoder.set_tracer(tracer);
    }
    let mut tables = BlockTables::new(NUM_SLOTS, MAX_BLOCKS);
    for block in 0..num_blocks as u32 {
        tables.push(SlotId(block % NUM_SLOTS as u32), BlockId(block));
    }
    let mut sequences = prompts.to_vec();
    let mut starts = [0_u32; NUM_SLOTS];
    let greedy = SamplingParams { top_logprobs: Some(5), ..SamplingParams::default() };
    let drawn = SamplingParams { temperature: 1.0, top_p: 0.9, seed: 7, ..greedy.clone() };
    let mut all = Vec::new();
    for step in steps {
        let mut tokens = Vec::new();
        let mut chunks = Vec::new();
        let mut logit_rows = Vec::new();
        let mut sampled = Vec::new();
        for &(slot, wanted) in step {
            let start = starts[slot];
            let len = wanted.min(sequences[slot].len() as u32 - start);
            if len == 0 || start + len >= LIMITS.max_positions as u32 {
                continue;
            }
            let first_row = tokens.len() as u32;
            tokens.extend_from_slice(&sequences[slot][start as usize..(start + len) as usize]);
            chunks.push(ChunkRows { slot: SlotId(slot as u32), first_row, rows: len, start });
            starts[slot] += len;
            let row = first_row + len - 1;
            if start + len == sequences[slot].len() as u32 {
                let params = if slot.is_multiple_of(2) { &greedy } else { &drawn };
                let history = History { tokens: &[], num_prompt: 0 };
                let kind = LogitKind::Sample { params, position: start + len, history };
                logit_rows.push(LogitRow { row, kind });
                sampled.push(Some(slot));
            } else {
                let token = sequences[slot][(start + len) as usize];
                logit_rows.push(LogitRow { row, kind: LogitKind::Score { token, top: 3 } });
                sampled.push(None);
            }
        }
        if tokens.is_empty() {
            continue;
        }
        let input = StepInput {
            tokens: &tokens,
            chunks: &chunks,
            block_tables: &tables,
            logit_rows: &logit_rows,
        };
        let mut results = Vec::new();
        decoder.step(&mut backend, &input, &mut results).unwrap();
        for (slot, result) in sampled.iter().zip(&results) {
            if let Some(slot) = slot {
                sequences[*slot].push(result.outcome.as_ref().unwrap().0);
            }
        }
        all.push(results);
    }
    all
}

/// The results of every rank of a group.
fn run_group<B: HostBackend>(
    name: &str,
    make: &(dyn Fn() -> B + Sync),
    ranks: u32,
    prompts: &[Vec<TokenId>],
    steps: &[Step],
) -> Vec<Vec<Vec<RowResult>>> {
    if ranks == 1 {
        return vec![run_rank(name, make(), Box::new(Alone), prompts, steps, None)];
    }
    thread::scope(|scope| {
        let run = |transport| {
            let collective = Box::new(HostCollective::new(transport));
            scope.spawn(move || run_rank(name, make(), collective, prompts, steps, None))
        };
        let threads: Vec<_> = local_group(ranks).into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn same_bits<B: HostBackend>(
    make: &(dyn Fn() -> B + Sync),
    name: &str,
    degrees: &[u32],
    prompts: &[Vec<TokenId>],
    steps: &[Step],
) {
    let whole = run_group(name, make, 1, prompts, steps).remove(0);
    assert!(whole.iter().map(Vec::len).sum::<usize>() > 0, "something was wanted");
    for &ranks in degrees {
        let group = run_group(name, make, ranks, prompts, steps);
        for (step, want) in whole.iter().enumerate() {
            assert_eq!(bits(&group[0][step]), bits(want), "{name}: {ranks} ranks, step {step}");
            for (rank, own) in group.iter().enumerate() {
                let tokens = |results: &[RowResult]| -> Vec<_> {
                    results.iter().map(|r| r.outcome.as_ref().unwrap().0).collect()
                };
                assert_eq!(tokens(&own[step]), tokens(want), "rank {rank} knows every token");
            }
        }
    }
}

fn cpu(threads: usize) -> CpuBackend {
    CpuBackend::new(CpuConfig { threads, instruction_set: None, ..CpuConfig::default() }, LIMITS)
        .unwrap()
}

fn prompts(lens: &[usize], seed: u32) -> Vec<Vec<TokenId>> {
    let token = |slot: usize, at: usize| {
        TokenId(
            (slot as u32 * 7919 + at as u32 * 104_729 + seed * 31).wrapping_mul(2_654_435_761) % 64,
        )
    };
    lens.iter()
        .enumerate()
        .map(|(slot, len)| (0..*len).map(|at| token(slot, at)).collect())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn any_batch_any_degree(
        lens in prop::array::uniform4(1_usize..60),
        steps in prop::collection::vec(
            prop::collection::btree_map(0..NUM_SLOTS, 1_u32..16, 1..=NUM_SLOTS), 3..12),
        seed in 0_u32..1000,
    ) {
        let steps: Vec<Step> = steps.into_iter().map(|step| step.into_iter().collect()).collect();
        for name in TINY_MODELS {
            let name = format!("tiny/{name}");
            let checkpoint = Checkpoint::open(&fixture(&name)).unwrap();
            let degrees = &checkpoint.tensor_parallel_degrees()[1..];
            assert!(degrees.contains(&2), "{name} can be cut");
            same_bits(&|| cpu(1), &name, degrees, &prompts(&lens, seed), &steps);
        }
    }
}

#[test]
fn the_oracle_and_windows_and_quantized_weights() {
    let prompts = prompts(&[20, 1, 33, 7], 5);
    let steps: Vec<Step> = (0..8).map(|_| (0..4).map(|slot| (slot, 13)).collect()).collect();
    same_bits(&|| OracleBackend::new(LIMITS), "tiny/qwen2", &[2, 4], &prompts, &steps);
    same_bits(&|| OracleBackend::new(LIMITS), "tiny/qwen3-moe", &[2, 4], &prompts, &steps);
    // Norms of heads, caps, windows; several key heads.
    same_bits(&|| cpu(2), "tiny-gemma3/model.gguf", &[2], &prompts, &steps);
}

#[test]
fn weights_that_are_quantized_at_load() {
    let prompts = prompts(&[20, 1, 33, 7], 5);
    let steps: Vec<Step> = (0..8).map(|_| (0..4).map(|slot| (slot, 13)).collect()).collect();
    for (name, degrees) in [("llama-blocks", &[2, 4][..]), ("qwen3-moe-blocks", &[2])] {
        for quantization in ["q8_0", "q4_0"] {
            let name = format!("relatives/{name}@{quantization}");
            assert_eq!(&open(&name).tensor_parallel_degrees()[1..], degrees, "{name}");
            same_bits(&|| cpu(2), &name, degrees, &prompts, &steps);
        }
    }
}

#[test]
fn a_degree_that_cannot_be_is_refused_with_those_that_can() {
    let checkpoint = Checkpoint::open(&fixture("tiny/llama")).unwrap();
    assert_eq!(checkpoint.tensor_parallel_degrees(), [1, 2, 4]);
    let mut backend = OracleBackend::new(LIMITS);
    let rank = local_group(8).remove(0);
    let collective = Box::new(HostCollective::new(rank));
    let Err(error) = load(&checkpoint, &mut backend, collective, 4, &mut |_| ()) else {
        panic!("eight ranks of four heads");
    };
    assert!(error.to_string().contains("1, 2, 4"), "{error}");
}

#[test]
fn a_rank_loads_its_part_only() {
    let checkpoint = Checkpoint::open(&fixture("tiny/llama")).unwrap();
    let all = checkpoint.shard_bytes(oarlock_types::Shard::WHOLE);
    for ranks in [2, 4] {
        let mut loaded = Vec::new();
        for transport in local_group(ranks) {
            let mut last = oarlock_types::LoadProgress::default();
            let collective = Box::new(HostCollective::new(transport));
            let mut backend = OracleBackend::new(LIMITS);
            load(&checkpoint, &mut backend, collective, 4, &mut |now| last = now).unwrap();
            assert_eq!(last.loaded_bytes, last.total_bytes);
            loaded.push(last.total_bytes);
        }
        let sum: u64 = loaded.iter().sum();
        // Norms are everybody's, and so is a key head that ranks share.
        assert!(sum >= all && sum < all + all / 5, "{loaded:?} of {all}");
        assert!(
            loaded.iter().all(|bytes| *bytes < all / u64::from(ranks) + all / 10),
            "{loaded:?}"
        );
    }
}

/// Keeps every record.
struct Keep(std::sync::mpsc::Sender<TraceRecord>);

impl Tracer for Keep {
    fn record(&mut self, record: TraceRecord) {
        self.0.send(record).unwrap();
    }
}

/// Rank 0 of a group has all of what is not cut; the ranks together have the records of one rank.
#[test]
fn traces_of_ranks_are_the_trace_of_one() {
    let prompts = prompts(&[9, 4, 2, 1], 3);
    let steps: Vec<Step> = vec![vec![(0, 5), (1, 4)], vec![(0, 4), (2, 2), (3, 1)]];
    let name = "tiny/llama-tied-mqa";
    let trace = |ranks: u32| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let tracer = || Some(Box::new(Keep(sender.clone())) as Box<dyn Tracer>);
        if ranks == 1 {
            run_rank(name, cpu(1), Box::new(Alone), &prompts, &steps, tracer());
        } else {
            thread::scope(|scope| {
                for transport in local_group(ranks) {
                    let (prompts, steps, tracer) = (&prompts, &steps, tracer());
                    let collective = Box::new(HostCollective::new(transport));
                    scope.spawn(move || run_rank(name, cpu(1), collective, prompts, steps, tracer));
                }
            });
        }
        drop(sender);
        let mut lines: Vec<String> =
            receiver.into_iter().map(|record| format!("{record:?}")).collect();
        lines.sort();
        lines.dedup();
        lines
    };
    let whole = trace(1);
    assert!(whole.len() > 100);
    for ranks in [2, 4] {
        assert_eq!(trace(ranks), whole, "{ranks} ranks");
    }
}
