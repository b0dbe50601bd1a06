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

/// Sixteen different chat requests: half greedy, half seeded; short, long, in several scripts.
pub(crate) fn sixteen() -> Vec<Value> {
    let long =
        "The quick brown fox jumps over the lazy dog, and then it rests a while. ".repeat(22);
    let contents = [
        "Write a Python function that adds two numbers.".to_owned(),
        "What is a mutex?".to_owned(),
        "List three prime numbers.".to_owned(),
        "Translate 'good morning' to French.".to_owned(),
        "用一句话解释什么是二分查找。".to_owned(),
        format!("How many animals are in this text? {long}"),
        "Write a haiku about rivers.".to_owned(),
        "fn main() { // complete this".to_owned(),
    ];
    let mut requests = Vec::new();
    for (index, content) in contents.iter().enumerate() {
        for seeded in [false, true] {
            let mut request = json!({
                "model": "demo",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 12 + index,
                "logprobs": true,
                "top_logprobs": 3,
                "return_token_ids": true,
                "temperature": 0,
            });
            if seeded {
                request["temperature"] = json!(0.9);
                request["top_p"] = json!(0.95);
                request["seed"] = json!(1000 + index);
            }
            requests.push(request);
        }
    }
    requests
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
