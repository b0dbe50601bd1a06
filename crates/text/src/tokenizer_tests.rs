//! Tests of the tokenizer and the detokenizer on a small vocabulary.

use proptest::prelude::*;

use super::*;

/// All bytes, then some merges, then added tokens.
fn vocabulary() -> BpeVocabulary {
    let mut tokens: Vec<String> = alphabet().iter().map(char::to_string).collect();
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    let merges = ["h i", "Ġ hi", "æ Ĺ", "l l", "hi ll"];
    for merge in merges {
        tokens.push(merge.replace(' ', ""));
        kinds.push(TokenKind::Normal);
    }
    for (text, kind) in [
        ("<|end|>", TokenKind::Control),
        ("<call>", TokenKind::UserDefined),
        ("<｜é｜>", TokenKind::Control),
        ("[PAD]", TokenKind::Unused),
    ] {
        tokens.push(text.to_owned());
        kinds.push(kind);
    }
    let merges = merges.iter().map(|merge| (*merge).to_owned()).collect();
    BpeVocabulary { pre: "qwen2".to_owned(), tokens, kinds, merges }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::new(&TokenizerSource::Bpe(vocabulary())).unwrap()
}

fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

const HI: u32 = 256;
const SPACE_HI: u32 = 257;
const END: u32 = 261;
const CALL: u32 = 262;

#[test]
fn merges_and_special_tokens() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode("hi hi<|end|><call>", true), Ok(ids(&[HI, SPACE_HI, END, CALL])));
    // Without parsing, a control token's text is ordinary and a user-defined token is still one.
    let literal = tokenizer.encode("<|end|><call>", false).unwrap();
    assert_eq!(literal.len(), "<|end|>".len() + 1);
    assert_eq!(literal.last(), Some(&TokenId(CALL)));
    assert_eq!(tokenizer.decode(&literal, true), "<|end|><call>");
    assert_eq!(tokenizer.encode("", true), Ok(vec![]));
}

#[test]
fn special_tokens_can_be_left_out_of_the_text() {
    let tokenizer = tokenizer();
    let answer = ids(&[HI, END, 263, CALL, 9999]);
    assert_eq!(tokenizer.decode(&answer, true), "hi<call>");
    assert_eq!(tokenizer.decode(&answer, false), "hi<|end|><｜é｜><call>");
    assert_eq!(tokenizer.token_bytes(TokenId(SPACE_HI)), b" hi");
    assert_eq!(tokenizer.token_bytes(TokenId(9999)), b"");
    assert_eq!(tokenizer.token_text(TokenId(0xe6)), "\u{fffd}");
    assert!(tokenizer.is_special(TokenId(END)) && !tokenizer.is_special(TokenId(CALL)));
    assert_eq!(tokenizer.vocab_size(), 265);
    assert_eq!(tokenizer.max_token_bytes(), "<｜é｜>".len());
}

#[test]
fn a_character_waits_for_its_last_byte() {
    let tokenizer = tokenizer();
    let mut detokenizer = Detokenizer::new(true);
    let mut pieces = Vec::new();
    for byte in "a日".bytes() {
        let mut piece = String::new();
        detokenizer.push(&tokenizer, TokenId(u32::from(byte)), &mut piece);
        pieces.push((piece, detokenizer.is_pending()));
    }
    let expected = [("a", false), ("", true), ("", true), ("日", false)];
    assert_eq!(pieces, expected.map(|(text, pending)| (text.to_owned(), pending)));
}

#[test]
fn decomposed_text_stays_as_it_is() {
    let tokenizer = tokenizer();
    assert_ne!(tokenizer.encode("e\u{301}", true), tokenizer.encode("é", true));
}

#[test]
fn long_runs_are_no_problem() {
    for pre in ["qwen2", "gpt-4o", "tekken"] {
        let vocabulary = BpeVocabulary { pre: pre.to_owned(), ..vocabulary() };
        let tokenizer = Tokenizer::new(&TokenizerSource::Bpe(vocabulary)).unwrap();
        for unit in [" ", "a", "A", "Aa", "日", "\u{301}", "\n", "/", "<", "hi", "🚀"] {
            let text = unit.repeat(300_000 / unit.len());
            let tokens = tokenizer.encode(&text, true).unwrap();
            assert_eq!(tokenizer.decode(&tokens, true), text, "{pre} {unit}");
        }
    }
}

#[test]
fn bad_vocabularies_are_refused() {
    let refused = |change: fn(&mut BpeVocabulary)| {
        let mut vocabulary = vocabulary();
        change(&mut vocabulary);
        Tokenizer::new(&TokenizerSource::Bpe(vocabulary)).err().unwrap().to_string()
    };
    assert!(refused(|v| "bogus".clone_into(&mut v.pre)).contains("\"bogus\""));
    assert!(refused(|v| v.kinds.truncate(3)).contains("3 token types"));
    assert!(refused(|v| v.merges.push("nospace".to_owned())).contains("nospace"));
    assert!(refused(|v| v.merges.push("h zz".to_owned())).contains("zz"));
    assert!(refused(|v| v.kinds[0x20] = TokenKind::Unused).contains("0x20"));
    assert!(Tokenizer::new(&TokenizerSource::Json("{".to_owned())).is_err());
}

#[test]
fn tokenizer_json_gives_the_same_tokens() {
    let vocabulary = vocabulary();
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..261).map(|id| (vocabulary.tokens[id].clone(), id.into())).collect();
    let added = |id: u32, content: &str, special: bool| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special})
    };
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": false, "use_regex": true});
    let mut json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(END, "<|end|>", true), added(CALL, "<call>", false)],
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": vocabulary.merges},
    });
    let from_json = Tokenizer::new(&TokenizerSource::Json(json.to_string())).unwrap();
    let from_vocabulary = tokenizer();
    for text in ["hi hill <|end|>", "日本 <call>!"] {
        for parse_special in [false, true] {
            let tokens = from_json.encode(text, parse_special);
            assert_eq!(tokens, from_vocabulary.encode(text, parse_special));
            assert_eq!(from_json.decode(&tokens.unwrap(), false), text);
        }
    }
    json["decoder"] = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let refused = Tokenizer::new(&TokenizerSource::Json(json.to_string())).err().unwrap();
    assert!(refused.to_string().contains("decoder is WordPiece"), "{refused}");
}

proptest! {
    #[test]
    fn pieces_join_to_the_whole(tokens in prop::collection::vec(0_u32..266, 0..40), skip in any::<bool>()) {
        let tokenizer = tokenizer();
        let tokens = ids(&tokens);
        let mut detokenizer = Detokenizer::new(skip);
        let mut joined = String::new();
        let mut bytes = Vec::new();
        for id in &tokens {
            let mut piece = String::new();
            detokenizer.push(&tokenizer, *id, &mut piece);
            joined.push_str(&piece);
            if !(skip && tokenizer.is_special(*id)) {
                bytes.extend_from_slice(tokenizer.token_bytes(*id));
            }
        }
        detokenizer.finish(&mut joined);
        prop_assert_eq!(&joined, &String::from_utf8_lossy(&bytes));
        prop_assert_eq!(joined, tokenizer.decode(&tokens, skip));
    }

    #[test]
    fn text_survives(text in ".{0,40}") {
        let tokenizer = tokenizer();
        let tokens = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens, false), text);
    }
}
