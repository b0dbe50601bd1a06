//! Tokens that are matched in the text before it is cut into words: control and added tokens.

use aho_corasick::{AhoCorasick, MatchKind};
use oarlock_types::TokenId;

use crate::TextError;

/// A set of token texts; the leftmost match wins, and the longest of those.
pub(crate) struct SpecialTokens {
    automaton: Option<AhoCorasick>,
    ids: Vec<TokenId>,
}

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'text> {
    /// Ordinary text, not empty.
    Text(&'text str),
    /// A special token.
    Token(TokenId),
}

impl SpecialTokens {
    /// Builds the set. Empty texts are left out: they would match everywhere.
    pub(crate) fn new<'a>(
        tokens: impl Iterator<Item = (TokenId, &'a str)>,
    ) -> Result<Self, TextError> {
        let (ids, texts): (Vec<_>, Vec<_>) = tokens.filter(|(_, text)| !text.is_empty()).unzip();
        let automaton = if texts.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
            Some(built.map_err(|error| TextError::InvalidVocabulary(error.to_string()))?)
        };
        Ok(Self { automaton, ids })
    }

    /// The token that `text` begins with, if it does with one.
    pub(crate) fn at_start(&self, text: &str) -> Option<TokenId> {
        let found = self.automaton.as_ref()?.find(text)?;
        (found.start() == 0).then(|| self.ids[found.pattern().as_usize()])
    }

    /// Calls `each` for the pieces of `text`, in order.
    pub(crate) fn split<'text>(
        &self,
        text: &'text str,
        mut each: impl FnMut(Piece<'text>) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        let mut end = 0;
        if let Some(automaton) = &self.automaton {
            for found in automaton.find_iter(text) {
                if end < found.start() {
                    each(Piece::Text(&text[end..found.start()]))?;
                }
                each(Piece::Token(self.ids[found.pattern().as_usize()]))?;
                end = found.end();
            }
        }
        if end < text.len() { each(Piece::Text(&text[end..])) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'text>(tokens: &[&str], text: &'text str) -> Vec<Piece<'text>> {
        let tokens = tokens.iter().enumerate().map(|(id, text)| (TokenId(id as u32), *text));
        let set = SpecialTokens::new(tokens).unwrap();
        let mut pieces = Vec::new();
        set.split(text, |piece| {
            pieces.push(piece);
            Ok(())
        })
        .unwrap();
        pieces
    }

    #[test]
    fn the_longest_of_the_leftmost_wins() {
        let found = pieces(&["<a>", "<a><b>", ""], "x<a><b>é<a>");
        let expected = [
            Piece::Text("x"),
            Piece::Token(TokenId(1)),
            Piece::Text("é"),
            Piece::Token(TokenId(0)),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_special_is_one_piece() {
        assert_eq!(pieces(&[], "<a>"), [Piece::Text("<a>")]);
        assert_eq!(pieces(&["<a>"], ""), []);
    }
}
