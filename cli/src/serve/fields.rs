//! Fields of a request by their types. `null` is as good as absent.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// The fields of an object.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

type Read<T> = Result<Option<T>, Refusal>;

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Read<T> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let wrong = || Refusal::invalid(Some(name), format!("'{name}' must be {expected}."));
        read(value).map(Some).ok_or_else(wrong)
    }

    pub(super) fn text(&self, name: &'static str) -> Read<String> {
        self.read(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn flag(&self, name: &'static str) -> Read<bool> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub(super) fn object(&self, name: &'static str) -> Read<&'a Map<String, Value>> {
        self.read(name, "an object", Value::as_object)
    }

    pub(super) fn integer(&self, name: &'static str) -> Read<i64> {
        self.read(name, "an integer", Value::as_i64)
    }

    /// A whole number from `least` to `most`.
    pub(super) fn whole(&self, name: &'static str, least: u64, most: u64) -> Read<u64> {
        let expected = if most == u64::MAX {
            format!("an integer of at least {least}")
        } else {
            format!("an integer from {least} to {most}")
        };
        let within = |number: &u64| (least..=most).contains(number);
        self.read(name, &expected, |value| value.as_u64().filter(within))
    }

    /// A number from `least` to `most`.
    pub(super) fn number(&self, name: &'static str, least: f64, most: f64) -> Read<f64> {
        let expected = format!("a number from {least} to {most}");
        let within = |number: &f64| (least..=most).contains(number);
        self.read(name, &expected, |value| value.as_f64().filter(within))
    }
}
