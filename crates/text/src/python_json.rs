//! JSON and numbers exactly as Python writes them: what chat templates were made with.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Text of one `tojson` at most, up to its last value; conversations have at most megabytes.
const MAX_JSON_BYTES: usize = 8 << 20;
/// Levels of nesting at most; the request's JSON has fewer.
const MAX_DEPTH: usize = 200;

/// The keyword arguments of `json.dumps` that templates use.
pub(crate) struct JsonStyle {
    /// Escape everything outside of ASCII.
    pub(crate) ensure_ascii: bool,
    /// Spaces per level; `None` writes one line.
    pub(crate) indent: Option<usize>,
    /// Between items.
    pub(crate) item_separator: String,
    /// Between key and value.
    pub(crate) key_separator: String,
    /// Order keys by code point.
    pub(crate) sort_keys: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }
}

/// `json.dumps(value)` in the given style.
pub(crate) fn dumps(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut text = String::new();
    write_value(value, style, 0, &mut text)?;
    Ok(text)
}

/// JSON of JSON of JSON doubles its backslashes each time: what a template asks for is bounded.
fn too_long() -> Error {
    let message = format!("tojson gives at most {MAX_JSON_BYTES} bytes");
    Error::new(ErrorKind::InvalidOperation, message)
}

fn write_value(
    value: &Value,
    style: &JsonStyle,
    depth: usize,
    text: &mut String,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "value is nested too deeply for tojson",
        ));
    }
    if text.len() > MAX_JSON_BYTES {
        return Err(too_long());
    }
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => {
            let string = value.as_str().unwrap_or_default();
            if string.len() > MAX_JSON_BYTES {
                return Err(too_long());
            }
            write_string(string, style.ensure_ascii, text);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(style, depth, ('[', ']'), &items, text, |item, text| {
                write_value(item, style, depth + 1, text)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            write_items(style, depth, ('{', '}'), &keys, text, |key, text| {
                match key.as_str() {
                    Some(name) => write_string(name, style.ensure_ascii, text),
                    None => write_string(&key.to_string(), style.ensure_ascii, text),
                }
                text.push_str(&style.key_separator);
                write_value(&value.get_item(key)?, style, depth + 1, text)
            })?;
        }
        kind => {
            let message = format!("value of type {kind} is not JSON serializable");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

fn write_items(
    style: &JsonStyle,
    depth: usize,
    (open, close): (char, char),
    items: &[Value],
    text: &mut String,
    mut write_item: impl FnMut(&Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |depth: usize, text: &mut String| {
        if let Some(indent) = style.indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    text.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push_str(&style.item_separator);
        }
        new_line(depth + 1, text);
        write_item(item, text)?;
    }
    if !items.is_empty() {
        new_line(depth, text);
    }
    text.push(close);
    Ok(())
}

fn write_string(string: &str, ensure_ascii: bool, text: &mut String) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\0'..='\u{1f}' => push_escaped(character, text),
            '\u{7f}'.. if ensure_ascii => push_escaped(character, text),
            _ => text.push(character),
        }
    }
    text.push('"');
}

fn push_escaped(character: char, text: &mut String) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\u{unit:04x}");
    }
}

/// A number as Python's `repr` gives it.
pub(crate) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// A float as Python's `repr` and `json.dumps` give it: the shortest digits that read back equal,
/// in exponent form below 1e-4 and from 1e16 on.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let fixed = format!("{value}");
    if fixed.contains('.') { fixed } else { format!("{fixed}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template_value::from_json;

    fn dumps_text(json: &str, style: &JsonStyle) -> String {
        dumps(&from_json(&serde_json::from_str(json).unwrap()), style).unwrap()
    }

    #[test]
    fn json_of_json_of_json_has_an_end() {
        let mut value = Value::from("\"");
        let error = loop {
            match dumps(&value, &JsonStyle::default()) {
                Ok(text) => value = Value::from(text),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("at most"), "{error}");
    }

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "Infinity"),
        ];
        for (value, expected) in cases {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn one_line_keeps_the_order_of_keys() {
        let json =
            r#"{"b": [1, 2.50, true, null], "a": {"é\u0001\n": "日\"\\"}, "c": [], "d": {}}"#;
        let expected =
            r#"{"b": [1, 2.5, true, null], "a": {"é\u0001\n": "日\"\\"}, "c": [], "d": {}}"#;
        assert_eq!(dumps_text(json, &JsonStyle::default()), expected);
    }

    #[test]
    fn styles_follow_json_dumps() {
        let style =
            JsonStyle { indent: Some(2), item_separator: ",".to_owned(), ..JsonStyle::default() };
        assert_eq!(
            dumps_text(r#"{"a":[1],"b":{}}"#, &style),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
        let style = JsonStyle { ensure_ascii: true, sort_keys: true, ..JsonStyle::default() };
        assert_eq!(
            dumps_text(r#"{"b":"é😀","a":1}"#, &style),
            r#"{"a": 1, "b": "\u00e9\ud83d\ude00"}"#
        );
    }
}
