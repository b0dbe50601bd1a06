//! The demo model against what transformers computes in float32 from the same file.

use oarlock_testkit::{Server, fixture_json};
use serde_json::{Value, json};

use crate::Scenario;
use crate::requests::ids;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("chat prompts have the reference's text and ids", chat_prompts),
    ("chat templates with tools and turns render as the reference", chat_templates),
    ("texts become the reference's token ids", tokenization),
    ("teacher-forced logprobs are close to the reference", teacher_forced),
    ("free-running greedy follows the reference", free_running),
];

/// Where the reference's two best tokens are closer than this, either may win.
const CLEAR_MARGIN: f64 = 0.15;

fn cases() -> Vec<Value> {
    let file = fixture_json("qwen2.5-coder-0.5b/generation.json");
    file["cases"].as_array().expect("cases").clone()
}

fn tokenize(server: &Server, body: &Value) -> Vec<u64> {
    ids(&server.post("/tokenize", body).ok_json()["tokens"])
}

fn detokenize(server: &Server, tokens: &[u64]) -> String {
    let body = json!({"model": "demo", "tokens": tokens});
    server.post("/detokenize", &body).ok_json()["prompt"].as_str().expect("a text").to_owned()
}

fn chat_prompts(server: &Server) {
    for case in cases() {
        let body =
            json!({"model": "demo", "messages": case["messages"], "add_generation_prompt": true});
        let tokens = tokenize(server, &body);
        assert_eq!(tokens, ids(&case["prompt_ids"]));
        assert_eq!(detokenize(server, &tokens), case["rendered"].as_str().expect("a text"));
    }
}

fn chat_templates(server: &Server) {
    let file = fixture_json("qwen2.5-coder-0.5b/chat_template.json");
    for case in file["cases"].as_array().expect("cases") {
        let mut body =
            json!({"model": "demo", "messages": case["messages"], "add_generation_prompt": true});
        if !case["tools"].is_null() {
            body["tools"] = case["tools"].clone();
        }
        let rendered = detokenize(server, &tokenize(server, &body));
        assert_eq!(rendered, case["rendered"].as_str().expect("a text"));
    }
}

fn tokenization(server: &Server) {
    let file = fixture_json("tokenization.json");
    let cases = file["cases"]["qwen2.5-coder-0.5b"].as_array().expect("cases");
    assert_eq!(cases.len(), 32);
    for case in cases {
        let body = json!({"model": "demo", "prompt": case["text"], "add_special_tokens": false});
        assert_eq!(tokenize(server, &body), ids(&case["ids"]), "{}", case["text"]);
    }
}

/// The logprobs of the most likely tokens at every position of `greedy`, by token id.
fn score(server: &Server, case: &Value) -> Vec<Vec<(u64, f64)>> {
    let prompt = ids(&case["prompt_ids"]);
    let all = [prompt.clone(), ids(&case["greedy"])].concat();
    let body = json!({
        "model": "demo", "prompt": all, "max_tokens": 0, "echo": true, "logprobs": 20,
        "return_tokens_as_token_ids": true, "temperature": 0,
    });
    let answer = server.post("/v1/completions", &body).ok_json();
    let positions = answer["choices"][0]["logprobs"]["top_logprobs"].as_array().expect("scores");
    assert_eq!(positions.len(), all.len());
    positions[prompt.len()..].iter().map(top_of).collect()
}

fn top_of(position: &Value) -> Vec<(u64, f64)> {
    let entry = |(name, logprob): (&String, &Value)| {
        let id = name.strip_prefix("token_id:").expect("a token id").parse().expect("a number");
        (id, logprob.as_f64().expect("a logprob"))
    };
    let mut top: Vec<_> = position.as_object().expect("a dictionary").iter().map(entry).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top
}

fn teacher_forced(server: &Server) {
    let mut differences = Vec::new();
    let mut outside = 0;
    for case in cases() {
        let ours = score(server, &case);
        for (index, ours) in ours.iter().enumerate() {
            for reference in case["top5"][index].as_array().expect("five") {
                let (id, logprob) =
                    (reference[0].as_u64().expect("id"), reference[1].as_f64().expect("f"));
                match ours.iter().find(|(ours, _)| *ours == id) {
                    Some((_, ours)) => differences.push((ours - logprob).abs()),
                    None => outside += 1,
                }
            }
            if case["margins"][index].as_f64().expect("a margin") >= CLEAR_MARGIN {
                assert_eq!(
                    ours[0].0,
                    case["greedy"][index].as_u64().expect("id"),
                    "position {index}"
                );
            }
        }
    }
    differences.sort_by(f64::total_cmp);
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let at_99 = differences[differences.len() * 99 / 100];
    let worst = differences[differences.len() - 1];
    eprintln!(
        "top-5 logprobs against float32: mean {mean:.4}, p99 {at_99:.4}, worst {worst:.4} over {} values",
        differences.len()
    );
    assert_eq!(outside, 0, "a token of the reference's five best is not among our twenty");
    assert!(
        mean <= 0.05 && at_99 <= 0.25 && worst <= 0.6,
        "mean {mean}, p99 {at_99}, worst {worst}"
    );
}

fn free_running(server: &Server) {
    for case in cases() {
        let greedy = ids(&case["greedy"]);
        let body = json!({
            "model": "demo", "messages": case["messages"], "temperature": 0,
            "max_tokens": greedy.len(), "return_token_ids": true,
        });
        let answer = server.post("/v1/chat/completions", &body).ok_json();
        let margins = case["margins"].as_array().expect("margins").iter();
        let clear =
            margins.take_while(|margin| margin.as_f64().expect("a number") >= CLEAR_MARGIN).count();
        let ours = ids(&answer["choices"][0]["token_ids"]);
        assert_eq!(ours[..clear], greedy[..clear]);
        if clear == greedy.len() && greedy.last() == Some(&151_645) {
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        }
    }
}
