//! Header parsing: a file made here is read back; a damaged or hostile one is an error that says what
//! is wrong, never a panic and never memory beyond the file's size.

use oarlock_testkit::GgufWriter as Writer;
use proptest::prelude::*;

use super::Value;
use super::header::{Header, parse};

fn sample() -> Vec<u8> {
    Writer::default()
        .string("general.architecture", "qwen2")
        .u32("count", 7)
        .f32("theta", 1.5)
        .raw_key("flag", 7, &[1])
        .strings("tokens", &["a", "Ġb"])
        .tensor("norm", &[4], 0, &[7; 16])
        .tensor("weight", &[64, 3], 8, &[7; 3 * 2 * 34])
        .finish()
}

fn error(bytes: &[u8]) -> String {
    parse(bytes).expect_err("the header is broken")
}

#[test]
fn a_good_header_is_read_back() {
    let file = sample();
    let Header { metadata, tensors } = parse(&file).unwrap();
    assert_eq!(metadata.str("general.architecture").unwrap(), "qwen2");
    assert_eq!(metadata.u32("count").unwrap(), 7);
    assert_eq!(metadata.find_f32("theta").unwrap(), Some(1.5));
    assert_eq!(metadata.get("flag"), Some(&Value::Bool(true)));
    assert_eq!(metadata.strings("tokens").unwrap(), ["a", "Ġb"]);
    let weight = &tensors["weight"];
    assert_eq!((weight.rows, weight.columns, weight.range.len()), (3, 64, 204));
    assert_eq!(file[tensors["norm"].range.start], 7);
}

#[test]
fn wrong_types_and_missing_keys_are_named() {
    let metadata = parse(&sample()).unwrap().metadata;
    assert_eq!(metadata.u32("gone").unwrap_err().to_string(), "metadata key gone: missing");
    assert_eq!(
        metadata.u32("theta").unwrap_err().to_string(),
        "metadata key theta: not a 32-bit count"
    );
}

#[test]
fn files_of_other_kinds_are_refused() {
    assert!(error(b"").contains("magic"));
    assert!(error(b"PK\x03\x04 a zip file").contains("magic"));
    assert!(error(b"GGUF\x00\x00\x00\x03").contains("big-endian"));
    assert!(error(b"GGUF\x03").contains("truncated"));
}

#[test]
fn claims_beyond_the_file_are_refused_before_memory_is_taken() {
    let mut counts = b"GGUF\x03\x00\x00\x00".to_vec();
    counts.extend(u64::MAX.to_le_bytes());
    counts.extend(1_u64.to_le_bytes());
    assert!(error(&counts).contains("claims 18446744073709551615 tensors"), "{}", error(&counts));

    let array = [&8_u32.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat();
    let file = Writer::default().raw_key("tokens", 9, &array).finish();
    assert!(
        error(&file).contains("metadata key tokens: it claims 1152921504606846976 array elements")
    );

    let nested = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat().repeat(9);
    assert!(
        error(&Writer::default().raw_key("deep", 9, &nested).finish())
            .contains("nested more than 4")
    );
}

/// Flags of layers are kept, the tables of some tokenizers are not.
#[test]
fn long_arrays_of_small_numbers_are_skipped() {
    let array = |count: usize| {
        let head = [&7_u32.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        let file = Writer::default().raw_key("k", 9, &[head, vec![1; count]].concat()).u32("n", 3);
        let metadata = parse(&file.finish()).unwrap().metadata;
        assert_eq!(metadata.u32("n").unwrap(), 3);
        metadata.get("k").unwrap().clone()
    };
    assert_eq!(array(2), Value::Array(vec![Value::Bool(true); 2]));
    assert_eq!(array(5000), Value::Skipped(5000));
}

#[test]
fn impossible_tensors_are_named() {
    let bad = |dimensions: &[u64], kind| {
        error(&Writer::default().tensor("w", dimensions, kind, &[7; 64]).finish())
    };
    assert!(bad(&[1 << 40, 1 << 40], 0).contains("tensor w: its shape"));
    assert!(bad(&[0, 4], 0).contains("is empty"));
    assert!(bad(&[33, 2], 8).contains("whole Q8_0 blocks"));
    assert!(bad(&[256, 2], 19).contains("type 19 (IQ1_S) is not supported"));
    assert!(bad(&[1, 1, 1, 1, 1], 0).contains("5 dimensions"));
    assert!(bad(&[1024, 4], 0).contains("truncated"));
    let twice =
        Writer::default().tensor("w", &[4], 0, &[7; 16]).tensor("w", &[4], 0, &[7; 16]).finish();
    assert!(error(&twice).contains("listed twice"));
    let mut shared =
        Writer::default().tensor("a", &[8], 0, &[7; 32]).tensor("b", &[8], 0, &[7; 32]).finish();
    let offset = shared.windows(8).rposition(|bytes| bytes == 32_u64.to_le_bytes()).unwrap();
    shared[offset] = 0;
    assert!(error(&shared).contains("tensors a and b overlap"));
    let key_twice = Writer::default().raw_key("k", 7, &[0]).raw_key("k", 7, &[0]).finish();
    assert!(error(&key_twice).contains("there twice"));
}

#[test]
fn every_truncation_is_an_error() {
    let file = sample();
    let end = parse(&file).unwrap().tensors.values().map(|info| info.range.end).max();
    for len in 0..end.unwrap() {
        parse(&file[..len]).expect_err("a truncated file was taken");
    }
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut file = sample();
        for (at, value) in flips {
            let at = at.index(file.len());
            file[at] = value;
        }
        if let Ok(header) = parse(&file) {
            for info in header.tensors.values() {
                prop_assert!(info.range.end <= file.len());
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = b"GGUF\x03\x00\x00\x00".to_vec();
        file.extend(tail);
        drop(parse(&file));
    }
}
