//! Chat templates: Jinja as `transformers` sets it up, with limits.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value};
use serde_json::{Map, Value as Json};

use crate::TextError;
use crate::python_json::{JsonStyle, dumps, number};
use crate::template_value::from_json;

/// Instructions of one rendering at most. A message takes some tens of them.
const MAX_FUEL: u64 = 20_000_000;
/// Text of one rendering at most, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Length of a template at most, in bytes; real ones have some kilobytes.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Nesting of macros and calls at most.
const MAX_RECURSION: usize = 64;
/// Spaces per level of `tojson(indent=...)` at most.
const MAX_INDENT: usize = 16;
/// What the template is called in error messages.
const NAME: &str = "chat_template";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

/// What a template renders.
#[derive(Clone, Copy, Debug)]
pub struct ChatPrompt<'a> {
    /// The conversation: an array of messages.
    pub messages: &'a Json,
    /// The tools, an array, if there are any.
    pub tools: Option<&'a Json>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Other variables (`chat_template_kwargs`); they cannot replace the fields above.
    pub kwargs: &'a Map<String, Json>,
    /// Text of the beginning-of-sequence token.
    pub bos_token: Option<&'a str>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<&'a str>,
}

impl ChatTemplate {
    /// Compiles a template. It can include no files and read no clock.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn new(source: &str) -> Result<Self, TextError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TextError::TemplateLimit {
                limit: MAX_SOURCE_BYTES as u64,
                unit: "bytes of source",
            });
        }
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .keep_trailing_newline(false)
            .build()
            .map_err(|error| TextError::InvalidTemplate(describe(&error)))?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_fuel(Some(MAX_FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(write_as_python);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TextError::InvalidTemplate(describe(&error)))?;
        Ok(Self { environment })
    }

    /// Renders the prompt's text.
    ///
    /// # Errors
    /// [`TextError::Raised`] where the template refuses the messages; otherwise a failure of the
    /// template, or one of its limits.
    pub fn render(&self, prompt: &ChatPrompt<'_>) -> Result<String, TextError> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TextError::InvalidTemplate(describe(&error)))?;
        let mut output = BoundedOutput::default();
        let result = template.render_captured_to(context(prompt), &mut output).map(|_| ());
        if output.exceeded {
            return Err(TextError::TemplateLimit {
                limit: MAX_OUTPUT_BYTES as u64,
                unit: "bytes of text",
            });
        }
        result.map_err(|error| render_error(&error))?;
        String::from_utf8(output.bytes).map_err(|error| TextError::Render(error.to_string()))
    }
}

fn context(prompt: &ChatPrompt<'_>) -> Value {
    let mut variables: Vec<(&str, Value)> =
        prompt.kwargs.iter().map(|(name, value)| (name.as_str(), from_json(value))).collect();
    variables.push(("messages", from_json(prompt.messages)));
    variables.push(("tools", prompt.tools.map_or_else(|| Value::from(()), from_json)));
    variables.push(("add_generation_prompt", Value::from(prompt.add_generation_prompt)));
    for (name, token) in [("bos_token", prompt.bos_token), ("eos_token", prompt.eos_token)] {
        if let Some(token) = token {
            variables.push((name, Value::from(token)));
        }
    }
    Value::from_pairs(variables)
}

/// Collects text up to a limit.
#[derive(Default)]
struct BoundedOutput {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a printed value as Python's `str` does, where Jinja for Rust differs.
fn write_as_python(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => output.write_str("None").map_err(Error::from),
        ValueKind::Bool => {
            output.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from)
        }
        ValueKind::Number => output.write_str(&number(value)).map_err(Error::from),
        _ => minijinja::escape_formatter(output, state, value),
    }
}

/// The `tojson` filter of `transformers`: `json.dumps` with `ensure_ascii=False`.
#[expect(clippy::needless_pass_by_value, reason = "a filter takes its arguments by value")]
fn tojson(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    if !positional.is_empty() {
        let message = "tojson takes its options by name";
        return Err(Error::new(ErrorKind::TooManyArguments, message));
    }
    let indent: Option<usize> = kwargs.get("indent")?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson's indent is too large"));
    }
    let mut style = JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        ..JsonStyle::default()
    };
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    match separators.as_deref() {
        Some([item, key]) => {
            style.item_separator.clone_from(item);
            style.key_separator.clone_from(key);
        }
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators is a pair of strings"));
        }
        // As json.dumps: no space before a line break.
        None if indent.is_some() => ",".clone_into(&mut style.item_separator),
        None => {}
    }
    dumps(value, &style).map(Value::from)
}

/// What marks an error as the template's own words.
const RAISED: &str = "raised by the template: ";

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn render_error(error: &Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateLimit { limit: MAX_FUEL, unit: "instructions" };
    }
    match error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        Some(message) => TextError::Raised(message.to_owned()),
        None => TextError::Render(describe(error)),
    }
}

/// An error in one line, with the template's line.
fn describe(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
