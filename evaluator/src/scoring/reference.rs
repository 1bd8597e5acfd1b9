//! What an answer is compared with.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::ScoreError;

/// A value of a record that says what a good answer is: usually a text.
///
/// A list of texts holds several good answers, of which the one that fits best counts; only
/// `json_equal` takes every value as it is. `null` is a reference that is missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reference(pub Value);

impl From<&str> for Reference {
    fn from(text: &str) -> Self {
        Self(Value::from(text))
    }
}

impl From<String> for Reference {
    fn from(text: String) -> Self {
        Self(Value::from(text))
    }
}

impl From<Vec<String>> for Reference {
    fn from(texts: Vec<String>) -> Self {
        Self(Value::from(texts))
    }
}

impl From<Value> for Reference {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

impl Reference {
    /// The texts that `scorer` compares with: one, or those of a list; at least one.
    pub(super) fn texts(&self, scorer: &'static str) -> Result<Vec<Cow<'_, str>>, ScoreError> {
        match &self.0 {
            Value::Array(list) if list.is_empty() => {
                Err(ScoreError::ReferenceKind { scorer, found: "an empty list" })
            }
            Value::Array(list) => list.iter().map(|value| text(value, scorer)).collect(),
            value => Ok(vec![text(value, scorer)?]),
        }
    }
}

fn text<'a>(value: &'a Value, scorer: &'static str) -> Result<Cow<'a, str>, ScoreError> {
    let found = match value {
        Value::String(text) => return Ok(Cow::Borrowed(text)),
        Value::Number(number) => return Ok(Cow::Owned(number.to_string())),
        Value::Bool(truth) => return Ok(Cow::Borrowed(if *truth { "true" } else { "false" })),
        Value::Null => "null",
        Value::Array(_) => "a list in a list",
        Value::Object(_) => "an object",
    };
    Err(ScoreError::ReferenceKind { scorer, found })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_numbers_and_lists_of_them_are_references() {
        let texts = |value: Value| {
            let reference = Reference::from(value);
            reference.texts("chrf").map(|texts| texts.join("|")).map_err(|error| error.to_string())
        };
        assert_eq!(texts(json!("a")).unwrap(), "a");
        assert_eq!(texts(json!(["a", 4, true])).unwrap(), "a|4|true");
        assert_eq!(texts(json!(1.5)).unwrap(), "1.5");
        let found = |value| texts(value).unwrap_err().rsplit(" is ").next().unwrap().to_owned();
        assert_eq!(found(json!({ "a": 1 })), "an object");
        assert_eq!(found(json!([])), "an empty list");
        assert_eq!(found(json!(["a", ["b"]])), "a list in a list");
        assert_eq!(found(json!(["a", null])), "null");
    }
}
