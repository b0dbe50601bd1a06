//! A streamed answer, put together as it comes.

use oarlock_testkit::{EventStream, Server};
use serde_json::{Value, json};

use super::Answer;

/// A streamed answer, put together.
pub(super) struct Stream {
    events: EventStream,
    token_ids: Vec<Value>,
    logprobs: Value,
    finish_reason: Value,
}

impl Stream {
    pub(super) fn start(server: &Server, request: &Value) -> Self {
        let mut request = request.clone();
        request["stream"] = json!(true);
        Self {
            events: server.stream("/v1/completions", &request),
            token_ids: Vec::new(),
            logprobs: json!({}),
            finish_reason: Value::Null,
        }
    }

    /// Takes the next event; `false` at the end.
    pub(super) fn next(&mut self) -> bool {
        let Some(event) = self.events.next_json() else { return false };
        assert!(event.get("error").is_none(), "{event}");
        let choice = &event["choices"][0];
        self.token_ids.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
        for (name, values) in choice["logprobs"].as_object().into_iter().flatten() {
            let all = self.logprobs.as_object_mut().unwrap();
            let all = all.entry(name.clone()).or_insert_with(|| json!([]));
            all.as_array_mut().unwrap().extend(values.as_array().cloned().unwrap_or_default());
        }
        if !choice["finish_reason"].is_null() {
            self.finish_reason = choice["finish_reason"].clone();
        }
        true
    }

    /// Reads until so many tokens have come, or all.
    pub(super) fn read(&mut self, tokens: usize) {
        while self.token_ids.len() < tokens && self.next() {}
    }

    pub(super) fn finish(mut self) -> Answer {
        while self.next() {}
        let Self { token_ids, logprobs, finish_reason, .. } = self;
        Answer { token_ids: json!(token_ids), logprobs, finish_reason }
    }
}
