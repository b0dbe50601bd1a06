//! Gemma 3 270M: its tokenizer against the reference's cases; its numbers on the float32 oracle and
//! on the CPU backend against what transformers computes in float32, and against each other.
//! (`fixtures/gemma-3-270m/make.py` made the reference.)

use oarlock_backend::{Backend, BackendLimits, OracleBackend};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, InstructionSet};
use oarlock_model::Checkpoint;
use oarlock_testkit::{fixture_json, gemma_model};
use oarlock_text::Tokenizer;
use oarlock_types::{TokenId, TokenScore};
use serde_json::Value;

use crate::scoring::{Model, ids, limits};

/// Blocks of the longest case: more than the window of 512 positions.
const NUM_BLOCKS: usize = 44;
const LIMITS: BackendLimits = limits(NUM_BLOCKS, 40);
/// Where the reference's two best tokens are closer than this, either may be ours.
const CLEAR_MARGIN: f64 = 0.15;

/// One case of the reference, shortest first.
struct Case {
    prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
    margins: Vec<f64>,
    /// By position of `greedy`.
    top5: Vec<Vec<(TokenId, f64)>>,
}

fn cases() -> Vec<Case> {
    let file = fixture_json("gemma-3-270m/generation.json");
    let pair = |pair: &Value| {
        let id = TokenId(pair[0].as_u64().expect("an id") as u32);
        (id, pair[1].as_f64().expect("a logprob"))
    };
    let top5 = |position: &Value| position.as_array().expect("five").iter().map(pair).collect();
    let case = |case: &Value| Case {
        prompt: ids(&case["prompt_ids"]),
        greedy: ids(&case["greedy"]),
        margins: serde_json::from_value(case["margins"].clone()).expect("numbers"),
        top5: case["top5"].as_array().expect("positions").iter().map(top5).collect(),
    };
    let mut cases: Vec<_> = file["cases"].as_array().expect("cases").iter().map(case).collect();
    cases.sort_by_key(|case| case.prompt.len());
    assert!(cases.last().is_some_and(|longest| longest.prompt.len() > 600));
    cases
}

impl Case {
    /// A model's scores at every position of `greedy`, the prompt and it computed in chunks.
    fn score_in<B: Backend>(&self, model: &mut Model<B>, chunk_rows: usize) -> Vec<TokenScore> {
        let all = [&self.prompt[..], &self.greedy].concat();
        // The row before a token scores it.
        model.score(&all, self.prompt.len() - 1, &self.greedy, chunk_rows)
    }

    fn score<B: Backend>(&self, model: &mut Model<B>) -> Vec<TokenScore> {
        self.score_in(model, LIMITS.max_tokens)
    }
}

fn cpu(checkpoint: &Checkpoint, instruction_set: Option<InstructionSet>) -> Model<CpuBackend> {
    let backend =
        CpuBackend::new(CpuConfig { threads: 2, instruction_set, ..CpuConfig::default() }, LIMITS)
            .unwrap();
    Model::load(checkpoint, backend, NUM_BLOCKS)
}

/// Distances between our logprobs and others of the same tokens.
#[derive(Default)]
struct Differences(Vec<f64>);

impl Differences {
    fn add(&mut self, ours: &TokenScore, others: impl IntoIterator<Item = (TokenId, f64)>) {
        for (id, logprob) in others {
            let found = ours.top.iter().find(|ranked| ranked.token == id);
            let found = found.expect("a token of their five best is among our twenty");
            self.0.push((f64::from(found.logprob) - logprob).abs());
        }
    }

    fn add_reference(&mut self, case: &Case, ours: &[TokenScore]) {
        for (ours, reference) in ours.iter().zip(&case.top5) {
            self.add(ours, reference.iter().copied());
        }
    }

    /// Mean, 99th percentile, worst.
    fn summary(&mut self, what: &str) -> [f64; 3] {
        self.0.sort_by(f64::total_cmp);
        let (count, last) = (self.0.len(), self.0[self.0.len() - 1]);
        let summary = [self.0.iter().sum::<f64>() / count as f64, self.0[count * 99 / 100], last];
        eprintln!("{what}: mean, p99, worst {summary:.5?} over {count} values");
        summary
    }
}

fn bits(scores: &[TokenScore]) -> Vec<(u32, u32)> {
    let ranked = scores.iter().flat_map(|score| &score.top);
    ranked.map(|ranked| (ranked.token.0, ranked.logprob.to_bits())).collect()
}

#[test]
fn the_tokenizer_gives_the_references_ids() {
    let Some(path) = gemma_model() else { return };
    let card = Checkpoint::open(&path).unwrap().card().unwrap();
    assert_eq!((card.vocab_size, card.add_bos), (262_144, true));
    assert_eq!(card.bos_token_id, Some(TokenId(2)));
    assert_eq!(card.eos_token_ids, [TokenId(1), TokenId(106)]);
    assert_eq!(card.chat_template, None);
    let tokenizer = Tokenizer::new(&card.tokenizer.expect("a tokenizer")).unwrap();
    let file = fixture_json("tokenization.json");
    let cases = file["cases"]["gemma-3-270m"].as_array().expect("cases");
    assert_eq!(cases.len(), 32);
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let encoded = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoded, ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&encoded, true), text);
    }
    for unit in ["a", " ", "\n", "é", "<", "word "] {
        let text = unit.repeat((1 << 20) / unit.len());
        let encoded = tokenizer.encode(&text, true).unwrap();
        assert_eq!(tokenizer.decode(&encoded, true), text);
    }
    let prompts = fixture_json("gemma-3-270m/generation.json");
    for case in prompts["cases"].as_array().expect("cases") {
        let text = case["prompt"].as_str().expect("a text");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["prompt_ids"])[1..]);
    }
}

#[test]
fn oracle_and_cpu_agree_with_float32() {
    let Some(path) = gemma_model() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let cases = cases();
    let (longest, short) = cases.split_last().expect("cases");
    // Two short prompts, and one longer than the window.
    let shared = [&short[0], &short[1], longest];
    let (oracle, ours) = std::thread::scope(|scope| {
        let oracle = scope.spawn(|| {
            let mut oracle = Model::load(&checkpoint, OracleBackend::new(LIMITS), NUM_BLOCKS);
            shared.map(|case| case.score(&mut oracle))
        });
        let mut cpu = cpu(&checkpoint, None);
        let ours: Vec<_> = cases.iter().map(|case| case.score(&mut cpu)).collect();
        let in_chunks = longest.score_in(&mut cpu, 100);
        assert_eq!(bits(&in_chunks), bits(&ours[ours.len() - 1]), "in chunks of 100");
        (oracle.join().unwrap(), ours)
    });

    let mut differences = Differences::default();
    shared.iter().zip(&oracle).for_each(|(case, oracle)| differences.add_reference(case, oracle));
    let [_, _, worst] = differences.summary("the oracle against transformers in float32");
    assert!(worst <= 1e-3, "{worst}");

    let mut differences = Differences::default();
    for (ours, oracle) in [&ours[0], &ours[1], &ours[ours.len() - 1]].into_iter().zip(&oracle) {
        for (ours, oracle) in ours.iter().zip(oracle) {
            let best = oracle.top.iter().take(5);
            differences.add(ours, best.map(|best| (best.token, f64::from(best.logprob))));
        }
    }
    check_reduced(differences.summary("the CPU against the oracle"));

    let mut differences = Differences::default();
    for (case, ours) in cases.iter().zip(&ours) {
        differences.add_reference(case, ours);
        for ((ours, margin), greedy) in ours.iter().zip(&case.margins).zip(&case.greedy) {
            assert!(*margin < CLEAR_MARGIN || ours.top[0].token == *greedy, "margin {margin}");
        }
    }
    check_reduced(differences.summary("the CPU against transformers in float32"));
}

/// What int8 activations may change: transformers itself, with the inputs of its linear layers rounded
/// to int8 in blocks of 32 and everything else in float32, is 0.074, 0.337 and 0.891 away from its own
/// reference on these cases. (The demo model, twice as large, bears them better.)
fn check_reduced([mean, at_99, worst]: [f64; 3]) {
    assert!(
        mean <= 0.08 && at_99 <= 0.36 && worst <= 0.9,
        "mean {mean}, p99 {at_99}, worst {worst}"
    );
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let Some(path) = gemma_model() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let cases = cases();
    let shortest = Case {
        prompt: cases[0].prompt.clone(),
        greedy: cases[0].greedy[..4].to_vec(),
        margins: vec![],
        top5: vec![],
    };
    let score = |set| bits(&shortest.score(&mut cpu(&checkpoint, Some(set))));
    let portable = score(InstructionSet::Portable);
    assert_eq!(portable.len(), 4 * 20);
    for set in InstructionSet::available() {
        assert_eq!(score(set), portable, "{set}");
    }
}
