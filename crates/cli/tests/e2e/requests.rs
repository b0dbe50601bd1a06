//! Requests that several tests send, and what they compare of the answers.

use oarlock_testkit::{Server, f32_of};
use serde_json::{Value, json};

/// Everything of an answer that must not depend on anything but the request: token ids, the bits of
/// the logprobs, text and finish reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) token_ids: Vec<u64>,
    pub(crate) logprob_bits: Vec<u32>,
    pub(crate) text: String,
    pub(crate) finish_reason: String,
}

/// Sixteen different chat requests: half greedy, half seeded; short ones in several scripts, and one
/// whose prompt crosses into a second attention part.
pub(crate) fn sixteen() -> Vec<Value> {
    let long = "The quick brown fox jumps over the lazy dog, and then it rests. ".repeat(17);
    let long = format!("How many animals are in this text? {long}");
    let contents = [
        "Write a Python function that adds two numbers.",
        "What is a mutex?",
        "List three prime numbers.",
        "Translate 'good morning' to French.",
        "用一句话解释什么是二分查找。",
        &long,
        "Write a haiku about rivers.",
        "fn main() { // complete this",
        "Who wrote Faust?",
        "¿Cuántos lados tiene un hexágono?",
        "Name a color. 🎨",
        "SELECT name FROM users WHERE",
        "Say nothing.",
        "Qu'est-ce qu'un arbre binaire ?",
        "Count to five.",
        "Explain TCP in a sentence.",
    ];
    let request = |(index, content): (usize, &&str)| {
        let mut request = json!({
            "model": "demo",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 6 + index % 8,
            "logprobs": true,
            "top_logprobs": 3,
            "return_token_ids": true,
            "temperature": 0,
        });
        if !index.is_multiple_of(2) {
            request["temperature"] = json!(0.9);
            request["top_p"] = json!(0.95);
            request["seed"] = json!(1000 + index);
        }
        request
    };
    contents.iter().enumerate().map(request).collect()
}

/// Sends a chat request without streaming.
pub(crate) fn ask(server: &Server, request: &Value) -> Answer {
    answer(&server.post("/v1/chat/completions", request).ok_json())
}

/// Reads a whole chat answer.
pub(crate) fn answer(body: &Value) -> Answer {
    let choice = &body["choices"][0];
    let content = choice["logprobs"]["content"].as_array().expect("logprobs were asked for");
    let logprob_bits = content.iter().flat_map(|entry| {
        let top = entry["top_logprobs"].as_array().expect("top_logprobs were asked for");
        let all = std::iter::once(&entry["logprob"]).chain(top.iter().map(|top| &top["logprob"]));
        all.map(|logprob| f32_of(logprob).to_bits()).collect::<Vec<_>>()
    });
    Answer {
        token_ids: ids(&choice["token_ids"]),
        logprob_bits: logprob_bits.collect(),
        text: choice["message"]["content"].as_str().expect("a text").to_owned(),
        finish_reason: choice["finish_reason"].as_str().expect("a reason").to_owned(),
    }
}

/// Sends all requests at once and waits for all answers, in the order of the requests.
pub(crate) fn ask_all_at_once(server: &Server, requests: &[Value]) -> Vec<Answer> {
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            requests.iter().map(|request| scope.spawn(move || ask(server, request))).collect();
        asking.into_iter().map(|asking| asking.join().expect("an answer")).collect()
    })
}

/// A list of token ids.
pub(crate) fn ids(value: &Value) -> Vec<u64> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value} is no list of ids"));
    list.iter().map(|id| id.as_u64().expect("an id")).collect()
}
