//! Chat messages and tools: checked, and brought into the form that templates expect.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, wrong_type};
use crate::limits::RequestLimits;
use crate::rules::at_most;

const ROLES: [&str; 5] = ["assistant", "developer", "system", "tool", "user"];
/// Fields of a message that go to the template as they are.
const PASSED: [&str; 3] = ["name", "reasoning_content", "tool_call_id"];
/// Fields that clients send back from an answer; they must be empty.
const EMPTY: [&str; 4] = ["annotations", "audio", "function_call", "refusal"];

/// What a chat prompt is made of.
pub(crate) struct Conversation {
    /// An array of messages with string contents.
    pub(crate) messages: Value,
    /// An array of tools, if there are any.
    pub(crate) tools: Option<Value>,
    /// Further variables of the template.
    pub(crate) template_kwargs: Map<String, Value>,
    pub(crate) add_generation_prompt: bool,
    /// The last message is left open, and the answer goes on where it ends.
    pub(crate) continue_final_message: bool,
}

impl Conversation {
    /// Takes `messages`, `tools`, `tool_choice`, `chat_template_kwargs`, `add_generation_prompt` and
    /// `continue_final_message`.
    pub(crate) fn take(fields: &mut Fields, limits: &RequestLimits) -> Result<Self, ApiError> {
        let messages = fields.array("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
        if messages.is_empty() {
            return Err(ApiError::invalid("messages", "expected at least one message"));
        }
        at_most("messages", "messages", messages.len(), limits.max_messages)?;
        let messages = messages
            .into_iter()
            .enumerate()
            .map(|(index, message)| check_message(&format!("messages[{index}]"), message))
            .collect::<Result<Vec<_>, _>>()?;
        let tools = take_tools(fields, limits.max_tools)?;
        let template_kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
        for name in ["messages", "tools", "bos_token", "eos_token", "add_generation_prompt"] {
            if template_kwargs.contains_key(name) {
                return Err(ApiError::invalid(
                    "chat_template_kwargs",
                    format!("it cannot set '{name}'"),
                ));
            }
        }
        let continue_final_message = take_continuation(fields, messages.last())?;
        let add_generation_prompt =
            fields.boolean("add_generation_prompt")?.unwrap_or(!continue_final_message);
        if add_generation_prompt && continue_final_message {
            let message = "it goes with \"add_generation_prompt\": false only";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        Ok(Self {
            messages: Value::Array(messages),
            tools,
            template_kwargs,
            add_generation_prompt,
            continue_final_message,
        })
    }

    /// Appends to the last message's content.
    pub(crate) fn append_to_last(&mut self, text: &str) {
        let last = self.messages.as_array_mut().and_then(|messages| messages.last_mut());
        if let Some(Value::String(content)) = last.and_then(|last| last.get_mut("content")) {
            content.push_str(text);
        }
    }

    /// About how many bytes of work it is to render and tokenize this.
    pub(crate) fn approximate_bytes(&self) -> usize {
        weigh(&self.messages) + self.tools.as_ref().map_or(0, weigh)
    }
}

/// Whether the last message is to be continued; it needs a text for that.
fn take_continuation(fields: &mut Fields, last: Option<&Value>) -> Result<bool, ApiError> {
    const NAME: &str = "continue_final_message";
    let asked = fields.boolean(NAME)?.unwrap_or(false);
    if asked && !last.is_some_and(|last| last["content"].is_string()) {
        return Err(ApiError::invalid(NAME, "the last message has no text to go on from"));
    }
    Ok(asked)
}

fn weigh(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weigh).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + weigh(value)).sum(),
        _ => 4,
    }
}

fn check_message(at: &str, message: Value) -> Result<Value, ApiError> {
    let Value::Object(map) = message else { return Err(wrong_type(at, "an object", &message)) };
    let mut checked = Map::new();
    let mut role = None;
    for (name, value) in map {
        let place = format!("{at}.{name}");
        match name.as_str() {
            "role" => {
                role = value.as_str().filter(|role| ROLES.contains(role)).map(str::to_owned);
                if role.is_none() {
                    return Err(ApiError::invalid(
                        place,
                        format!("expected one of {}", ROLES.join(", ")),
                    ));
                }
                // Newer clients call the system message so; templates know it by its old name.
                let value = if value == "developer" { Value::from("system") } else { value };
                checked.insert(name, value);
            }
            "content" => {
                checked.insert(name, join_content(&place, value)?);
            }
            "tool_calls" if !value.is_null() => {
                let calls = check_tool_calls(&place, value)?;
                // An empty array is no tool call; templates test for the field's truth.
                if !calls.is_empty() {
                    checked.insert(name, Value::Array(calls));
                }
            }
            known if PASSED.contains(&known) => match value {
                Value::Null => {}
                Value::String(_) => {
                    checked.insert(name, value);
                }
                other => return Err(wrong_type(&place, "a string", &other)),
            },
            _ if value.is_null() => {}
            known if EMPTY.contains(&known) => {
                if value.as_array().is_none_or(|items| !items.is_empty()) {
                    return Err(ApiError::unsupported(place, "it is not supported yet"));
                }
            }
            _ => return Err(ApiError::unknown(place)),
        }
    }
    let role = role.ok_or_else(|| ApiError::missing(format!("{at}.role")))?;
    let without_content = checked.get("content").is_none_or(Value::is_null);
    if without_content && !(role == "assistant" && checked.contains_key("tool_calls")) {
        return Err(ApiError::missing(format!("{at}.content")));
    }
    if without_content {
        // Absent and null are the same to a client; a template sees one of them.
        checked.insert("content".to_owned(), Value::Null);
    }
    Ok(Value::Object(checked))
}

/// Content as one string; the parts of an array are joined by line breaks.
fn join_content(at: &str, content: Value) -> Result<Value, ApiError> {
    let parts = match content {
        Value::String(_) | Value::Null => return Ok(content),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(at, "a string or an array of parts", &other)),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let place = format!("{at}[{index}]");
        let Value::Object(part) = part else { return Err(wrong_type(&place, "an object", &part)) };
        let mut part = Fields::nested(part, &place);
        match part.string("type")?.as_deref() {
            Some("text") => {}
            Some(kind) => {
                return Err(ApiError::unsupported(
                    part.path("type"),
                    format!("parts of type '{kind}' are not supported yet, only 'text'"),
                ));
            }
            None => return Err(ApiError::missing(part.path("type"))),
        }
        texts.push(part.string("text")?.ok_or_else(|| ApiError::missing(part.path("text")))?);
        part.finish()?;
    }
    Ok(Value::String(texts.join("\n")))
}

/// Tool calls, with arguments as objects: clients send them as JSON in a string.
fn check_tool_calls(at: &str, calls: Value) -> Result<Vec<Value>, ApiError> {
    let Value::Array(mut calls) = calls else { return Err(wrong_type(at, "an array", &calls)) };
    for (index, call) in calls.iter_mut().enumerate() {
        let place = format!("{at}[{index}]");
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let function = function.ok_or_else(|| ApiError::missing(format!("{place}.function")))?;
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(ApiError::missing(format!("{place}.function.name")));
        }
        if let Some(arguments) = function.get_mut("arguments")
            && let Some(text) = arguments.as_str()
        {
            // Clients send an empty text for a call without arguments.
            let text = if text.is_empty() { "{}" } else { text };
            if let Ok(object) = serde_json::from_str::<Map<String, Value>>(text) {
                *arguments = Value::Object(object);
            }
        }
    }
    Ok(calls)
}

fn take_tools(fields: &mut Fields, limit: u32) -> Result<Option<Value>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default();
    at_most("tools", "tools", tools.len(), limit)?;
    for (index, tool) in tools.iter().enumerate() {
        let place = format!("tools[{index}]");
        if tool.get("type").and_then(Value::as_str) != Some("function") {
            return Err(ApiError::unsupported(
                format!("{place}.type"),
                "only 'function' is supported",
            ));
        }
        if !tool
            .get("function")
            .and_then(|function| function.get("name"))
            .is_some_and(Value::is_string)
        {
            return Err(ApiError::missing(format!("{place}.function.name")));
        }
    }
    let use_tools = match fields.take("tool_choice") {
        None => true,
        Some(Value::String(choice)) if choice == "auto" => true,
        // A model that is shown no tools calls none.
        Some(Value::String(choice)) if choice == "none" => false,
        Some(_) => {
            let message = "only 'none' and 'auto' are supported so far";
            return Err(ApiError::unsupported("tool_choice", message));
        }
    };
    Ok((use_tools && !tools.is_empty()).then_some(Value::Array(tools)))
}
