//! Tokens to text, one at a time, never half a character.

use oarlock_types::TokenId;

use crate::Tokenizer;

/// State of one stream. Each token costs time in its own length only.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    skip_special: bool,
    /// Whether the next token begins the text.
    at_start: bool,
    /// The first bytes of a character that is not complete yet; a UTF-8 character has at most 4.
    pending: [u8; 3],
    num_pending: usize,
}

impl Detokenizer {
    /// For a stream that continues a text, as an answer does: a space that its first token begins with
    /// is part of it. With `skip_special`, special tokens leave no text.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, at_start: false, pending: [0; 3], num_pending: 0 }
    }

    /// For a whole text, without the space that encoding has put before it.
    pub fn at_start(skip_special: bool) -> Self {
        Self { at_start: true, ..Self::new(skip_special) }
    }

    /// Appends the text that is certain after `id` to `text`. Bytes that cannot become a character
    /// give U+FFFD, one for each longest invalid sequence, as Python's `errors="replace"` does.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId, text: &mut String) {
        if self.skip_special && tokenizer.is_special(id) {
            return;
        }
        let bytes = tokenizer.token_bytes(id);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            self.append(&tokenizer.first_token_bytes(id), text);
        } else if self.num_pending == 0 {
            self.append(bytes, text);
        } else {
            let mut joined = Vec::with_capacity(self.num_pending + bytes.len());
            joined.extend_from_slice(&self.pending[..self.num_pending]);
            joined.extend_from_slice(bytes);
            self.num_pending = 0;
            self.append(&joined, text);
        }
    }

    fn append(&mut self, bytes: &[u8], text: &mut String) {
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // Only the end of the input can be the beginning of a character.
            let at_end = invalid.as_ptr_range().end == bytes.as_ptr_range().end;
            if at_end && is_incomplete(invalid) {
                self.pending[..invalid.len()].copy_from_slice(invalid);
                self.num_pending = invalid.len();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// Appends what is left at the end of the stream: U+FFFD for an incomplete character.
    pub fn finish(&mut self, text: &mut String) {
        if self.num_pending > 0 {
            text.push(char::REPLACEMENT_CHARACTER);
            self.num_pending = 0;
        }
    }

    /// Whether part of a character waits for the next token.
    pub fn is_pending(&self) -> bool {
        self.num_pending > 0
    }
}

/// Whether more bytes could make a character of `bytes`, which are not one.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}
