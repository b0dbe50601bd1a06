//! One request and its stream: when what came.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;

use crate::client::{HttpClient, cut_off};
use crate::error::{Failure, FailureKind};
use crate::progress::Stream;
use crate::protocol::{Chunk, Usage};
use crate::sse::SseParser;

/// An answer that came to its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// From when it was due to the first output.
    pub(crate) ttft: Duration,
    /// Between outputs. Where an event says that it brings several tokens, its gap is shared among
    /// them; otherwise an event counts as one.
    pub(crate) gaps: Vec<Duration>,
    /// From when it was due to the last output.
    pub(crate) last: Duration,
    /// From when it was due to the end of the stream.
    pub(crate) e2e: Duration,
    /// Events with output.
    pub(crate) pieces: u64,
    /// Tokens as the server counts them, if it does.
    pub(crate) usage: Option<Usage>,
    /// The answer itself.
    pub(crate) text: String,
}

impl Answer {
    /// Generated tokens: the server's count, or else one for each event.
    pub(crate) fn output_tokens(&self) -> u64 {
        self.usage.map_or(self.pieces, |usage| usage.completion_tokens)
    }

    /// Mean time per token after the first; `None` where there is no second one.
    pub(crate) fn tpot(&self) -> Option<Duration> {
        let more = self.output_tokens().checked_sub(1).filter(|more| *more > 0)?;
        Some(self.last.saturating_sub(self.ttft).div_f64(more as f64))
    }
}

/// Reads events of one answer. Knows no clock: the caller says when they came.
#[derive(Debug, Default)]
struct Reader {
    answer: Answer,
    is_finished: bool,
    is_done: bool,
}

impl Reader {
    /// Takes one event; returns whether it brought output.
    fn event(&mut self, at: Duration, data: &[u8]) -> Result<bool, Failure> {
        if data.trim_ascii() == b"[DONE]" {
            self.is_done = true;
            return Ok(false);
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| {
            Failure::new(FailureKind::Protocol, format!("an event cannot be read: {error}"))
        })?;
        if let Some(error) = chunk.error {
            let message = error.get("message").and_then(|message| message.as_str());
            let message = message.map_or_else(|| error.to_string(), str::to_owned);
            return Err(Failure::new(FailureKind::ErrorEvent, message));
        }
        let tokens_before = self.answer.usage.map(|usage| usage.completion_tokens);
        self.answer.usage = chunk.usage.or(self.answer.usage);
        let Some(choice) = chunk.choices.as_ref().and_then(|choices| choices.first()) else {
            return Ok(false);
        };
        self.is_finished |= choice.finish_reason.is_some();
        self.answer.text.push_str(choice.answer());
        let has_output = choice.has_output();
        if has_output {
            // A server that counts as it goes says how many tokens this event brings.
            let now = chunk.usage.map(|usage| usage.completion_tokens);
            let count = now.map_or(1, |now| now.saturating_sub(tokens_before.unwrap_or(0)).max(1));
            self.output(at, count);
        } else if self.is_finished && self.answer.pieces == 0 {
            // An answer without text (special tokens only): its end is its first sign.
            self.answer.ttft = at;
            self.answer.last = at;
        }
        Ok(has_output)
    }

    fn output(&mut self, at: Duration, tokens: u64) {
        let answer = &mut self.answer;
        if answer.pieces == 0 {
            answer.ttft = at;
        } else {
            let share = at.saturating_sub(answer.last).div_f64(tokens as f64);
            answer.gaps.extend((0..tokens).map(|_| share));
        }
        answer.pieces += 1;
        answer.last = at;
    }

    fn end(mut self, at: Duration) -> Result<Answer, Failure> {
        if !self.is_done && !self.is_finished {
            return Err(Failure::new(FailureKind::Disconnected, "the stream ended too early"));
        }
        self.answer.e2e = at;
        Ok(self.answer)
    }
}

/// What is sent.
pub(crate) struct Request {
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    /// How long it may take from now on.
    pub(crate) timeout: Duration,
    /// From when its times count: now, or earlier where it had to wait at the client.
    pub(crate) due: Instant,
}

/// Sends one request and reads its stream to the end, so that the connection can be used again.
pub(crate) async fn send(
    client: &HttpClient,
    request: Request,
    stream: &mut Stream,
) -> Result<Answer, Failure> {
    let timeout = request.timeout;
    let exchange = exchange(client, request, stream);
    tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
        Err(Failure::new(FailureKind::Timeout, format!("not done after {timeout:?}")))
    })
}

async fn exchange(
    client: &HttpClient,
    request: Request,
    stream: &mut Stream,
) -> Result<Answer, Failure> {
    let due = request.due;
    let mut body = client.stream(request.path, request.body).await?;
    let mut reader = Reader::default();
    let mut events = SseParser::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(cut_off)?;
        let Some(bytes) = frame.data_ref() else { continue };
        let at = due.elapsed();
        let mut result = Ok(());
        let parsed = events.push(bytes, |data| {
            if result.is_ok() {
                result = reader.event(at, data).map(|has_output| {
                    if has_output {
                        stream.output();
                    }
                });
            }
        });
        parsed.map_err(|error| Failure::new(FailureKind::Protocol, error.to_string()))?;
        result?;
    }
    reader.end(due.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn read(events: &[(u64, &str)]) -> Result<Answer, Failure> {
        let mut reader = Reader::default();
        for (at, data) in events {
            reader.event(MS(*at), data.as_bytes())?;
        }
        reader.end(MS(1000))
    }

    #[test]
    fn a_chat_is_timed_by_its_content() {
        let answer = read(&[
            (5, r#"{"choices": [{"delta": {"role": "assistant", "content": ""}}]}"#),
            (20, r#"{"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}"#),
            (50, r#"{"choices": [{"delta": {"content": "b"}}], "usage": null}"#),
            (60, r#"{"choices": [{"delta": {}, "finish_reason": "length"}]}"#),
            (
                61,
                r#"{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 3}}}"#,
            ),
            (62, "[DONE]"),
        ])
        .expect("an answer");
        assert_eq!((answer.ttft, answer.last, answer.e2e), (MS(20), MS(50), MS(1000)));
        assert_eq!(answer.gaps, [MS(30)]);
        assert_eq!((answer.pieces, answer.output_tokens()), (2, 4));
        assert_eq!(answer.tpot(), Some(MS(10)));
        assert_eq!(answer.usage.map(|usage| usage.cached_tokens()), Some(3));
        assert_eq!(answer.text, "ab");
    }

    #[test]
    fn events_that_count_their_tokens_share_their_gap() {
        let answer = read(&[
            (10, r#"{"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}"#),
            (40, r#"{"choices": [{"text": "bcd"}], "usage": {"completion_tokens": 4}}"#),
            (45, r#"{"choices": [{"text": "e", "finish_reason": "stop"}], "usage": {"completion_tokens": 5}}"#),
        ])
        .expect("an answer");
        assert_eq!(answer.gaps, [MS(10), MS(10), MS(10), MS(5)]);
        assert_eq!(answer.tpot(), Some(Duration::from_micros(8750)));
    }

    #[test]
    fn without_usage_events_are_counted() {
        let events =
            [(1, r#"{"choices": [{"text": "a"}]}"#), (2, r#"{"choices": [{"text": "b"}]}"#)];
        let answer = read(&[events[0], events[1], (3, "[DONE]")]).expect("an answer");
        assert_eq!((answer.output_tokens(), answer.usage), (2, None));
        let one = read(&[events[0], (3, "[DONE]")]).expect("an answer");
        assert_eq!(one.tpot(), None);
    }

    #[test]
    fn an_answer_of_special_tokens_only_ends_at_its_finish() {
        let answer = read(&[(9, r#"{"choices": [{"text": "", "finish_reason": "stop"}]}"#)]);
        let answer = answer.expect("an answer");
        assert_eq!((answer.ttft, answer.pieces), (MS(9), 0));
    }

    #[test]
    fn what_goes_wrong_in_a_stream_is_told_apart() {
        let piece = (1, r#"{"choices": [{"text": "a"}]}"#);
        let kind = |events: &[(u64, &str)]| read(events).expect_err("a failure").kind;
        assert_eq!(kind(&[piece]), FailureKind::Disconnected);
        assert_eq!(kind(&[]), FailureKind::Disconnected);
        assert_eq!(kind(&[piece, (2, "{]")]), FailureKind::Protocol);
        let event = (2, r#"{"error": {"message": "out of memory"}}"#);
        assert_eq!(kind(&[piece, event]), FailureKind::ErrorEvent);
        assert_eq!(read(&[event]).expect_err("a failure").message, "out of memory");
    }
}
