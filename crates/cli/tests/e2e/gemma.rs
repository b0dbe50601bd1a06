//! Gemma 3 270M over HTTP: SentencePiece, a window, and no chat template. A base model continues text.

use oarlock_testkit::{Server, ServerOptions, fixture_json, gemma_model};
use serde_json::{Value, json};

use crate::requests::ids;
use crate::turn;

/// Where the reference's two best tokens are closer than this, either may win.
const CLEAR_MARGIN: f64 = 0.15;

#[test]
fn gemma_continues_texts_and_refuses_chats() {
    let (Some((_turn, _)), Some(model)) = (turn(), gemma_model()) else { return };
    let options = ServerOptions::new(model).args(["--served-name", "gemma"]);
    let server = Server::start(&options.args([
        "--kv-cache-tokens",
        "8192",
        "--max-sequence-tokens",
        "1024",
    ]))
    .unwrap();
    let file = fixture_json("gemma-3-270m/generation.json");
    let cases = file["cases"].as_array().expect("cases");
    let alone: Vec<Value> = cases.iter().map(|case| continues(&server, case)).collect();
    // Again, all at once, each with its prompt in the prefix cache: a window changes nothing here.
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            cases.iter().map(|case| scope.spawn(|| continues(&server, case))).collect();
        let at_once: Vec<_> =
            asking.into_iter().map(|asking| asking.join().expect("an answer")).collect();
        assert_eq!(at_once, alone);
    });
    streams(&server);
    refuses_chats(&server);
}

/// Greedy follows the reference as far as that is clear; the first token is put before the prompt. Gives
/// the answer with its logprobs.
fn continues(server: &Server, case: &Value) -> Value {
    let prompt = case["prompt"].as_str().expect("a text");
    let prompt_ids = ids(&case["prompt_ids"]);
    let tokenized = server.post("/tokenize", &json!({"model": "gemma", "prompt": prompt}));
    assert_eq!(ids(&tokenized.ok_json()["tokens"]), prompt_ids);
    let restored = json!({"model": "gemma", "tokens": prompt_ids[1..]});
    assert_eq!(server.post("/detokenize", &restored).ok_json()["prompt"], prompt);

    let greedy = ids(&case["greedy"]);
    let body = json!({
        "model": "gemma", "prompt": prompt, "temperature": 0, "max_tokens": greedy.len(),
        "return_token_ids": true, "logprobs": 3,
    });
    let mut answer = server.post("/v1/completions", &body).ok_json();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt_ids.len());
    let margins = case["margins"].as_array().expect("margins").iter();
    let clear =
        margins.take_while(|margin| margin.as_f64().expect("a number") >= CLEAR_MARGIN).count();
    let ours = ids(&answer["choices"][0]["token_ids"]);
    assert_eq!(ours[..clear], greedy[..clear], "{prompt:.60}");
    if clear == greedy.len() {
        assert_eq!(answer["choices"][0]["text"], case["greedy_text"]);
    }
    answer["choices"][0].take()
}

/// Text of many bytes per character arrives whole, in pieces.
fn streams(server: &Server) {
    let mut body = json!({
        "model": "gemma", "prompt": "日本の都市:", "temperature": 1.0, "seed": 5, "max_tokens": 40,
    });
    let whole = server.post("/v1/completions", &body).ok_json();
    body["stream"] = json!(true);
    let events = server.stream("/v1/completions", &body).collect_json();
    let text = |event: &Value| event["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
    let streamed: String = events.iter().map(text).collect();
    assert_eq!(json!(streamed), whole["choices"][0]["text"]);
    assert!(streamed.chars().count() > 10, "{streamed}");
}

fn refuses_chats(server: &Server) {
    let body = json!({"model": "gemma", "messages": [{"role": "user", "content": "Hi"}]});
    let refused = server.post("/v1/chat/completions", &body);
    let error = &refused.json()["error"];
    assert_eq!(refused.status, 400, "{error}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("chat template"), "{message}");
}
