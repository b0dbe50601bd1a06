//! Words, numbers and punctuation of a PTX text.

use crate::fault::PtxError;

/// A token's kind and value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind<'a> {
    /// A name with its dots: `ld.global.u32`, `%tid.x`, `.reg`, `$L__BB0_1`.
    Word(&'a str),
    Int(u64),
    Float32(u32),
    Float64(u64),
    Text,
    Sign(char),
    End,
}

/// A token, with its line (from 1) and the bytes it spans.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) line: u32,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Splits a text; the last token is `End`.
pub(super) fn tokens(source: &str) -> Result<Vec<Token<'_>>, PtxError> {
    let mut lexer = Lexer { source, bytes: source.as_bytes(), at: 0, line: 1 };
    let mut tokens = Vec::with_capacity(source.len() / 4);
    loop {
        lexer.skip_blanks();
        let (line, start) = (lexer.line, lexer.at);
        let kind = lexer.next()?;
        tokens.push(Token { kind, line, start, end: lexer.at });
        if kind == Kind::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_while(&mut self, keep: impl Fn(&Self) -> bool) {
        while self.at < self.bytes.len() && keep(self) {
            self.line += u32::from(self.bytes[self.at] == b'\n');
            self.at += 1;
        }
    }

    fn skip_blanks(&mut self) {
        loop {
            self.skip_while(|lexer| lexer.peek(0).is_ascii_whitespace());
            match (self.peek(0), self.peek(1)) {
                (b'/', b'/') => self.skip_while(|lexer| lexer.peek(0) != b'\n'),
                (b'/', b'*') => {
                    self.skip_while(|lexer| (lexer.peek(0), lexer.peek(1)) != (b'*', b'/'));
                    self.at = (self.at + 2).min(self.bytes.len());
                }
                _ => return,
            }
        }
    }

    fn next(&mut self) -> Result<Kind<'a>, PtxError> {
        let first = self.peek(0);
        if self.at >= self.bytes.len() {
            return Ok(Kind::End);
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if is_word_start(first) {
            return Ok(Kind::Word(self.word()));
        }
        self.at += 1;
        if first == b'"' {
            self.skip_while(|lexer| lexer.peek(0) != b'"');
            self.at = (self.at + 1).min(self.bytes.len());
            return Ok(Kind::Text);
        }
        if first.is_ascii() {
            return Ok(Kind::Sign(char::from(first)));
        }
        Err(self.error("a character that is not ASCII", self.at - 1))
    }

    /// A word; `::` belongs to it (`.shared::cta`), a single colon does not.
    fn word(&mut self) -> &'a str {
        let start = self.at;
        loop {
            if is_word(self.peek(0)) && self.at < self.bytes.len() {
                self.at += 1;
            } else if self.peek(0) == b':' && self.peek(1) == b':' {
                self.at += 2;
            } else {
                return &self.source[start..self.at];
            }
        }
    }

    fn number(&mut self) -> Result<Kind<'a>, PtxError> {
        let start = self.at;
        while self.peek(0).is_ascii_alphanumeric()
            || (self.peek(0) == b'.' && self.peek(1).is_ascii_digit())
        {
            self.at += 1;
        }
        let text = &self.source[start..self.at];
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches('u');
        let parsed = match (lower.get(..2), digits.contains('.')) {
            (Some("0x"), _) => u64::from_str_radix(&digits[2..], 16).map(Kind::Int).ok(),
            (Some("0f"), _) => u32::from_str_radix(&lower[2..], 16).map(Kind::Float32).ok(),
            (Some("0d"), _) => u64::from_str_radix(&lower[2..], 16).map(Kind::Float64).ok(),
            (Some("0b"), _) => u64::from_str_radix(&digits[2..], 2).map(Kind::Int).ok(),
            (_, true) => lower.parse().map(|value: f64| Kind::Float64(value.to_bits())).ok(),
            _ if digits.len() > 1 && digits.starts_with('0') => {
                u64::from_str_radix(digits, 8).map(Kind::Int).ok()
            }
            _ => digits.parse().map(Kind::Int).ok(),
        };
        parsed.ok_or_else(|| self.error("not a number", start))
    }

    fn error(&self, message: &str, start: usize) -> PtxError {
        let text: String = self.source[start..].chars().take(20).collect();
        PtxError { line: self.line, message: message.to_owned(), text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words() {
        let text = "ld.shared::cta.u32 %r1, [x+-0x10]; // end\n$L: 0f3F800000 017 5U";
        let kinds: Vec<Kind<'_>> = tokens(text).unwrap().iter().map(|token| token.kind).collect();
        let expected = [
            Kind::Word("ld.shared::cta.u32"),
            Kind::Word("%r1"),
            Kind::Sign(','),
            Kind::Sign('['),
            Kind::Word("x"),
            Kind::Sign('+'),
            Kind::Sign('-'),
            Kind::Int(16),
            Kind::Sign(']'),
            Kind::Sign(';'),
            Kind::Word("$L"),
            Kind::Sign(':'),
            Kind::Float32(0x3f80_0000),
            Kind::Int(15),
            Kind::Int(5),
            Kind::End,
        ];
        assert_eq!(kinds, expected);
    }
}
