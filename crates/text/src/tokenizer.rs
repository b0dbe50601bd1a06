//! The tokenizer: byte-level BPE through the `tokenizers` crate, special tokens by our own automaton.

use oarlock_types::{BpeVocabulary, TokenId, TokenKind, TokenizerSource};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, Vocab};

use crate::byte_level::{alphabet, append_bytes, occurs_in_utf8};
use crate::pre_tokenizer::preparation;
use crate::special_tokens::{Piece, SpecialTokens};
use crate::{Detokenizer, TextError};

/// Text to tokens and back, for one vocabulary. Built once, shared by all requests.
pub struct Tokenizer {
    encoder: Encoder,
    /// Bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// Where each token begins in `bytes`; one entry more than there are tokens.
    offsets: Vec<u32>,
    /// Whether each token is special: not part of an answer's text.
    special: Vec<bool>,
    max_token_bytes: usize,
}

enum Encoder {
    /// A vocabulary of the weight file.
    Bpe {
        /// Encodes ordinary text.
        ordinary: Box<tokenizers::Tokenizer>,
        /// Control and user-defined tokens.
        all: SpecialTokens,
        /// User-defined tokens only.
        user_defined: SpecialTokens,
    },
    /// A `tokenizer.json`, which describes its added tokens itself.
    Json {
        /// Matches special tokens in the text.
        parsing: Box<tokenizers::Tokenizer>,
        /// Takes special tokens for ordinary text.
        literal: Box<tokenizers::Tokenizer>,
    },
}

impl Tokenizer {
    /// Builds the tokenizer. Takes some hundred milliseconds for a large vocabulary: do it once, and
    /// not on a thread that others wait for.
    ///
    /// # Errors
    /// A pre-tokenizer that is not known, a vocabulary that contradicts itself, a `tokenizer.json`
    /// that is malformed or not byte-level.
    pub fn new(source: &TokenizerSource) -> Result<Self, TextError> {
        match source {
            TokenizerSource::Bpe(vocabulary) => Self::from_vocabulary(vocabulary),
            TokenizerSource::Json(text) => Self::from_json(text),
            TokenizerSource::SentencePiece(_) => Err(TextError::InvalidVocabulary(
                "SentencePiece vocabularies are not supported yet".to_owned(),
            )),
        }
    }

    fn from_vocabulary(vocabulary: &BpeVocabulary) -> Result<Self, TextError> {
        let preparation = preparation(&vocabulary.pre)?;
        check_vocabulary(vocabulary)?;
        let model = BPE::builder()
            .vocab_and_merges(ordinary_tokens(vocabulary), split_merges(vocabulary)?)
            .ignore_merges(preparation.ignore_merges)
            .build()
            .map_err(|error| TextError::InvalidVocabulary(error.to_string()))?;
        let mut ordinary = tokenizers::Tokenizer::new(model);
        ordinary.with_pre_tokenizer(Some(preparation.pre_tokenizer()?));
        let of_kinds = |kinds: &'static [TokenKind]| {
            SpecialTokens::new(
                tokens(vocabulary)
                    .filter(|(_, kind, _)| kinds.contains(kind))
                    .map(|(id, _, text)| (id, text)),
            )
        };
        let encoder = Encoder::Bpe {
            ordinary: Box::new(ordinary),
            all: of_kinds(&[TokenKind::Control, TokenKind::UserDefined])?,
            user_defined: of_kinds(&[TokenKind::UserDefined])?,
        };
        let mut tables = Tables::with_capacity(vocabulary.tokens.len());
        for (_, kind, text) in tokens(vocabulary) {
            match kind {
                TokenKind::Normal => append_bytes(text, &mut tables.bytes),
                TokenKind::Byte => tables.bytes.push(raw_byte(text)?),
                _ => tables.bytes.extend_from_slice(text.as_bytes()),
            }
            tables.end_token(kind == TokenKind::Control)?;
        }
        Ok(tables.into_tokenizer(encoder))
    }

    fn from_json(text: &str) -> Result<Self, TextError> {
        let parsing = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|error| TextError::InvalidJson(error.to_string()))?;
        if !matches!(parsing.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            let message = "its decoder is not ByteLevel, and others are not supported yet";
            return Err(TextError::InvalidJson(message.to_owned()));
        }
        let mut literal = parsing.clone();
        literal.set_encode_special_tokens(true);
        let added = parsing.get_added_tokens_decoder();
        let size = parsing.get_vocab(true).into_values().max().map_or(0, |last| last + 1);
        let mut tables = Tables::with_capacity(size as usize);
        for id in 0..size {
            let added = added.get(&id);
            if let Some(token) = added {
                tables.bytes.extend_from_slice(token.content.as_bytes());
            } else {
                append_bytes(&parsing.id_to_token(id).unwrap_or_default(), &mut tables.bytes);
            }
            let is_special = added.is_some_and(|token| token.special);
            tables.end_token(is_special)?;
        }
        Ok(tables.into_tokenizer(Encoder::Json {
            parsing: Box::new(parsing),
            literal: Box::new(literal),
        }))
    }

    /// The tokens of `text`. With `parse_special`, texts of special tokens in it become those tokens;
    /// without, they are ordinary text. Adds no beginning-of-sequence token.
    ///
    /// # Errors
    /// The pre-tokenizer's regular expression gave up on the text.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        match &self.encoder {
            Encoder::Bpe { ordinary, all, user_defined } => {
                let special = if parse_special { all } else { user_defined };
                special.split(text, |piece| match piece {
                    Piece::Token(id) => {
                        ids.push(id);
                        Ok(())
                    }
                    Piece::Text(text) => encode_ordinary(ordinary, text, &mut ids),
                })?;
            }
            Encoder::Json { parsing, literal } => {
                encode_ordinary(if parse_special { parsing } else { literal }, text, &mut ids)?;
            }
        }
        Ok(ids)
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. With `skip_special`, special tokens
    /// leave no text. Unknown ids leave none in any case.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = Detokenizer::new(skip_special);
        for id in ids {
            detokenizer.push(self, *id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// The bytes that one token stands for; empty for an id that the vocabulary does not have.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        match (self.offsets.get(id.index()), self.offsets.get(id.index() + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// The text of one token on its own; a part of a character becomes U+FFFD.
    pub fn token_text(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// Whether the token is special: matched before ordinary text, not part of an answer's text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id.index()).copied().unwrap_or(false)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.special.len()
    }

    /// Length of the longest token in bytes: a text of `n` bytes has at least `n` divided by this
    /// many tokens, unless a `tokenizer.json` shortens it first.
    pub fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }
}

/// Per-token tables under construction.
struct Tables {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    special: Vec<bool>,
    max_token_bytes: usize,
}

impl Tables {
    fn with_capacity(num_tokens: usize) -> Self {
        let mut offsets = Vec::with_capacity(num_tokens + 1);
        offsets.push(0);
        let special = Vec::with_capacity(num_tokens);
        Self { bytes: Vec::with_capacity(num_tokens * 8), offsets, special, max_token_bytes: 0 }
    }

    /// Closes the token whose bytes were appended.
    fn end_token(&mut self, special: bool) -> Result<(), TextError> {
        let end = u32::try_from(self.bytes.len()).map_err(|_| {
            TextError::InvalidVocabulary("tokens have over 4 GiB of text".to_owned())
        })?;
        let start = self.offsets.last().copied().unwrap_or(0);
        self.max_token_bytes = self.max_token_bytes.max((end - start) as usize);
        self.offsets.push(end);
        self.special.push(special);
        Ok(())
    }

    fn into_tokenizer(self, encoder: Encoder) -> Tokenizer {
        let Self { bytes, offsets, special, max_token_bytes } = self;
        Tokenizer { encoder, bytes, offsets, special, max_token_bytes }
    }
}

/// Ids, kinds and texts of the tokens.
fn tokens(vocabulary: &BpeVocabulary) -> impl Iterator<Item = (TokenId, TokenKind, &str)> {
    let texts = vocabulary.tokens.iter().map(String::as_str);
    (0_u32..)
        .map(TokenId)
        .zip(&vocabulary.kinds)
        .zip(texts)
        .map(|((id, kind), text)| (id, *kind, text))
}

fn check_vocabulary(vocabulary: &BpeVocabulary) -> Result<(), TextError> {
    if vocabulary.tokens.len() != vocabulary.kinds.len() {
        return Err(TextError::InvalidVocabulary(format!(
            "{} tokens but {} token types",
            vocabulary.tokens.len(),
            vocabulary.kinds.len()
        )));
    }
    // With a token for every byte that text can have, no text is lost.
    let mut present = [false; 256];
    for (_, kind, text) in tokens(vocabulary) {
        let mut characters = text.chars();
        if let (TokenKind::Normal, Some(first), None) = (kind, characters.next(), characters.next())
            && let Some(byte) = crate::byte_level::byte_of(first)
        {
            present[usize::from(byte)] = true;
        }
    }
    let missing = (0..=u8::MAX).find(|byte| occurs_in_utf8(*byte) && !present[usize::from(*byte)]);
    match missing {
        Some(byte) => Err(TextError::InvalidVocabulary(format!(
            "no token for the byte {byte:#04x} ({:?})",
            alphabet()[usize::from(byte)]
        ))),
        None => Ok(()),
    }
}

/// Tokens that BPE may give; of equal texts the first one.
fn ordinary_tokens(vocabulary: &BpeVocabulary) -> Vocab {
    let mut ordinary = Vocab::default();
    ordinary.reserve(vocabulary.tokens.len());
    for (id, kind, text) in tokens(vocabulary) {
        if matches!(kind, TokenKind::Normal | TokenKind::UserDefined) {
            ordinary.entry(text.to_owned()).or_insert(id.0);
        }
    }
    ordinary
}

fn split_merges(vocabulary: &BpeVocabulary) -> Result<Vec<(String, String)>, TextError> {
    let split = |merge: &String| {
        // The alphabet has no space, so that the only one is the separator.
        merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())).ok_or_else(
            || TextError::InvalidVocabulary(format!("merge without a space: {merge:?}")),
        )
    };
    vocabulary.merges.iter().map(split).collect()
}

/// The byte of a token like `<0x0A>`.
fn raw_byte(text: &str) -> Result<u8, TextError> {
    text.strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .ok_or_else(|| {
            TextError::InvalidVocabulary(format!("byte token not of the form <0x0A>: {text:?}"))
        })
}

fn encode_ordinary(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    ids: &mut Vec<TokenId>,
) -> Result<(), TextError> {
    let encoding =
        tokenizer.encode_fast(text, false).map_err(|error| TextError::Encode(error.to_string()))?;
    ids.extend(encoding.get_ids().iter().copied().map(TokenId));
    Ok(())
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
