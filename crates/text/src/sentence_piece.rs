//! SentencePiece's BPE: the adjacent pair whose joined text is the best piece is merged, again and
//! again (Kudo and Richardson 2018; Sennrich et al. 2016). Characters without a piece become bytes.
//!
//! Joined texts are looked up as texts, not as pairs of pieces, as SentencePiece does. Spaces need no
//! escaping here: the table of tokens has `▁` as a space already, and a `▁` in the text is one, too.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use oarlock_types::{SentencePieceVocabulary, TokenId, TokenKind};

use crate::TextError;
use crate::token_table::TokenTable;

/// How a space is written in a vocabulary.
pub(crate) const SPACE_MARK: char = '\u{2581}';

/// Encodes ordinary text. It borrows the tokens' bytes for each call, which the tokenizer owns.
pub(crate) struct PieceEncoder {
    pieces: PieceIndex,
    /// By id: greater is better. Scores in an order that integers have.
    ranks: Vec<u32>,
    byte_tokens: [TokenId; 256],
    /// Characters before a space inside of a piece. Between any other character and a space nothing
    /// merges, so that a text is cut there first.
    glue: BTreeSet<char>,
}

impl PieceEncoder {
    /// # Errors
    /// A vocabulary that contradicts itself, or has no token for some byte: text would be lost.
    pub(crate) fn new(
        vocabulary: &SentencePieceVocabulary,
        table: &TokenTable,
    ) -> Result<Self, TextError> {
        let num_tokens = table.len();
        if vocabulary.scores.len() != num_tokens {
            return Err(TextError::InvalidVocabulary(format!(
                "{num_tokens} tokens but {} scores",
                vocabulary.scores.len()
            )));
        }
        if let Some(index) = vocabulary.scores.iter().position(|score| score.is_nan()) {
            let message = format!("the score of token {index} is not a number");
            return Err(TextError::InvalidVocabulary(message));
        }
        let mut glue = BTreeSet::new();
        let mut pieces = PieceIndex::with_capacity(num_tokens);
        for (id, kind) in (0_u32..).zip(&vocabulary.kinds) {
            // Control tokens are no result of merging, and unused ones no result at all.
            if matches!(kind, TokenKind::Normal | TokenKind::UserDefined) {
                pieces.insert(TokenId(id), table);
                let text = String::from_utf8_lossy(table.get(TokenId(id)));
                let pairs = text.chars().zip(text.chars().skip(1));
                glue.extend(pairs.filter(|(_, next)| *next == ' ').map(|(before, _)| before));
            }
        }
        Ok(Self {
            pieces,
            ranks: vocabulary.scores.iter().map(|score| rank(*score)).collect(),
            byte_tokens: byte_tokens(vocabulary, table)?,
            glue,
        })
    }

    /// Appends the tokens of `text`, in which nothing is special. Time grows with `n log n` at most,
    /// memory with the longest run without a space that could be cut.
    ///
    /// # Errors
    /// A run of 4 GiB.
    pub(crate) fn encode(
        &self,
        table: &TokenTable,
        text: &str,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TextError> {
        let mut merger = Merger::default();
        let mut start = 0;
        let mut before = None;
        for (at, character) in text.char_indices() {
            let can_cut = before.is_some_and(|before| !self.glue.contains(&before));
            if character == ' ' && can_cut {
                merger.encode(self, table, &text[start..at], ids)?;
                start = at;
            }
            before = Some(character);
        }
        merger.encode(self, table, &text[start..], ids)
    }
}

/// The number whose order is that of the scores; -0 comes before 0 as nothing else is equal.
fn rank(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

fn byte_tokens(
    vocabulary: &SentencePieceVocabulary,
    table: &TokenTable,
) -> Result<[TokenId; 256], TextError> {
    let mut found = [None; 256];
    for (id, kind) in (0_u32..).map(TokenId).zip(&vocabulary.kinds) {
        if let (TokenKind::Byte, [byte]) = (kind, table.get(id)) {
            found[usize::from(*byte)].get_or_insert(id);
        }
    }
    let mut tokens = [TokenId(0); 256];
    for (byte, (token, found)) in tokens.iter_mut().zip(found).enumerate() {
        *token = found.ok_or_else(|| {
            TextError::InvalidVocabulary(format!("no token for the byte {byte:#04x}"))
        })?;
    }
    Ok(tokens)
}

/// Finds a piece by its bytes: open addressing over the token table, which owns the bytes. A hash of
/// our own, because the standard one differs from run to run; what is in the table is the
/// vocabulary's choice alone, so that no text can make its chains longer.
struct PieceIndex {
    /// Half of the hash and id + 1; (0, 0) is free. A power of two, at most half full.
    slots: Vec<(u32, u32)>,
    max_piece_bytes: usize,
}

impl PieceIndex {
    fn with_capacity(num_pieces: usize) -> Self {
        let slots = vec![(0, 0); (2 * num_pieces).next_power_of_two().max(2)];
        Self { slots, max_piece_bytes: 0 }
    }

    /// Adds a token; of equal texts the first one counts. Empty ones do not.
    fn insert(&mut self, id: TokenId, table: &TokenTable) {
        let bytes = table.get(id);
        if bytes.is_empty() || self.get(bytes, table).is_some() {
            return;
        }
        self.max_piece_bytes = self.max_piece_bytes.max(bytes.len());
        let (mut at, tag) = self.place(bytes);
        while self.slots[at].1 != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = (tag, id.0 + 1);
    }

    fn get(&self, bytes: &[u8], table: &TokenTable) -> Option<TokenId> {
        if bytes.len() > self.max_piece_bytes {
            return None;
        }
        let (mut at, tag) = self.place(bytes);
        loop {
            let (found, id) = self.slots[at];
            let id = TokenId(id.checked_sub(1)?);
            if found == tag && table.get(id) == bytes {
                return Some(id);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// First slot and tag of a text.
    fn place(&self, bytes: &[u8]) -> (usize, u32) {
        let mut hash = bytes.len() as u64;
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash ^ u64::from_le_bytes(word));
        }
        ((hash as usize) & (self.slots.len() - 1), (hash >> 32) as u32)
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Part of the text that is one piece so far; a list, linked in both directions.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// Zero once it is part of its left neighbor.
    len: u32,
    previous: u32,
    next: u32,
}

/// No neighbor.
const NONE: u32 = u32::MAX;

/// A pair that could be merged: the best one is the greatest. Of equal ranks the leftmost goes first.
/// The length tells whether the pair still is what it was when it was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: Reverse<u32>,
    len: u32,
}

/// Working memory, kept from run to run.
#[derive(Default)]
struct Merger {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

impl Merger {
    fn encode(
        &mut self,
        encoder: &PieceEncoder,
        table: &TokenTable,
        text: &str,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TextError> {
        let too_long = || TextError::Encode("a run of 4 GiB without a space".to_owned());
        let end = u32::try_from(text.len()).map_err(|_| too_long())?;
        self.symbols.clear();
        for (index, (start, character)) in (0_u32..).zip(text.char_indices()) {
            let (start, len) = (start as u32, character.len_utf8() as u32);
            let next = if start + len == end { NONE } else { index + 1 };
            let previous = index.checked_sub(1).unwrap_or(NONE);
            self.symbols.push(Symbol { start, len, previous, next });
        }
        let mut found = std::mem::take(&mut self.candidates).into_vec();
        found.clear();
        let pairs = (0..self.symbols.len() as u32)
            .filter_map(|left| self.candidate(encoder, table, text, left));
        found.extend(pairs);
        // One pass builds the heap of all first pairs.
        self.candidates = BinaryHeap::from(found);
        self.merge(encoder, table, text);
        for symbol in self.symbols.iter().filter(|symbol| symbol.len > 0) {
            let bytes = &text.as_bytes()[symbol.start as usize..][..symbol.len as usize];
            match encoder.pieces.get(bytes, table) {
                Some(id) => ids.push(id),
                None => {
                    ids.extend(bytes.iter().map(|byte| encoder.byte_tokens[usize::from(*byte)]));
                }
            }
        }
        Ok(())
    }

    /// Each merge takes one symbol away and finds two pairs at most, so that the heap sees at most
    /// three times as many pairs as there are characters.
    fn merge(&mut self, encoder: &PieceEncoder, table: &TokenTable, text: &str) {
        while let Some(Candidate { left: Reverse(left), len, .. }) = self.candidates.pop() {
            let symbol = self.symbols[left as usize];
            if symbol.len == 0 || symbol.next == NONE {
                continue;
            }
            let right = self.symbols[symbol.next as usize];
            if symbol.len + right.len != len {
                continue;
            }
            self.symbols[symbol.next as usize].len = 0;
            self.symbols[left as usize].len = len;
            self.symbols[left as usize].next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].previous = left;
            }
            let with_next = self.candidate(encoder, table, text, left);
            let with_previous = (symbol.previous != NONE)
                .then(|| self.candidate(encoder, table, text, symbol.previous))
                .flatten();
            self.candidates.extend([with_next, with_previous].into_iter().flatten());
        }
    }

    /// The symbol at `left` with the next one, where they make a piece.
    fn candidate(
        &self,
        encoder: &PieceEncoder,
        table: &TokenTable,
        text: &str,
        left: u32,
    ) -> Option<Candidate> {
        let symbol = self.symbols[left as usize];
        let len = symbol.len + self.symbols.get(symbol.next as usize)?.len;
        let bytes = &text.as_bytes()[symbol.start as usize..][..len as usize];
        let id = encoder.pieces.get(bytes, table)?;
        Some(Candidate { rank: encoder.ranks[id.index()], left: Reverse(left), len })
    }
}

#[cfg(test)]
#[path = "sentence_piece_tests.rs"]
mod tests;
