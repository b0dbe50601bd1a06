//! Header parsing: a file made here is read back; a damaged or hostile one is an error that says what
//! is wrong, never a panic and never memory beyond the file's size.

use proptest::prelude::*;

use super::{Header, Value, parse};

/// Writes small GGUF files.
#[derive(Default)]
struct Writer {
    keys: Vec<u8>,
    num_keys: u64,
    tensors: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.extend([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self.num_keys += 1;
        self
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: usize) -> Self {
        let shape: Vec<u8> = dimensions.iter().flat_map(|size| size.to_le_bytes()).collect();
        let offset = (self.data.len() as u64).to_le_bytes();
        let rank = (dimensions.len() as u32).to_le_bytes();
        self.tensors.extend([&string(name)[..], &rank, &shape, &kind.to_le_bytes(), &offset].concat());
        self.num_tensors += 1;
        self.data.resize((self.data.len() + bytes).next_multiple_of(32), 7);
        self
    }

    fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF\x03\x00\x00\x00".to_vec();
        file.extend(self.num_tensors.to_le_bytes());
        file.extend(self.num_keys.to_le_bytes());
        file.extend(self.keys);
        file.extend(self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

fn array_of_strings(texts: &[&str]) -> Vec<u8> {
    let mut bytes = [&8_u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
    texts.iter().for_each(|text| bytes.extend(string(text)));
    bytes
}

fn sample() -> Vec<u8> {
    Writer::default()
        .key("general.architecture", 8, &string("qwen2"))
        .key("count", 4, &7_u32.to_le_bytes())
        .key("theta", 6, &1.5_f32.to_le_bytes())
        .key("flag", 7, &[1])
        .key("tokens", 9, &array_of_strings(&["a", "Ġb"]))
        .tensor("norm", &[4], 0, 16)
        .tensor("weight", &[64, 3], 8, 3 * 2 * 34)
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
    assert_eq!(metadata.f32("theta").unwrap(), 1.5);
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
    assert_eq!(metadata.u32("theta").unwrap_err().to_string(), "metadata key theta: not a 32-bit count");
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
    let file = Writer::default().key("tokens", 9, &array).finish();
    assert!(error(&file).contains("metadata key tokens: it claims 1152921504606846976 array elements"));

    let nested = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat().repeat(9);
    assert!(error(&Writer::default().key("deep", 9, &nested).finish()).contains("nested more than 4"));
}

#[test]
fn impossible_tensors_are_named() {
    let bad = |dimensions: &[u64], kind| error(&Writer::default().tensor("w", dimensions, kind, 64).finish());
    assert!(bad(&[1 << 40, 1 << 40], 0).contains("tensor w: its shape"));
    assert!(bad(&[0, 4], 0).contains("is empty"));
    assert!(bad(&[33, 2], 8).contains("whole Q8_0 blocks"));
    assert!(bad(&[32, 2], 3).contains("type 3 is not supported"));
    assert!(bad(&[1, 1, 1, 1, 1], 0).contains("5 dimensions"));
    assert!(bad(&[1024, 4], 0).contains("truncated"));
    let twice = Writer::default().tensor("w", &[4], 0, 16).tensor("w", &[4], 0, 16).finish();
    assert!(error(&twice).contains("listed twice"));
    let key_twice = Writer::default().key("k", 7, &[0]).key("k", 7, &[0]).finish();
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
