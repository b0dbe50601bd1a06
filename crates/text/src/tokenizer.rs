//! The tokenizer: byte-level BPE and `tokenizer.json` files through the `tokenizers` crate, SentencePiece's
//! BPE and special tokens by our own code.

use std::borrow::Cow;

use oarlock_types::{BpeVocabulary, SentencePieceVocabulary, TokenId, TokenKind, TokenizerSource};
use tokenizers::models::bpe::{BPE, Vocab};

use crate::byte_level::{alphabet, append_bytes, occurs_in_utf8};
use crate::json_decoder::TextStart;
use crate::json_tokenizer::JsonEncoder;
use crate::pre_tokenizer::preparation;
use crate::sentence_piece::{PieceEncoder, SPACE_MARK};
use crate::special_tokens::{Piece, SpecialTokens};
use crate::token_table::TokenTable;
use crate::{Detokenizer, TextError};

/// Text to tokens and back, for one vocabulary. Built once, shared by all requests.
pub struct Tokenizer {
    encoder: Encoder,
    table: TokenTable,
    text_start: TextStart,
}

enum Encoder {
    /// A vocabulary of the weight file.
    Bpe {
        /// Encodes ordinary text.
        ordinary: Box<tokenizers::Tokenizer>,
        matched: MatchedTokens,
    },
    /// Pieces with scores, of the weight file.
    SentencePiece {
        /// Encodes ordinary text.
        ordinary: Box<PieceEncoder>,
        matched: MatchedTokens,
        /// Whether a text begins with a space that is not in it.
        add_space_prefix: bool,
    },
    /// A `tokenizer.json`.
    Json(JsonEncoder),
}

/// Tokens that are matched in the text before the rest of it is encoded.
struct MatchedTokens {
    /// Control and user-defined tokens.
    all: SpecialTokens,
    /// User-defined tokens only.
    user_defined: SpecialTokens,
}

impl MatchedTokens {
    /// Of a vocabulary; texts as they stand in a prompt.
    fn new<'a>(
        tokens: impl Iterator<Item = (TokenId, TokenKind, &'a str)>,
    ) -> Result<Self, TextError> {
        let is_matched = |kind| matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        let matched: Vec<_> = tokens.filter(|(_, kind, _)| is_matched(*kind)).collect();
        let user_defined = matched.iter().filter(|(_, kind, _)| *kind == TokenKind::UserDefined);
        Ok(Self {
            all: SpecialTokens::new(matched.iter().map(|(id, _, text)| (*id, *text)))?,
            user_defined: SpecialTokens::new(user_defined.map(|(id, _, text)| (*id, *text)))?,
        })
    }

    fn of(&self, parse_special: bool) -> &SpecialTokens {
        if parse_special { &self.all } else { &self.user_defined }
    }
}

impl Tokenizer {
    /// Builds the tokenizer. Takes some hundred milliseconds for a large vocabulary: do it once, and
    /// not on a thread that others wait for.
    ///
    /// # Errors
    /// A pre-tokenizer that is not known, a vocabulary that contradicts itself, a `tokenizer.json`
    /// that is malformed, or neither byte-level nor of SentencePiece's BPE.
    pub fn new(source: &TokenizerSource) -> Result<Self, TextError> {
        match source {
            TokenizerSource::Bpe(vocabulary) => Self::from_vocabulary(vocabulary),
            TokenizerSource::Json(text) => {
                let (encoder, table, text_start) = JsonEncoder::read(text)?;
                Ok(Self { encoder: Encoder::Json(encoder), table, text_start })
            }
            TokenizerSource::SentencePiece(vocabulary) => Self::from_pieces(vocabulary),
        }
    }

    fn from_vocabulary(vocabulary: &BpeVocabulary) -> Result<Self, TextError> {
        let preparation = preparation(&vocabulary.pre)?;
        check_kinds(&vocabulary.tokens, &vocabulary.kinds)?;
        check_alphabet(vocabulary)?;
        let model = BPE::builder()
            .vocab_and_merges(ordinary_tokens(vocabulary), split_merges(vocabulary)?)
            .ignore_merges(preparation.ignore_merges)
            .build()
            .map_err(|error| TextError::InvalidVocabulary(error.to_string()))?;
        let mut ordinary = tokenizers::Tokenizer::new(model);
        ordinary.with_pre_tokenizer(Some(preparation.pre_tokenizer()?));
        let tokens = || tokens(&vocabulary.tokens, &vocabulary.kinds);
        let matched = MatchedTokens::new(tokens())?;
        let mut table = TokenTable::with_capacity(vocabulary.tokens.len());
        for (_, kind, text) in tokens() {
            table.push(kind == TokenKind::Control, |bytes| {
                match kind {
                    TokenKind::Normal => append_bytes(text, bytes),
                    TokenKind::Byte => bytes.push(byte_of_byte_token(text)?),
                    _ => bytes.extend_from_slice(text.as_bytes()),
                }
                Ok(())
            })?;
        }
        let encoder = Encoder::Bpe { ordinary: Box::new(ordinary), matched };
        Ok(Self { encoder, table, text_start: TextStart::Whole })
    }

    fn from_pieces(vocabulary: &SentencePieceVocabulary) -> Result<Self, TextError> {
        check_kinds(&vocabulary.tokens, &vocabulary.kinds)?;
        // Control tokens are texts of their own, in which nothing stands for a space.
        let texts: Vec<_> = tokens(&vocabulary.tokens, &vocabulary.kinds)
            .map(
                |(_, kind, text)| {
                    if kind == TokenKind::Control { text.into() } else { spaces_for_marks(text) }
                },
            )
            .collect();
        let tokens = || {
            let ids = (0_u32..).map(TokenId);
            let texts = vocabulary.kinds.iter().zip(&texts);
            ids.zip(texts).map(|(id, (kind, text))| (id, *kind, &**text))
        };
        let mut table = TokenTable::with_capacity(texts.len());
        for (_, kind, text) in tokens() {
            table.push(kind == TokenKind::Control, |bytes| {
                match kind {
                    TokenKind::Byte => bytes.push(byte_of_byte_token(text)?),
                    _ => bytes.extend_from_slice(text.as_bytes()),
                }
                Ok(())
            })?;
        }
        // A text may write each of a token's spaces as a mark.
        let written = |text: &str| text.len() + 2 * text.matches(' ').count();
        table.raise_max_token_bytes(tokens().map(|(_, _, text)| written(text)).max().unwrap_or(0));
        let encoder = Encoder::SentencePiece {
            ordinary: Box::new(PieceEncoder::new(vocabulary, &table)?),
            matched: MatchedTokens::new(tokens())?,
            add_space_prefix: vocabulary.add_space_prefix,
        };
        let text_start =
            if vocabulary.add_space_prefix { TextStart::WithoutSpace } else { TextStart::Whole };
        Ok(Self { encoder, table, text_start })
    }

    /// The tokens of `text`. With `parse_special`, texts of special tokens in it become those tokens;
    /// without, they are ordinary text. Adds no beginning-of-sequence token.
    ///
    /// # Errors
    /// The pre-tokenizer's regular expression gave up on the text, or it is absurdly long.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        match &self.encoder {
            Encoder::Bpe { ordinary, matched } => {
                matched.of(parse_special).split(text, |piece| match piece {
                    Piece::Token(id) => {
                        ids.push(id);
                        Ok(())
                    }
                    Piece::Text(text) => encode_ordinary(ordinary, text, &mut ids),
                })?;
            }
            Encoder::SentencePiece { ordinary, matched, add_space_prefix } => {
                let matched = matched.of(parse_special);
                let mut text = spaces_for_marks(text);
                // Not before a control token, which begins the text itself.
                let starts_special =
                    matched.at_start(&text).is_some_and(|id| self.table.is_special(id));
                if *add_space_prefix && !text.is_empty() && !starts_special {
                    text = format!(" {text}").into();
                }
                matched.split(&text, |piece| match piece {
                    Piece::Token(id) => {
                        ids.push(id);
                        Ok(())
                    }
                    Piece::Text(text) => ordinary.encode(&self.table, text, &mut ids),
                })?;
            }
            Encoder::Json(encoder) => encoder.encode(text, parse_special, &mut ids)?,
        }
        Ok(ids)
    }

    /// The whole text of `ids`, without a space that encoding has put before it. Bytes that are not UTF-8 become U+FFFD. With
    /// `skip_special`, special tokens leave no text. Unknown ids leave none in any case.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = Detokenizer::at_start(skip_special);
        for id in ids {
            detokenizer.push(self, *id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// The bytes that one token stands for; empty for an id that the vocabulary does not have.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.table.get(id)
    }

    /// What a text has of the token that it begins with.
    pub(crate) fn first_token_bytes(&self, id: TokenId) -> Cow<'_, [u8]> {
        let bytes = self.token_bytes(id);
        match (self.text_start, &self.encoder) {
            (TextStart::WithoutSpace, _) => bytes.strip_prefix(b" ").unwrap_or(bytes).into(),
            (TextStart::WithoutMarks, Encoder::Json(encoder)) if !self.is_special(id) => {
                encoder.without_marks(id).map_or(bytes.into(), Cow::from)
            }
            _ => bytes.into(),
        }
    }

    /// The text of one token in the middle of others; a part of a character becomes U+FFFD.
    pub fn token_text(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// Whether the token is special: matched before ordinary text, not part of an answer's text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.table.is_special(id)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Length of the longest token in bytes, as a text may write it: a text of `n` bytes has at least `n` divided by this
    /// many tokens, unless a `tokenizer.json` shortens it first.
    pub fn max_token_bytes(&self) -> usize {
        self.table.max_token_bytes()
    }
}

/// Ids, kinds and texts of the tokens.
fn tokens<'a>(
    texts: &'a [String],
    kinds: &'a [TokenKind],
) -> impl Iterator<Item = (TokenId, TokenKind, &'a str)> {
    let tokens = (0_u32..).map(TokenId).zip(kinds).zip(texts);
    tokens.map(|((id, kind), text)| (id, *kind, text.as_str()))
}

/// A text as its pieces have it: every `▁` is a space.
fn spaces_for_marks(text: &str) -> Cow<'_, str> {
    if text.contains(SPACE_MARK) { text.replace(SPACE_MARK, " ").into() } else { text.into() }
}

fn check_kinds(tokens: &[String], kinds: &[TokenKind]) -> Result<(), TextError> {
    if tokens.len() == kinds.len() {
        return Ok(());
    }
    let message = format!("{} tokens but {} token types", tokens.len(), kinds.len());
    Err(TextError::InvalidVocabulary(message))
}

fn check_alphabet(vocabulary: &BpeVocabulary) -> Result<(), TextError> {
    // With a token for every byte that text can have, no text is lost.
    let mut present = [false; 256];
    for (_, kind, text) in tokens(&vocabulary.tokens, &vocabulary.kinds) {
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
    for (id, kind, text) in tokens(&vocabulary.tokens, &vocabulary.kinds) {
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
pub(crate) fn raw_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// The byte of a token that its kind says is one.
fn byte_of_byte_token(text: &str) -> Result<u8, TextError> {
    raw_byte(text).ok_or_else(|| {
        TextError::InvalidVocabulary(format!("byte token not of the form <0x0A>: {text:?}"))
    })
}

pub(crate) fn encode_ordinary(
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
