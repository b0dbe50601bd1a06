//! A gRPC request as the fields of an HTTP request, so that both are checked by the same code.

use oarlock_rpc::{Chat, ChatMessage, GenerateOptions, InferencePrompt, InferenceRequest};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::RequestLimits;
use crate::messages::Conversation;
use crate::rules::at_most;

/// Bytes of work that an item of a list counts for besides its text.
const BYTES_PER_ITEM: usize = 8;
/// About what a message takes as JSON besides its texts: a map with a few names.
const BYTES_PER_MESSAGE: usize = 512;

/// How much work a request is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Bytes of text, and of numbers at so many bytes each.
    pub(crate) num_bytes: usize,
    /// JSON values that it becomes, at most.
    values: usize,
    messages: usize,
}

impl Work {
    /// Bytes that it takes as JSON values, about.
    pub(crate) fn bytes_as_json(&self) -> usize {
        let values = self.values.saturating_mul(size_of::<Value>());
        let messages = self.messages.saturating_mul(BYTES_PER_MESSAGE);
        self.num_bytes.saturating_add(values).saturating_add(messages)
    }

    fn add_items(&mut self, count: usize) {
        self.num_bytes += count * BYTES_PER_ITEM;
        self.values += count;
    }

    fn add_json(&mut self, json: Option<&String>) {
        let Some(json) = json else { return };
        let is_mark = |byte: &&u8| matches!(byte, b',' | b':' | b'[' | b'{');
        self.num_bytes += json.len();
        self.values += json.as_bytes().iter().filter(is_mark).count();
    }
}

/// How much work it is to convert a request.
pub(crate) fn request_work(request: &InferenceRequest) -> Work {
    let mut work = match &request.prompt {
        InferencePrompt::Text(text) => Work { num_bytes: text.len(), ..Work::default() },
        InferencePrompt::Tokens(ids) => {
            let mut work = Work::default();
            work.add_items(ids.len());
            work
        }
        InferencePrompt::Chat(chat) => chat_work(chat),
    };
    let options = &request.options;
    for count in [
        options.logit_bias.len(),
        options.allowed_token_ids.len(),
        options.stop_token_ids.len(),
        options.bad_words.len(),
        options.stop.len(),
    ] {
        work.add_items(count);
    }
    let texts = options.bad_words.iter().chain(&options.stop);
    work.num_bytes += texts.map(String::len).sum::<usize>();
    work
}

/// How much work it is to convert a conversation.
pub(crate) fn chat_work(chat: &Chat) -> Work {
    let mut work = Work { messages: chat.messages.len(), ..Work::default() };
    for message in &chat.messages {
        work.num_bytes += message.content.len() + BYTES_PER_ITEM;
        work.add_json(message.tool_calls_json.as_ref());
    }
    work.add_json(chat.template_kwargs_json.as_ref());
    work.add_json(chat.tools_json.as_ref());
    work
}

/// The fields of a chat or of a completion request.
pub(crate) fn generate_fields(
    request: InferenceRequest,
    limits: &RequestLimits,
) -> Result<Fields, ApiError> {
    let num_bytes = request_work(&request).num_bytes;
    let InferenceRequest { model, prompt, options } = request;
    let mut fields = Map::new();
    fields.insert("model".to_owned(), Value::from(model));
    let logprobs = options.logprobs;
    put_options(&mut fields, options)?;
    match prompt {
        InferencePrompt::Text(text) => {
            put(&mut fields, "prompt", Some(text));
            put(&mut fields, "logprobs", logprobs);
        }
        InferencePrompt::Tokens(ids) => {
            put(&mut fields, "prompt", Some(ids));
            put(&mut fields, "logprobs", logprobs);
        }
        InferencePrompt::Chat(chat) => {
            put(&mut fields, "logprobs", logprobs.map(|_| true));
            put(&mut fields, "top_logprobs", logprobs);
            put_chat(&mut fields, chat, limits)?;
        }
    }
    Ok(Fields::new(fields, num_bytes))
}

/// A conversation on its own.
pub(crate) fn conversation_fields(
    chat: Chat,
    limits: &RequestLimits,
) -> Result<Conversation, ApiError> {
    let num_bytes = chat_work(&chat).num_bytes;
    let mut map = Map::new();
    put_chat(&mut map, chat, limits)?;
    let mut fields = Fields::new(map, num_bytes);
    let conversation = Conversation::take(&mut fields, limits)?;
    fields.finish()?;
    Ok(conversation)
}

fn put<T: Into<Value>>(fields: &mut Map<String, Value>, name: &str, value: Option<T>) {
    if let Some(value) = value {
        fields.insert(name.to_owned(), value.into());
    }
}

/// JSON has no NaN and no infinity: they would become null, and so the default.
fn put_number(
    fields: &mut Map<String, Value>,
    name: &str,
    value: Option<f64>,
) -> Result<(), ApiError> {
    if value.is_some_and(|value| !value.is_finite()) {
        return Err(ApiError::invalid(name, "it is not a finite number"));
    }
    put(fields, name, value);
    Ok(())
}

/// Puts what is not at its default.
fn put_options(fields: &mut Map<String, Value>, options: GenerateOptions) -> Result<(), ApiError> {
    put_number(fields, "temperature", options.temperature)?;
    put(fields, "top_k", options.top_k);
    put_number(fields, "top_p", options.top_p)?;
    put_number(fields, "min_p", options.min_p)?;
    put(fields, "seed", options.seed);
    put(fields, "n", options.n);
    put_number(fields, "repetition_penalty", options.repetition_penalty)?;
    put_number(fields, "presence_penalty", options.presence_penalty)?;
    put_number(fields, "frequency_penalty", options.frequency_penalty)?;
    if options.logit_bias.iter().any(|(_, bias)| !bias.is_finite()) {
        return Err(ApiError::invalid("logit_bias", "a bias is not a finite number"));
    }
    if !options.logit_bias.is_empty() {
        let bias = options.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias)));
        fields.insert("logit_bias".to_owned(), Value::Object(bias.collect()));
    }
    let filled = |list: Vec<u32>| Some(list).filter(|list| !list.is_empty());
    put(fields, "allowed_token_ids", filled(options.allowed_token_ids));
    put(fields, "stop_token_ids", filled(options.stop_token_ids));
    let filled = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
    put(fields, "bad_words", filled(options.bad_words));
    put(fields, "stop", filled(options.stop));
    put(fields, "max_tokens", options.max_tokens);
    put(fields, "min_tokens", options.min_tokens);
    put(fields, "ignore_eos", Some(options.ignore_eos));
    put(fields, "include_stop_str_in_output", Some(options.include_stop_str_in_output));
    put(fields, "prompt_logprobs", options.prompt_logprobs);
    put(fields, "return_token_ids", Some(options.token_ids));
    put(fields, "skip_special_tokens", options.skip_special_tokens);
    put(fields, "truncate_prompt_tokens", options.truncate_prompt_tokens);
    put(fields, "priority", options.priority);
    put(fields, "add_special_tokens", options.add_special_tokens);
    Ok(())
}

/// Puts a conversation.
fn put_chat(
    fields: &mut Map<String, Value>,
    chat: Chat,
    limits: &RequestLimits,
) -> Result<(), ApiError> {
    // Before they become values.
    at_most("messages", "messages", chat.messages.len(), limits.max_messages)?;
    let messages = chat.messages.into_iter().enumerate();
    let messages = messages
        .map(|(index, message)| message_value(index, message))
        .collect::<Result<Vec<Value>, _>>()?;
    put(fields, "messages", Some(messages));
    put(fields, "continue_final_message", Some(chat.continue_final_message));
    let kwargs = chat.template_kwargs_json;
    put(fields, "chat_template_kwargs", from_json("chat_template_kwargs_json", kwargs)?);
    put(fields, "tools", from_json("tools_json", chat.tools_json)?);
    Ok(())
}

fn message_value(index: usize, message: ChatMessage) -> Result<Value, ApiError> {
    let ChatMessage { role, content, name, tool_call_id, tool_calls_json } = message;
    let mut value = Map::new();
    put(&mut value, "role", Some(role));
    // Protobuf cannot tell an empty text from none; a message with calls has none.
    if tool_calls_json.is_none() || !content.is_empty() {
        put(&mut value, "content", Some(content));
    }
    put(&mut value, "name", name);
    put(&mut value, "tool_call_id", tool_call_id);
    let calls = from_json(&format!("messages[{index}].tool_calls_json"), tool_calls_json)?;
    put(&mut value, "tool_calls", calls);
    Ok(Value::Object(value))
}

/// The JSON of the field `name`.
fn from_json(name: &str, json: Option<String>) -> Result<Option<Value>, ApiError> {
    let Some(json) = json else { return Ok(None) };
    let value = serde_json::from_str(&json);
    value.map(Some).map_err(|error| ApiError::invalid(name, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_does_not_have_are_refused_by_name() {
        for (name, options) in [
            ("temperature", GenerateOptions { temperature: Some(f64::NAN), ..Default::default() }),
            ("top_p", GenerateOptions { top_p: Some(f64::INFINITY), ..Default::default() }),
            (
                "logit_bias",
                GenerateOptions { logit_bias: vec![(1, f64::NAN)], ..Default::default() },
            ),
        ] {
            let error = put_options(&mut Map::new(), options).unwrap_err();
            assert!(error.message.contains(name), "{}", error.message);
        }
    }
}
