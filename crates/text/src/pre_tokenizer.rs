//! Pre-tokenizers: how a text is cut before BPE, by llama.cpp's names.
//!
//! None of them normalizes: Qwen's `tokenizer.json` composes characters (NFC), but llama.cpp and
//! what `transformers` makes of a GGUF file do not, and the reference cases follow them. The patterns
//! are those of the models' own `tokenizer.json`; where llama.cpp approximates them (it has no classes
//! of upper and lower case beyond ASCII), these cut as the model was trained.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::TextError;

/// Contractions only in lower case, runs of digits whole.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Digits in groups of at most three.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// OpenAI's o200k: words are also cut before a capital letter, marks belong to them, and contractions to
/// the word before.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's: o200k without contractions, digits one by one.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// One digit.
const DIGIT: &str = r"\p{N}";

/// How a text is prepared for BPE.
pub(crate) struct Preparation {
    /// Regular expressions, applied one after the other, each to the pieces of the one before.
    patterns: &'static [&'static str],
    /// Whether a piece that is a token is taken as it is, without merging.
    pub(crate) ignore_merges: bool,
}

const TABLE: &[(&str, Preparation)] = &[
    ("dbrx", Preparation { patterns: &[LLAMA3], ignore_merges: false }),
    ("deepseek-r1-qwen", Preparation { patterns: &[QWEN2], ignore_merges: false }),
    ("gpt-2", Preparation { patterns: &[GPT2], ignore_merges: false }),
    ("gpt-4o", Preparation { patterns: &[O200K], ignore_merges: false }),
    ("llama-bpe", Preparation { patterns: &[LLAMA3], ignore_merges: true }),
    ("llama-v3", Preparation { patterns: &[LLAMA3], ignore_merges: true }),
    ("llama3", Preparation { patterns: &[LLAMA3], ignore_merges: true }),
    ("qwen2", Preparation { patterns: &[QWEN2], ignore_merges: false }),
    ("smaug-bpe", Preparation { patterns: &[LLAMA3], ignore_merges: false }),
    ("smollm", Preparation { patterns: &[DIGIT, GPT2], ignore_merges: false }),
    ("starcoder", Preparation { patterns: &[DIGIT, GPT2], ignore_merges: false }),
    ("tekken", Preparation { patterns: &[TEKKEN], ignore_merges: true }),
];

/// The preparation that `tokenizer.ggml.pre` names.
pub(crate) fn preparation(name: &str) -> Result<&'static Preparation, TextError> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, preparation)| preparation).ok_or_else(
        || {
            let known = TABLE.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
            TextError::UnknownPreTokenizer { name: name.to_owned(), known }
        },
    )
}

impl Preparation {
    /// The pre-tokenizer: the patterns, then the byte-level alphabet.
    pub(crate) fn pre_tokenizer(&self) -> Result<PreTokenizerWrapper, TextError> {
        let mut steps = Vec::with_capacity(self.patterns.len() + 1);
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| TextError::InvalidVocabulary(error.to_string()))?;
            steps.push(split.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    #[test]
    fn every_known_pattern_compiles() {
        for (_, preparation) in TABLE {
            assert!(preparation.pre_tokenizer().is_ok());
        }
    }

    /// The pieces of a text, joined by bars.
    fn cuts(name: &str, text: &str) -> String {
        let mut cut = PreTokenizedString::from(text);
        preparation(name).unwrap().pre_tokenizer().unwrap().pre_tokenize(&mut cut).unwrap();
        let pieces = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let pieces: Vec<_> = pieces.into_iter().map(|(_, (from, to), _)| &text[from..to]).collect();
        pieces.join("|")
    }

    /// Against Python's `regex` module and the models' patterns.
    #[test]
    fn texts_are_cut_as_the_models_expect() {
        let english = "I don't: WE'LL see McDonald in 12345";
        let code = "getHTTPResponse(éÉ, 日本ab)  //\n\n  end";
        let marks = "नमस्ते e\u{301}A'd\t x";
        for (name, text, expected) in [
            ("dbrx", english, "I| don|'t|:| WE|'LL| see| McDonald| in| |123|45"),
            ("dbrx", code, "getHTTPResponse|(éÉ|,| 日本ab|)| | //\n\n| | end"),
            ("dbrx", marks, "नमस|्त|े| e|\u{301}A|'d|\t| x"),
            ("gpt-4o", english, "I| don't|:| WE'LL| see| Mc|Donald| in| |123|45"),
            ("gpt-4o", code, "get|HTTPResponse|(é|É|,| 日本ab|)| | //\n\n| | end"),
            ("gpt-4o", marks, "नमस्ते| e\u{301}|A'd|\t| x"),
            ("tekken", english, "I| don|'t|:| WE|'LL| see| Mc|Donald| in| |1|2|3|4|5"),
            ("tekken", code, "get|HTTPResponse|(é|É|,| 日本ab|)| | //\n\n| | end"),
            ("tekken", marks, "नमस्ते| e\u{301}|A|'d|\t| x"),
        ] {
            assert_eq!(cuts(name, text), expected, "{name}");
        }
        assert_eq!(cuts("smaug-bpe", english), cuts("llama-bpe", english));
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = preparation("no-such").err().unwrap().to_string();
        assert!(error.contains("\"no-such\"") && error.contains("qwen2"), "{error}");
    }
}
