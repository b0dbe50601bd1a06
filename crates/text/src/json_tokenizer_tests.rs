//! Tests of `tokenizer.json` files in the shapes that SentencePiece's families have, against the
//! `tokenizers` library (`fixtures/tokenizers`, made by its `make.py`).

use oarlock_types::TokenizerSource;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Detokenizer, Tokenizer};

const EXPECTED: &str = include_str!("../../testkit/fixtures/tokenizers/expected.json");
const SHAPES: [(&str, &str); 7] = [
    ("llama-2", include_str!("../../testkit/fixtures/tokenizers/llama-2.json")),
    ("phi-3", include_str!("../../testkit/fixtures/tokenizers/phi-3.json")),
    ("mistral", include_str!("../../testkit/fixtures/tokenizers/mistral.json")),
    ("metaspace-always", include_str!("../../testkit/fixtures/tokenizers/metaspace-always.json")),
    ("metaspace-first", include_str!("../../testkit/fixtures/tokenizers/metaspace-first.json")),
    ("metaspace-never", include_str!("../../testkit/fixtures/tokenizers/metaspace-never.json")),
    ("gemma", include_str!("../../testkit/fixtures/tokenizers/gemma.json")),
];

fn file(shape: &str) -> &'static str {
    SHAPES.iter().find(|(name, _)| *name == shape).unwrap().1
}

fn read(text: &str) -> Result<Tokenizer, TextError> {
    Tokenizer::new(&TokenizerSource::Json(text.to_owned()))
}

fn tokenizer(shape: &str) -> Tokenizer {
    read(file(shape)).unwrap()
}

/// The file of a shape with something changed.
fn changed(shape: &str, change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TextError> {
    let mut json = serde_json::from_str(file(shape)).unwrap();
    change(&mut json);
    read(&json.to_string())
}

fn streamed(tokenizer: &Tokenizer, mut detokenizer: Detokenizer, ids: &[TokenId]) -> String {
    let mut text = String::new();
    for id in ids {
        detokenizer.push(tokenizer, *id, &mut text);
    }
    detokenizer.finish(&mut text);
    text
}

/// One text, encoded in one way.
fn check(tokenizer: &Tokenizer, text: &str, parse_special: bool, expected: &Value, what: &str) {
    let ids = tokenizer.encode(text, parse_special).unwrap();
    assert_eq!(json!(ids.iter().map(|id| id.0).collect::<Vec<_>>()), expected["ids"], "{what}");
    assert_eq!(tokenizer.decode(&ids, false), expected["decoded"], "{what}");
    assert_eq!(tokenizer.decode(&ids, true), expected["without_special"], "{what}");
    for end in 0..=ids.len() {
        let (ids, rest) = ids.split_at(end);
        let decoded = streamed(tokenizer, Detokenizer::at_start(false), ids);
        assert_eq!(decoded, tokenizer.decode(ids, false), "{what} up to {end}");
        // What continues a text has all of its bytes.
        let bytes: Vec<u8> =
            rest.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
        let continued = streamed(tokenizer, Detokenizer::new(false), rest);
        assert_eq!(continued, String::from_utf8_lossy(&bytes), "{what} from {end}");
    }
}

#[test]
fn tokens_and_texts_are_those_of_the_library() {
    let expected: Value = serde_json::from_str(EXPECTED).unwrap();
    assert_eq!(expected.as_object().unwrap().len(), SHAPES.len());
    for (shape, file) in SHAPES {
        let tokenizer = read(file).unwrap();
        for case in expected[shape].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            check(&tokenizer, text, true, &case["parsed"], &format!("{shape}: {text:?}"));
            let what = format!("{shape}: {text:?} literally");
            check(&tokenizer, text, false, &case["literal"], &what);
        }
    }
}

#[test]
fn an_answer_keeps_the_space_that_it_begins_with() {
    for (shape, alone) in [("llama-2", "boat"), ("metaspace-first", "boat"), ("gemma", " boat")] {
        let tokenizer = tokenizer(shape);
        let ids = tokenizer.encode("The boat", true).unwrap();
        let answer = &ids[ids.len() - 1..];
        assert_eq!(tokenizer.token_text(answer[0]), " boat", "{shape}");
        assert_eq!(streamed(&tokenizer, Detokenizer::new(true), answer), " boat", "{shape}");
        assert_eq!(tokenizer.decode(answer, true), alone, "{shape}");
        // A token that is left out, or that there is not, begins no text.
        let before = [TokenId(1), TokenId(9999), answer[0]];
        assert_eq!(tokenizer.decode(&before, true), alone, "{shape}");
        assert_ne!(tokenizer.decode(&before, false), alone, "{shape}");
    }
}

#[test]
fn tokens_stand_for_bytes() {
    let tokenizer = tokenizer("phi-3");
    let id = |text: &str| {
        let json: Value = serde_json::from_str(file("phi-3")).unwrap();
        TokenId(json["model"]["vocab"][text].as_u64().unwrap() as u32)
    };
    assert_eq!(tokenizer.token_bytes(id("<0xF0>")), b"\xf0");
    assert_eq!(tokenizer.token_bytes(id("▁▁")), b"  ");
    assert_eq!(tokenizer.token_bytes(id("<s>")), b"<s>");
    assert!(tokenizer.is_special(id("<s>")) && !tokenizer.is_special(id("▁")));
    // Four marks in the text are twelve bytes.
    assert!(tokenizer.max_token_bytes() >= "▁▁▁▁".len());
    let mut text = String::new();
    let mut detokenizer = Detokenizer::at_start(true);
    for byte in ["<0xF0>", "<0x9F>", "<0x9A>"] {
        detokenizer.push(&tokenizer, id(byte), &mut text);
        assert!(text.is_empty() && detokenizer.is_pending());
    }
    detokenizer.push(&tokenizer, id("<0xA3>"), &mut text);
    assert_eq!(text, "🚣");
}

/// The library would write `<0x0A>` out; what is meant is a byte.
#[test]
fn a_metaspace_decoder_alone_has_bytes_too() {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"});
    let tokenizer = changed("mistral", |json| json["decoder"] = metaspace).unwrap();
    let ids = tokenizer.encode("boat\t🚣", true).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "boat\t🚣");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let refused = |decoder: Value| {
        changed("llama-2", |json| json["decoder"] = decoder).err().unwrap().to_string()
    };
    let word_piece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let error = refused(word_piece);
    assert!(error.contains("WordPiece") && error.contains("token ids work"), "{error}");
    assert!(refused(Value::Null).contains("no decoder"));
    let replace =
        |text: &str| json!({"type": "Replace", "pattern": {"String": text}, "content": " "});
    let (bytes, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let strip =
        |start, stop| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    let metaspace = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"});
    for steps in [
        json!([]),
        json!([replace("▁"), bytes, fuse, strip(1, 1)]),
        json!([replace("▁"), bytes, fuse, strip(2, 0)]),
        json!([replace("▁"), bytes, strip(1, 0), fuse]),
        json!([replace("_"), bytes, fuse]),
        json!([fuse, {"type": "BPEDecoder", "suffix": "</w>"}]),
        json!([bytes, metaspace]),
    ] {
        let error = refused(json!({"type": "Sequence", "decoders": steps}));
        let last = steps.as_array().unwrap().last();
        let name = last.map_or("Sequence", |step| step["type"].as_str().unwrap());
        assert!(error.contains("Sequence") && error.contains(name), "{error}");
    }
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.0]]});
    let error = changed("gemma", |json| json["model"] = unigram).err().unwrap().to_string();
    assert!(error.contains("model is Unigram"), "{error}");
}

#[test]
fn ids_with_wide_gaps_take_no_memory() {
    for id in [30_000_u32, u32::MAX] {
        let far = |json: &mut Value| json["model"]["vocab"]["far"] = id.into();
        let error = changed("llama-2", far).err().unwrap().to_string();
        assert!(error.contains(&format!("token id {id}")), "{error}");
    }
    let near = |json: &mut Value| json["model"]["vocab"]["near"] = 2000.into();
    let tokenizer = changed("llama-2", near).unwrap();
    assert_eq!(tokenizer.vocab_size(), 2001);
    assert_eq!(tokenizer.token_bytes(TokenId(1999)), b"");
}

#[test]
fn damaged_files_are_errors() {
    let file = file("gemma");
    let decoder = file.find("\"decoder\"").unwrap();
    let ends = (0..decoder + 400).chain((decoder + 400..file.len() - 2).step_by(997));
    for end in ends.filter(|end| file.is_char_boundary(*end)) {
        assert!(read(&file[..end]).is_err(), "up to {end}");
    }
    for decoder in
        ["1e999", &"[".repeat(100_000), &format!("{}1{}", "[".repeat(200), "]".repeat(200))]
    {
        let text = format!("{{\"decoder\": {decoder}, {}", &file[1..]);
        assert!(read(&text).is_err());
    }
    let damaged = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let nested = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, damaged]});
    for normalizer in [damaged, nested, json!({"type": "Precompiled"}), json!("Precompiled")] {
        assert!(changed("gemma", |json| json["normalizer"] = normalizer).is_err());
    }
}

/// 128 KiB of one unit: no text takes the square of its length.
#[test]
fn long_runs_are_no_problem() {
    for shape in ["llama-2", "mistral", "metaspace-always", "gemma"] {
        let tokenizer = tokenizer(shape);
        for unit in ["a", " ", "日", "🚣", "the boat ", "<s>", "[END]", "<tool>", "▁", "\n"] {
            let text = "a".to_owned() + &unit.repeat((1 << 17) / unit.len());
            let literal = tokenizer.encode(&text, false).unwrap();
            assert_eq!(tokenizer.decode(&literal, false), text.replace('▁', " "), "{shape} {unit}");
            assert!(literal.len() * tokenizer.max_token_bytes() >= text.len());
            let _ = tokenizer.encode(&text, true).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn tokens_one_by_one_give_the_whole_text(
        shape in prop::sample::select(SHAPES.map(|(name, _)| name).to_vec()),
        ids in prop::collection::vec(0_u32..900, 0..30),
        skip_special: bool,
    ) {
        let tokenizer = tokenizer(shape);
        let ids: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
        let whole = tokenizer.decode(&ids, skip_special);
        let pieces = streamed(&tokenizer, Detokenizer::at_start(skip_special), &ids);
        prop_assert_eq!(&whole, &pieces);
        // Where the text begins is all that tells it from a text's continuation.
        let continued = streamed(&tokenizer, Detokenizer::new(skip_special), &ids);
        prop_assert!(continued.ends_with(whole.trim_start_matches(' ')) || shape.starts_with("meta"));
    }

    #[test]
    fn texts_come_back(text in "[ a-z\n日🚣é<>]{0,30}") {
        for shape in ["llama-2", "gemma", "metaspace-never"] {
            let tokenizer = tokenizer(shape);
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, false), &text, "{}", shape);
        }
    }
}
