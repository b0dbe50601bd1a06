//! A chat template, and messages for it.

use oarlock_text::{ChatPrompt, ChatTemplate};
use serde_json::{Map, Value, json};

/// Compiles what is before the first zero byte as a template and renders it over a conversation with
/// what is behind it as the user's words.
pub fn template(bytes: &[u8]) {
    let (source, words) = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &b"hello"[..]),
    };
    let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(source)) else { return };
    let words = String::from_utf8_lossy(words);
    let messages = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": words},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, null]}}}
        ]},
        {"role": "tool", "content": words, "tool_call_id": "1"},
    ]);
    let tools =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let mut kwargs = Map::new();
    kwargs.insert("enable_thinking".to_owned(), Value::Bool(true));
    for tools in [None, Some(&tools)] {
        // An error is an answer, too.
        let _ = template.render(&ChatPrompt {
            messages: &messages,
            tools,
            add_generation_prompt: true,
            kwargs: &kwargs,
            bos_token: Some("<s>"),
            eos_token: None,
        });
    }
}
