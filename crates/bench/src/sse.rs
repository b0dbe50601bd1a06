//! Server-sent events, from bytes that may be cut anywhere.

use thiserror::Error;

/// Bytes of one line or one event at most: a server that never ends one must not fill the memory.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// An event that is too long.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an event has more than {MAX_EVENT_BYTES} bytes")]
pub(crate) struct EventTooLong;

/// Collects the `data` of events (WHATWG HTML, section 9.2.6); other fields and comments are passed
/// over. Lines end with LF, CR LF or CR.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    /// Whether the first line has passed, which may begin with a byte order mark.
    has_begun: bool,
}

impl SseParser {
    /// Takes further bytes, and hands the data of every event that is complete to `event`.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(&[u8]),
    ) -> Result<(), EventTooLong> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + self.data.len() + part.len() > MAX_EVENT_BYTES {
                return Err(EventTooLong);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { return Ok(()) };
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line(&mut event);
        }
        Ok(())
    }

    fn end_line(&mut self, event: &mut impl FnMut(&[u8])) {
        let mut line = self.line.as_slice();
        if !std::mem::replace(&mut self.has_begun, true) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                event(&self.data);
            }
            self.data.clear();
        } else if let Some(rest) = line.strip_prefix(b"data")
            && matches!(rest.first(), None | Some(b':'))
        {
            let value = rest.strip_prefix(b":").unwrap_or(rest);
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
            self.has_data = true;
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for part in parts {
            parser
                .push(part, |data| events.push(String::from_utf8_lossy(data).into_owned()))
                .expect("short events");
        }
        events
    }

    #[test]
    fn data_is_taken_and_everything_else_passed_over() {
        let text = "\u{feff}data: {\"a\": 1}\n\n: keep-alive\n\nevent: x\ndata:two\ndata: lines\nid: 4\n\n\
                    database: no\n\ndata\n\ndata: [DONE]\r\n\r\ndata: cr\r\rdata: unfinished\n";
        assert_eq!(parse([text.as_bytes()]), ["{\"a\": 1}", "two\nlines", "", "[DONE]", "cr"]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::default();
        let part = vec![b'x'; MAX_EVENT_BYTES / 4];
        let results: Vec<_> = (0..5).map(|_| parser.push(&part, |_| ())).collect();
        assert_eq!(results[3], Ok(()));
        assert_eq!(results[4], Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            events in prop::collection::vec(("[ -~äß🎨]{0,30}", 0..3_usize, any::<bool>()), 0..12),
            mut cuts in prop::collection::vec(0..800_usize, 0..40),
        ) {
            let mut text = String::new();
            for (data, ending, comment) in &events {
                let ending = ["\n", "\r\n", "\r"][*ending];
                if *comment {
                    text += &[": ", data, ending].concat();
                }
                text += &["data: ", data, ending, ending].concat();
            }
            let bytes = text.as_bytes();
            for cut in &mut cuts {
                *cut = (*cut).min(bytes.len());
            }
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            let expected: Vec<String> = events.into_iter().map(|(data, ..)| data).collect();
            prop_assert_eq!(parse(parts), expected);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(parse(single), parse([bytes.as_slice()]));
        }
    }
}
