//! Tokenizers of a `tokenizer.json`, whose text the `tokenizers` crate encodes as the file says.

use oarlock_types::TokenId;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::Precompiled;

use crate::TextError;
use crate::byte_level::append_bytes;
use crate::json_decoder::{TextStart, Writing, understand, unsupported};
use crate::sentence_piece::SPACE_MARK;
use crate::token_table::TokenTable;
use crate::tokenizer::{encode_ordinary, raw_byte};

/// Encodes text. The file describes its added tokens itself.
pub(crate) struct JsonEncoder {
    /// Matches special tokens in the text.
    parsing: Box<tokenizers::Tokenizer>,
    /// Takes special tokens for ordinary text.
    literal: Box<tokenizers::Tokenizer>,
}

/// The parts of a file that the `tokenizers` crate takes for granted: its reader panics on these where
/// they are damaged, and gives errors for the others.
#[derive(Deserialize)]
struct Outline {
    #[serde(default, rename = "decoder")]
    _decoder: Value,
    #[serde(default)]
    normalizer: Value,
}

impl Outline {
    fn check(text: &str) -> serde_json::Result<()> {
        let outline: Outline = serde_json::from_str(text)?;
        check_normalizer(outline.normalizer)
    }
}

/// An error for a compiled normalizer that cannot be read.
fn check_normalizer(mut normalizer: Value) -> serde_json::Result<()> {
    if normalizer["type"] == "Precompiled" {
        return serde_json::from_value::<Precompiled>(normalizer).map(|_| ());
    }
    match normalizer.get_mut("normalizers").map(Value::take) {
        Some(Value::Array(steps)) => steps.into_iter().try_for_each(check_normalizer),
        _ => Ok(()),
    }
}

impl JsonEncoder {
    /// Reads a file: the encoder, what its tokens stand for, and how a text begins. Memory is in
    /// proportion to the file's length.
    pub(crate) fn read(text: &str) -> Result<(Self, TokenTable, TextStart), TextError> {
        let invalid = |error: &dyn std::fmt::Display| TextError::InvalidJson(error.to_string());
        Outline::check(text).map_err(|error| invalid(&error))?;
        let parsing = tokenizers::Tokenizer::from_bytes(text).map_err(|error| invalid(&error))?;
        let (writing, start) = understand(parsing.get_decoder())?;
        if writing == Writing::Marks
            && let Some(other) = other_model(parsing.get_model())
        {
            return Err(unsupported(&format!("its model is {other}")));
        }
        let table = token_table(&parsing, writing, text.len())?;
        let mut literal = parsing.clone();
        literal.set_encode_special_tokens(true);
        Ok((Self { parsing: Box::new(parsing), literal: Box::new(literal) }, table, start))
    }

    /// Appends the tokens of `text`.
    pub(crate) fn encode(
        &self,
        text: &str,
        parse_special: bool,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TextError> {
        encode_ordinary(if parse_special { &self.parsing } else { &self.literal }, text, ids)
    }

    /// What a token that has marks stands for without them; `None` for one without.
    pub(crate) fn without_marks(&self, id: TokenId) -> Option<Vec<u8>> {
        let text = self.parsing.id_to_token(id.0)?;
        text.contains(SPACE_MARK).then(|| text.replace(SPACE_MARK, "").into_bytes())
    }
}

/// The model's name where it is not BPE.
fn other_model(model: &ModelWrapper) -> Option<&'static str> {
    match model {
        ModelWrapper::BPE(_) => None,
        ModelWrapper::WordPiece(_) => Some("WordPiece"),
        ModelWrapper::WordLevel(_) => Some("WordLevel"),
        ModelWrapper::Unigram(_) => Some("Unigram"),
    }
}

/// What the tokens stand for.
fn token_table(
    tokenizer: &tokenizers::Tokenizer,
    writing: Writing,
    file_len: usize,
) -> Result<TokenTable, TextError> {
    let size = tokenizer.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1);
    // Every token takes some bytes of the file, so that only wide gaps between ids can get here.
    if size > file_len {
        let message = format!("token id {} in a file of {file_len} bytes", size - 1);
        return Err(TextError::InvalidJson(message));
    }
    let added = tokenizer.get_added_tokens_decoder();
    let mut table = TokenTable::with_capacity(size);
    let mut longest = 0;
    for id in 0..size as u32 {
        let added = added.get(&id);
        let is_special = added.is_some_and(|token| token.special);
        table.push(is_special, |bytes| {
            match (writing, added) {
                (Writing::ByteLevel, Some(token)) => bytes.extend(token.content.bytes()),
                // A text of its own, in which nothing stands for anything else.
                (Writing::Marks, Some(token)) if is_special => bytes.extend(token.content.bytes()),
                (Writing::ByteLevel, None) => {
                    append_bytes(&tokenizer.id_to_token(id).unwrap_or_default(), bytes);
                }
                (Writing::Marks, _) => {
                    let text = tokenizer.id_to_token(id).unwrap_or_default();
                    longest = longest.max(text.len());
                    append_marked(&text, bytes);
                }
            }
            Ok(())
        })?;
    }
    // A text may write a token's spaces as marks.
    table.raise_max_token_bytes(longest);
    Ok(table)
}

/// Appends what a token of SentencePiece's writing stands for.
fn append_marked(text: &str, bytes: &mut Vec<u8>) {
    match raw_byte(text).filter(|_| text.len() == "<0x0A>".len()) {
        Some(byte) => bytes.push(byte),
        None => bytes.extend(text.replace(SPACE_MARK, " ").bytes()),
    }
}

#[cfg(test)]
#[path = "json_tokenizer_tests.rs"]
mod tests;
