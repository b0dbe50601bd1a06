//! Stop strings across token boundaries.

/// Finds the first stop string in a text that arrives in pieces.
///
/// The match that ends first counts, and among those that end together the longest. Text that may
/// be the beginning of a stop string is held back; all other text is given at once. Runs one
/// automaton of Knuth, Morris and Pratt per stop string, so that time is linear in the text for each.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text that may be the beginning of a stop string.
    held: String,
    include_stop: bool,
    /// The pattern that was found.
    found: Option<usize>,
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each prefix of `bytes` (of length index + 1) the longest proper prefix that is its suffix.
    failure: Vec<usize>,
    /// How many bytes of the pattern the text so far ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for one stream. With `include_stop` the stop string stays part of the text.
    ///
    /// # Panics
    /// If a stop string is empty: it would match before the first character.
    pub fn new(stops: &[String], include_stop: bool) -> Self {
        assert!(stops.iter().all(|stop| !stop.is_empty()), "stop strings are not empty");
        let patterns = stops.iter().map(|stop| Pattern::new(stop)).collect();
        Self { patterns, held: String::new(), include_stop, found: None }
    }

    /// Takes the next piece of text and appends what is certain to `text`. Returns whether a stop
    /// string was found: then the text is complete, and the rest of the stream does not belong to it.
    pub fn push(&mut self, piece: &str, text: &mut String) -> bool {
        if self.patterns.is_empty() {
            text.push_str(piece);
            return false;
        }
        for (index, byte) in piece.bytes().enumerate() {
            if let Some((length, pattern)) = self.advance(byte) {
                self.found = Some(pattern);
                // Counted from the beginning of `held`, then `piece`.
                let end = self.held.len() + index + 1;
                let end = if self.include_stop { end } else { end - length };
                self.held.push_str(piece);
                text.push_str(&self.held[..end]);
                self.held.clear();
                self.patterns.iter_mut().for_each(|pattern| pattern.matched = 0);
                return true;
            }
        }
        self.held.push_str(piece);
        let kept = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let given = self.held.len() - kept;
        text.push_str(&self.held[..given]);
        self.held.drain(..given);
        false
    }

    /// Appends what was held back, at the end of the stream.
    pub fn finish(&mut self, text: &mut String) {
        text.push_str(&self.held);
        self.held.clear();
    }

    /// Whether text is held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// The index of the stop string that was found, among those given.
    pub fn found(&self) -> Option<usize> {
        self.found
    }

    /// Feeds one byte to all patterns; length and index of the longest one that ends with it.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut longest = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            let length = pattern.bytes.len();
            if pattern.advance(byte) && longest.is_none_or(|(most, _)| length > most) {
                longest = Some((length, index));
            }
        }
        longest
    }
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut failure = vec![0; bytes.len()];
        let mut matched = 0;
        for index in 1..bytes.len() {
            while matched > 0 && bytes[index] != bytes[matched] {
                matched = failure[matched - 1];
            }
            if bytes[index] == bytes[matched] {
                matched += 1;
            }
            failure[index] = matched;
        }
        Self { bytes, failure, matched: 0 }
    }

    /// Whether the pattern ends with `byte`.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.failure[self.matched - 1];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_stop_string_is_known() {
        let stops = ["xyz", "b", "ab"].map(str::to_owned);
        let mut matcher = StopMatcher::new(&stops, false);
        let mut text = String::new();
        assert!(!matcher.push("xya", &mut text) && matcher.found().is_none());
        assert!(matcher.push("bz", &mut text));
        assert_eq!((text.as_str(), matcher.found()), ("xy", Some(2)));
    }

    fn run(stops: &[String], include_stop: bool, pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops, include_stop);
        let mut text = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut text) {
                return (text, true);
            }
        }
        matcher.finish(&mut text);
        (text, false)
    }

    /// The definition, over the whole text at once.
    fn naive(stops: &[String], include_stop: bool, text: &str) -> (String, bool) {
        let found = stops
            .iter()
            .filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        match found {
            Some((end, start)) => (text[..if include_stop { end } else { start }].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut matcher = StopMatcher::new(&strings(&["END"]), false);
        let mut text = String::new();
        assert!(!matcher.push("the E", &mut text));
        assert_eq!(text, "the ");
        assert!(!matcher.push("N", &mut text));
        assert_eq!(text, "the ");
        assert!(!matcher.push("E", &mut text));
        assert_eq!(text, "the EN");
        assert!(matcher.push("ND and more", &mut text));
        assert_eq!(text, "the EN");
    }

    #[test]
    fn the_stop_string_can_stay() {
        assert_eq!(run(&strings(&["。"]), true, &["你好", "。", "x"]), ("你好。".to_owned(), true));
        assert_eq!(run(&strings(&["b", "abc"]), false, &["a", "bc"]), ("a".to_owned(), true));
        assert_eq!(run(&strings(&["bc", "abc"]), false, &["xa", "b", "c"]), ("x".to_owned(), true));
        assert_eq!(run(&[], false, &["a", "b"]), ("ab".to_owned(), false));
    }

    proptest! {
        #[test]
        fn equals_a_search_over_the_whole_text(
            stops in prop::collection::vec("[ab日]{1,4}", 1..5),
            pieces in prop::collection::vec("[abc日]{0,5}", 0..12),
            include_stop in any::<bool>(),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, include_stop, &pieces), naive(&stops, include_stop, &pieces.concat()));
        }
    }
}
