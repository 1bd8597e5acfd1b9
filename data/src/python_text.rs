//! Values written as Python writes them, since chat templates were made for it.

use std::fmt::Write;

use serde_json::Value;

/// Separators and indentation of `json.dumps`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct JsonStyle {
    pub(crate) indent: Option<usize>,
    pub(crate) sort_keys: bool,
}

/// `json.dumps(value, ensure_ascii=False)`.
pub(crate) fn json_dumps(value: &Value, style: JsonStyle) -> String {
    let mut text = String::new();
    write_json(&mut text, value, style, 0);
    text
}

fn write_json(text: &mut String, value: &Value, style: JsonStyle, depth: usize) {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(text, index, style, depth + 1);
                write_json(text, item, style, depth + 1);
            }
            close(text, items.is_empty(), style, depth, ']');
        }
        Value::Object(map) => {
            text.push('{');
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by(|a, b| a.0.cmp(b.0));
            }
            for (index, (key, item)) in entries.into_iter().enumerate() {
                separate(text, index, style, depth + 1);
                write_string(text, key);
                text.push_str(": ");
                write_json(text, item, style, depth + 1);
            }
            close(text, map.is_empty(), style, depth, '}');
        }
        Value::String(string) => write_string(text, string),
        Value::Number(number) => text.push_str(&python_number(number)),
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

fn separate(text: &mut String, index: usize, style: JsonStyle, depth: usize) {
    match style.indent {
        None if index > 0 => text.push_str(", "),
        None => {}
        Some(width) => {
            if index > 0 {
                text.push(',');
            }
            newline(text, width * depth);
        }
    }
}

fn close(text: &mut String, empty: bool, style: JsonStyle, depth: usize, bracket: char) {
    if let (Some(width), false) = (style.indent, empty) {
        newline(text, width * depth);
    }
    text.push(bracket);
}

fn newline(text: &mut String, spaces: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n(' ', spaces));
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// `repr` of an int or a float.
fn python_number(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => python_float(float),
        _ => number.to_string(),
    }
}

/// Shortest digits, plain between 1e-4 and 1e16, else with an exponent of two digits or more.
pub(crate) fn python_float(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let magnitude = float.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(digits) => ('-', digits),
            None => ('+', exponent),
        };
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    let text = float.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

/// `str(value)`, which for containers is `repr`.
pub(crate) fn python_str(value: &Value) -> String {
    match value {
        Value::String(string) => string.clone(),
        other => python_repr(other),
    }
}

fn python_repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => python_number(number),
        Value::String(string) => repr_of_string(string),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(python_repr).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => {
            let pair = |(key, item): (&String, &Value)| {
                format!("{}: {}", repr_of_string(key), python_repr(item))
            };
            let items: Vec<String> = map.iter().map(pair).collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

fn repr_of_string(string: &str) -> String {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    let mut text = String::from(quote);
    for c in string.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c == quote => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => {
                let _ = write!(text, "\\x{:02x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push(quote);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_as_python_dumps_it() {
        let value = json!({ "b": [1, 2.0, "é\n\"", null], "a": {}, "c": true });
        let plain = json_dumps(&value, JsonStyle::default());
        assert_eq!(plain, r#"{"b": [1, 2.0, "é\n\"", null], "a": {}, "c": true}"#);
        let style = JsonStyle { indent: Some(2), sort_keys: true };
        let indented = json_dumps(&json!({ "b": [1], "a": [] }), style);
        assert_eq!(indented, "{\n  \"a\": [],\n  \"b\": [\n    1\n  ]\n}");
    }

    #[test]
    fn floats_and_containers_as_python_prints_them() {
        for (float, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1e-5, "1e-05"),
            (123_456_789.0, "123456789.0"),
            (-0.0, "-0.0"),
        ] {
            assert_eq!(python_float(float), text);
        }
        let value = json!({ "a": [true, null, "it's"] });
        assert_eq!(python_str(&value), r#"{'a': [True, None, "it's"]}"#);
    }
}
