//! Answers that are JSON, and the value that they hold.

use serde_json::{Number, Value};

use super::error::ScoreError;
use super::reference::Reference;

/// Whether an answer is JSON and nothing else. Deeper than 128 levels it is none.
pub(super) fn is_valid(answer: &str) -> bool {
    parse(answer).is_ok()
}

/// Whether an answer is JSON with the reference's value. A reference that is a text is read as
/// JSON, any other is taken as it is.
pub(super) fn is_equal(answer: &str, reference: &Reference) -> Result<bool, ScoreError> {
    let parsed = match &reference.0 {
        Value::String(text) => {
            &parse(text).map_err(|source| ScoreError::ReferenceJson { source })?
        }
        value => value,
    };
    Ok(parse(answer).is_ok_and(|answer| same(&answer, parsed)))
}

fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

/// Equal but for the order of an object's members and the way a number is written.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let in_b = |(key, value): (&String, &Value)| b.get(key).is_some_and(|b| same(value, b));
            a.len() == b.len() && a.iter().all(in_b)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Number(a), Value::Number(b)) => match (whole(a), whole(b)) {
            (Some(a), Some(b)) => a == b,
            (None, None) => a.as_f64() == b.as_f64(),
            _ => false,
        },
        _ => a == b,
    }
}

/// A number without a fraction, if it has none and is no larger than 10³⁸.
fn whole(number: &Number) -> Option<i128> {
    if let Some(number) = number.as_i64() {
        return Some(number.into());
    }
    if let Some(number) = number.as_u64() {
        return Some(number.into());
    }
    number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e38).map(|x| x as i128)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_and_not_how_they_are_written() {
        let reference = Reference::from(json!({ "a": [1, 2.5, null], "b": { "c": "é" } }));
        let equal = |answer: &str| is_equal(answer, &reference).unwrap();
        assert!(equal(r#" {"b": {"c": "\u00e9"}, "a": [1.0, 25e-1, null]} "#));
        assert!(!equal(r#"{"b": {"c": "e"}, "a": [1, 2.5, null]}"#));
        assert!(!equal(r#"{"b": {"c": "é"}, "a": [2.5, 1, null]}"#));
        assert!(!equal(r#"{"b": {"c": "é"}, "a": [1, 2.5, null], "d": 1}"#));
        assert!(!equal("{"));
    }

    #[test]
    fn large_whole_numbers_keep_their_last_digit() {
        let equal = |answer: &str, reference: &str| is_equal(answer, &reference.into()).unwrap();
        assert!(!equal("9007199254740993", "9007199254740992"));
        assert!(!equal("9007199254740993", "9007199254740992.0"));
        assert!(equal("18446744073709551615", "18446744073709551615"));
        assert!(!equal("-1", "18446744073709551615"));
        assert!(equal("1e2", "100") && equal("-0.0", "0") && equal("1e300", "1.0e300"));
    }

    #[test]
    fn only_all_of_a_text_is_json() {
        for valid in ["1", " [] ", "\"a\"", "null", "{\"a\": 1}"] {
            assert!(is_valid(valid), "{valid}");
        }
        let deep = "[".repeat(100_000);
        for invalid in ["", "a", "{} {}", "NaN", "{a: 1}", "```json\n{}\n```", &deep] {
            assert!(!is_valid(invalid));
        }
        assert!(is_equal("1", &"{".into()).is_err());
    }
}
