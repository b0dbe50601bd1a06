//! Tests of SentencePiece's BPE on a small vocabulary, against the definition.

use oarlock_types::{SentencePieceVocabulary, TokenizerSource};
use proptest::prelude::*;

use super::*;
use crate::{Detokenizer, Tokenizer};

/// Control tokens, all bytes, user-defined tokens, then pieces by falling score.
fn vocabulary() -> SentencePieceVocabulary {
    let mut vocabulary = SentencePieceVocabulary::default();
    let mut push = |text: &str, score: f32, kind| {
        vocabulary.tokens.push(text.to_owned());
        vocabulary.scores.push(score);
        vocabulary.kinds.push(kind);
    };
    for text in ["<unk>", "<s>", "</s>"] {
        push(text, 0.0, TokenKind::Control);
    }
    for byte in 0..=255 {
        push(&format!("<0x{byte:02X}>"), 0.0, TokenKind::Byte);
    }
    push("▁▁", -1000.0, TokenKind::UserDefined);
    push("[tool]", -1000.0, TokenKind::UserDefined);
    push("ab", 5.0, TokenKind::Unused);
    let pieces = [
        "▁a", "he", "ll", "llo", "▁hello", "aa", "aaaa", "b▁c", "▁c", "日本", "hello", "a", "b",
        "c", "h", "e", "l", "o", "▁", "日", "本", "s", "<", ">",
    ];
    for (rank, text) in pieces.iter().enumerate() {
        push(text, -(rank as f32), TokenKind::Normal);
    }
    vocabulary
}

fn tokenizer() -> Tokenizer {
    Tokenizer::new(&TokenizerSource::SentencePiece(vocabulary())).unwrap()
}

fn id(text: &str) -> TokenId {
    let position = vocabulary().tokens.iter().position(|token| token == text);
    TokenId(position.unwrap_or_else(|| panic!("{text} is no token")) as u32)
}

fn ids(texts: &[&str]) -> Vec<TokenId> {
    texts.iter().map(|text| id(text)).collect()
}

/// The definition: of all adjacent pairs that make a piece, the leftmost of the best ones is merged,
/// until there is none.
fn naive(text: &str) -> Vec<TokenId> {
    let vocabulary = vocabulary();
    let find = |text: &str| {
        let mergeable = |kind| matches!(kind, TokenKind::Normal | TokenKind::UserDefined);
        let text = text.replace(' ', "▁");
        (0..vocabulary.tokens.len())
            .find(|id| mergeable(vocabulary.kinds[*id]) && vocabulary.tokens[*id] == text)
    };
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for left in 1..symbols.len() {
            let joined = symbols[left - 1].clone() + &symbols[left];
            if let Some(id) = find(&joined) {
                let score = vocabulary.scores[id];
                if best.is_none_or(|(best, _)| score > best) {
                    best = Some((score, left));
                }
            }
        }
        let Some((_, left)) = best else { break };
        let right = symbols.remove(left);
        symbols[left - 1] += &right;
    }
    let tokens_of = |symbol: &String| match find(symbol) {
        Some(id) => vec![TokenId(id as u32)],
        None => symbol.bytes().map(|byte| id(&format!("<0x{byte:02X}>"))).collect(),
    };
    symbols.iter().flat_map(tokens_of).collect()
}

#[test]
fn the_best_pair_goes_first() {
    let tokenizer = tokenizer();
    let encode = |text| tokenizer.encode(text, true).unwrap();
    // "he", "llo" by way of "ll", then the whole word.
    assert_eq!(encode(" hello"), ids(&["▁hello"]));
    assert_eq!(encode("hello"), ids(&["hello"]));
    assert_eq!(encode("hellhe"), ids(&["he", "ll", "he"]));
    // Leftmost of equal ones; an odd one is left over.
    assert_eq!(encode("aaaaaaa"), ids(&["aaaa", "aa", "a"]));
    // A space joins the letter after it, and the one before it where a piece says so.
    assert_eq!(encode("b a b c"), ids(&["b", "▁a", "▁", "b▁c"]));
    assert_eq!(encode("ab"), ids(&["a", "b"]), "an unused token");
    assert_eq!(encode(""), []);
}

#[test]
fn what_has_no_piece_becomes_bytes() {
    let tokenizer = tokenizer();
    let encoded = tokenizer.encode("日é\n", true).unwrap();
    assert_eq!(encoded, ids(&["日", "<0xC3>", "<0xA9>", "<0x0A>"]));
    assert_eq!(tokenizer.decode(&encoded, true), "日é\n");
    assert_eq!(tokenizer.token_bytes(id("<0xC3>")), b"\xc3");
    assert_eq!(tokenizer.token_text(id("<0xC3>")), "\u{fffd}");
    assert_eq!(tokenizer.token_bytes(id("▁hello")), b" hello");
    assert_eq!(tokenizer.token_text(id("▁▁")), "  ");
    assert_eq!(tokenizer.max_token_bytes(), "▁hello".len());
}

#[test]
fn special_tokens_are_matched_first() {
    let tokenizer = tokenizer();
    let parsed = tokenizer.encode("<s>a  [tool]</s>", true).unwrap();
    assert_eq!(parsed, ids(&["<s>", "a", "▁▁", "[tool]", "</s>"]));
    assert_eq!(tokenizer.decode(&parsed, true), "a  [tool]");
    assert_eq!(tokenizer.decode(&parsed, false), "<s>a  [tool]</s>");
    // Without parsing, control tokens are ordinary text, and never the result of merging.
    let literal = tokenizer.encode("<s>[tool]", false).unwrap();
    assert_eq!(literal, ids(&["<", "s", ">", "[tool]"]));
}

#[test]
fn a_space_is_put_before_the_text_where_the_vocabulary_wants_it() {
    let vocabulary = SentencePieceVocabulary { add_space_prefix: true, ..vocabulary() };
    let tokenizer = Tokenizer::new(&TokenizerSource::SentencePiece(vocabulary)).unwrap();
    let encode = |text| tokenizer.encode(text, true).unwrap();
    assert_eq!(encode("hello"), ids(&["▁hello"]));
    assert_eq!(encode(" a"), ids(&["▁▁", "a"]));
    assert_eq!(encode("[tool]a"), ids(&["▁", "[tool]", "a"]));
    assert_eq!(encode("<s>hello"), ids(&["<s>", "hello"]));
    assert_eq!(encode(""), []);
    // A whole text does not have that space; one that goes on has what its tokens stand for.
    assert_eq!(tokenizer.decode(&encode("hello"), true), "hello");
    assert_eq!(tokenizer.token_text(id("▁hello")), " hello");
    let mut continued = String::new();
    Detokenizer::new(true).push(&tokenizer, id("▁hello"), &mut continued);
    assert_eq!(continued, " hello");
}

#[test]
fn the_mark_of_a_space_is_a_space() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode("▁hello", true), tokenizer.encode(" hello", true));
    // No text is longer than its number of tokens times the longest token.
    let marks = tokenizer.encode("▁▁▁▁", true).unwrap();
    assert!(marks.len() * tokenizer.max_token_bytes() >= "▁▁▁▁".len());
}

/// A megabyte of one character: the heap, not the square of the length, decides the time.
#[test]
fn long_runs_are_no_problem() {
    let tokenizer = tokenizer();
    for unit in ["a", " ", "l", "日", "<", "b c", "[tool]", "\u{0}"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let tokens = tokenizer.encode(&text, true).unwrap();
        assert_eq!(tokenizer.decode(&tokens, true), text);
    }
    let runs = tokenizer.encode(&"a".repeat(1 << 20), true).unwrap();
    assert_eq!(runs, vec![id("aaaa"); 1 << 18]);
    let spaces = tokenizer.encode(&" ".repeat(1 << 20), true).unwrap();
    assert_eq!(spaces, vec![id("▁▁"); 1 << 19]);
}

#[test]
fn bad_vocabularies_are_refused() {
    let refused = |change: fn(&mut SentencePieceVocabulary)| {
        let mut vocabulary = vocabulary();
        change(&mut vocabulary);
        let source = TokenizerSource::SentencePiece(vocabulary);
        Tokenizer::new(&source).err().unwrap().to_string()
    };
    assert!(refused(|v| v.kinds.truncate(3)).contains("3 token types"));
    assert!(refused(|v| v.scores.truncate(3)).contains("3 scores"));
    assert!(refused(|v| v.scores[2] = f32::NAN).contains("token 2"));
    assert!(refused(|v| v.kinds[3 + 0x41] = TokenKind::Unused).contains("0x41"));
    assert!(refused(|v| "0x41".clone_into(&mut v.tokens[3 + 0x41])).contains("0x41"));
}

#[test]
fn ranks_are_in_the_order_of_scores() {
    let scores = [f32::NEG_INFINITY, -1000.0, -1.0, -1e-40, 0.0, 1e-40, 2.5, f32::INFINITY];
    assert!(scores.is_sorted_by(|a, b| rank(*a) < rank(*b)));
    assert_eq!(rank(-0.0), rank(0.0));
}

/// Texts of known pieces with others between them.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ abchelo]{1,6}",
        1 => "[日本é<>s]{1,3}",
        1 => prop::sample::select(vec!["[tool]", "<s>", "  ", "   ", "\n", "🚀"])
            .prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().replace(SPACE_MARK, " "))
}

proptest! {
    #[test]
    // No two spaces in a row: those are matched before anything else is merged.
    fn merging_follows_the_definition(text in "( ?[abchelo日本é]){0,16} ?") {
        prop_assert_eq!(tokenizer().encode(&text, false).unwrap(), naive(&text));
    }

    #[test]
    fn texts_come_back(text in text(), parse_special: bool, add_space_prefix: bool) {
        let source = SentencePieceVocabulary { add_space_prefix, ..vocabulary() };
        let tokenizer = Tokenizer::new(&TokenizerSource::SentencePiece(source)).unwrap();
        let tokens = tokenizer.encode(&text, parse_special).unwrap();
        prop_assert_eq!(&tokenizer.decode(&tokens, false), &text);
        // A piece has no more bytes than the longest token.
        prop_assert!(tokens.len() * tokenizer.max_token_bytes() >= text.len());
    }

    #[test]
    fn tokens_one_by_one_give_the_whole_text(
        tokens in prop::collection::vec(0_u32..290, 0..40),
        skip_special: bool,
    ) {
        let tokenizer = tokenizer();
        let tokens: Vec<TokenId> = tokens.into_iter().map(TokenId).collect();
        let mut text = String::new();
        let mut detokenizer = Detokenizer::new(skip_special);
        for token in &tokens {
            detokenizer.push(&tokenizer, *token, &mut text);
        }
        detokenizer.finish(&mut text);
        let shown = tokens.iter().filter(|id| !(skip_special && tokenizer.is_special(**id)));
        let bytes: Vec<u8> = shown.flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}
