//! The entry points on mutated valid inputs: they return, without a panic, in bounded memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use oarlock_testkit::{GgufWriter, TinyModel};
use peak_alloc::PeakAlloc;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What any input may take in memory, besides a multiple of its length: a template's output of 64 MiB
/// at most, in a buffer that doubles, and the half before.
const MEMORY_BASE: usize = 220 << 20;
const MEMORY_PER_BYTE: usize = 400;

/// One change to the bytes; positions are shares of the length.
#[derive(Clone, Debug)]
enum Mutation {
    Flip { at: f64, bits: u8 },
    Set { at: f64, bytes: Vec<u8> },
    Insert { at: f64, bytes: Vec<u8> },
    Remove { at: f64, share: f64 },
    Repeat { at: f64, len: usize, times: usize },
    Truncate { at: f64 },
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = || prop_oneof![0.0..1.0, 0.0..0.05];
    let interesting = prop_oneof![
        vec(any::<u8>(), 1..9),
        // Lengths and counts that do not fit.
        Just(u64::MAX.to_le_bytes().to_vec()),
        Just((1_u64 << 40).to_le_bytes().to_vec()),
        Just(0_u64.to_le_bytes().to_vec()),
        Just(b"[[[[[[[[{\"a\":".to_vec()),
        Just(b"{{ x.y.z }}{% for a in range(99999) %}{% endfor %}".to_vec()),
        Just(b"-1e999".to_vec()),
        Just(b"\\ud800\"".to_vec()),
        Just(b"null".to_vec()),
    ];
    let bytes = interesting.boxed();
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, bits)| Mutation::Flip { at, bits }),
        (at(), bytes.clone()).prop_map(|(at, bytes)| Mutation::Set { at, bytes }),
        (at(), bytes).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        (at(), 0.0..0.2).prop_map(|(at, share)| Mutation::Remove { at, share }),
        (at(), 1_usize..64, 2_usize..200).prop_map(|(at, len, times)| Mutation::Repeat {
            at,
            len,
            times
        }),
        at().prop_map(|at| Mutation::Truncate { at }),
    ]
}

fn apply(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let place = |at: f64, len: usize| ((at * len as f64) as usize).min(len);
    let len = bytes.len();
    match mutation {
        Mutation::Flip { at, bits } => {
            if let Some(byte) = bytes.get_mut(place(*at, len)) {
                *byte ^= bits;
            }
        }
        Mutation::Set { at, bytes: new } => {
            let start = place(*at, len);
            for (old, new) in bytes[start..].iter_mut().zip(new) {
                *old = *new;
            }
        }
        Mutation::Insert { at, bytes: new } => {
            let start = place(*at, len);
            drop(bytes.splice(start..start, new.iter().copied()));
        }
        Mutation::Remove { at, share } => {
            let start = place(*at, len);
            let end = (start + place(*share, len)).min(len);
            drop(bytes.drain(start..end));
        }
        Mutation::Repeat { at, len: part, times } => {
            let start = place(*at, len);
            let end = (start + part).min(len);
            let repeated = bytes[start..end].repeat(*times);
            drop(bytes.splice(end..end, repeated));
        }
        Mutation::Truncate { at } => bytes.truncate(place(*at, len)),
    }
}

/// Runs an entry point and checks what it took.
fn run(entry: fn(&[u8]), input: &[u8]) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    entry(input);
    let took = ALLOCATOR.peak_usage().saturating_sub(before);
    let limit = MEMORY_BASE + MEMORY_PER_BYTE * input.len();
    assert!(took <= limit, "{took} bytes of memory for {} bytes of input", input.len());
}

fn mutated(seeds: &[Vec<u8>]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds = proptest::sample::select(seeds.to_vec());
    (seeds, vec(mutation(), 0..6)).prop_map(|(mut bytes, mutations)| {
        for mutation in &mutations {
            apply(&mut bytes, mutation);
        }
        bytes
    })
}

/// Small weight files: a whole tiny model, and headers on their own.
fn weight_files() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path).unwrap();
    let header = GgufWriter::default()
        .string("general.architecture", "gemma3")
        .u32("gemma3.block_count", 2)
        .u32("gemma3.embedding_length", 64)
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &["<unk>", "<s>", "a", "b", "ab", "▁"])
        .i32s("tokenizer.ggml.token_type", &[2, 3, 1, 1, 1, 1]);
    vec![std::fs::read(&path).unwrap(), header.finish()]
}

fn templates() -> Vec<Vec<u8>> {
    [
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}\0hello",
        "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% set x = namespace(n=0) %}\
         {% for m in messages %}{% set x.n = x.n + loop.index0 %}{{ raise_exception('no') if x.n > 99 }}\
         {% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}\
         {% endif %}{{ m.content.split('x')[0].strip() }}{% endfor %}{{ bos_token ~ 'y' * 9 }}\0xyz",
        "{% macro f(a, b=1) %}{{ a[b:] }}{{ f(a) if false }}{% endmacro %}{{ f(messages[1].content) }}\0ab",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// What may stay behind after all inputs: lazily built tables, buffers of the runtime.
const MEMORY_KEPT: usize = 4 << 20;

fn check(cases: u32, seeds: &[Vec<u8>], entry: fn(&[u8])) {
    for seed in seeds {
        run(entry, seed);
    }
    let before = ALLOCATOR.current_usage();
    // On a thread of its own: the tokenizers crate keeps some hundred bytes of each tokenizer that a
    // thread has used, until the thread ends.
    std::thread::scope(|scope| scope.spawn(|| mutate(cases, seeds, entry)).join()).unwrap();
    let kept = ALLOCATOR.current_usage().saturating_sub(before);
    assert!(kept <= MEMORY_KEPT, "{kept} bytes stay behind after {cases} inputs");
}

fn mutate(cases: u32, seeds: &[Vec<u8>], entry: fn(&[u8])) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    // The same inputs each time: what is found at random belongs to cargo-fuzz, not to somebody's CI.
    let generator = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, generator);
    let outcome = runner.run(&mutated(seeds), |input| {
        run(entry, &input);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

// One test, since memory is counted for the whole process.
#[test]
fn mutated_inputs_do_no_harm() {
    check(20_000, &weight_files(), oarlock_fuzz::gguf);
    check(20_000, &templates(), oarlock_fuzz::template);
    check(60_000, &oarlock_fuzz::valid_requests(), oarlock_fuzz::http);
}
