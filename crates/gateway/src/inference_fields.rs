//! A gRPC request as the fields of an HTTP request, so that both are checked by the same code.

use oarlock_rpc::{Chat, GenerateOptions, InferencePrompt, InferenceRequest};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::RequestLimits;
use crate::messages::Conversation;

/// Bytes of work that a field counts for besides its texts.
const BYTES_PER_ITEM: usize = 8;

/// The fields of a chat or of a completion request.
pub(crate) fn generate_fields(request: InferenceRequest) -> Result<Fields, ApiError> {
    let InferenceRequest { model, prompt, options } = request;
    let mut fields = Map::new();
    fields.insert("model".to_owned(), Value::from(model));
    let logprobs = options.logprobs;
    let num_items = put_options(&mut fields, options);
    let num_bytes = match prompt {
        InferencePrompt::Text(text) => {
            let num_bytes = text.len();
            put(&mut fields, "prompt", Some(text));
            put(&mut fields, "logprobs", logprobs);
            num_bytes
        }
        InferencePrompt::Tokens(ids) => {
            let num_bytes = ids.len() * BYTES_PER_ITEM;
            put(&mut fields, "prompt", Some(ids));
            put(&mut fields, "logprobs", logprobs);
            num_bytes
        }
        InferencePrompt::Chat(chat) => {
            put(&mut fields, "logprobs", logprobs.map(|_| true));
            put(&mut fields, "top_logprobs", logprobs);
            put_chat(&mut fields, chat)?
        }
    };
    Ok(Fields::new(fields, num_bytes + num_items * BYTES_PER_ITEM))
}

/// A conversation on its own.
pub(crate) fn conversation_fields(
    chat: Chat,
    limits: &RequestLimits,
) -> Result<Conversation, ApiError> {
    let mut map = Map::new();
    let num_bytes = put_chat(&mut map, chat)?;
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

/// Puts what is not at its default; returns how many items there are.
fn put_options(fields: &mut Map<String, Value>, options: GenerateOptions) -> usize {
    let num_items = options.logit_bias.len()
        + options.allowed_token_ids.len()
        + options.bad_words.len()
        + options.stop.len()
        + options.stop_token_ids.len();
    put(fields, "temperature", options.temperature);
    put(fields, "top_k", options.top_k);
    put(fields, "top_p", options.top_p);
    put(fields, "min_p", options.min_p);
    put(fields, "seed", options.seed);
    put(fields, "n", options.n);
    put(fields, "repetition_penalty", options.repetition_penalty);
    put(fields, "presence_penalty", options.presence_penalty);
    put(fields, "frequency_penalty", options.frequency_penalty);
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
    num_items
}

/// Puts a conversation; returns how many bytes of text it has.
fn put_chat(fields: &mut Map<String, Value>, chat: Chat) -> Result<usize, ApiError> {
    let mut num_bytes = 0;
    let messages: Vec<Value> = chat
        .messages
        .into_iter()
        .map(|message| {
            num_bytes += message.content.len();
            let mut value = json!({"role": message.role, "content": message.content});
            if let Some(name) = message.name {
                value["name"] = Value::from(name);
            }
            value
        })
        .collect();
    put(fields, "messages", Some(messages));
    put(fields, "continue_final_message", Some(chat.continue_final_message));
    for (name, json) in
        [("chat_template_kwargs", chat.template_kwargs_json), ("tools", chat.tools_json)]
    {
        let Some(json) = json else { continue };
        num_bytes += json.len();
        let value: Value = serde_json::from_str(&json)
            .map_err(|error| ApiError::invalid(format!("{name}_json"), error.to_string()))?;
        put(fields, name, Some(value));
    }
    Ok(num_bytes)
}
