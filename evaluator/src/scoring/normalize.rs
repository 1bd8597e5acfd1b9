//! Differences between two texts that do not count.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// What is overlooked when texts are compared; white space at the ends always is.
///
/// With all four of them, texts are compared as SQuAD's evaluation does (Rajpurkar et al. 2016),
/// but that punctuation outside of ASCII goes as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Normalize {
    /// Letters are compared in lower case.
    pub ignore_case: bool,
    /// Punctuation is left out.
    pub ignore_punctuation: bool,
    /// Any run of white space is one space.
    pub ignore_whitespace: bool,
    /// The words `a`, `an` and `the` are left out.
    pub ignore_articles: bool,
}

static PUNCTUATION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"[[:punct:]\p{Punctuation}]+").ok());
static ARTICLES: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?i)\b(a|an|the)\b").ok());

impl Normalize {
    /// The settings' names.
    pub(super) const SETTINGS: &[&str] =
        &["ignore_case", "ignore_punctuation", "ignore_whitespace", "ignore_articles"];

    /// The text without what is overlooked.
    pub fn of<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text.trim());
        if self.ignore_case {
            text = Cow::Owned(text.to_lowercase());
        }
        if self.ignore_punctuation {
            text = without(&PUNCTUATION, text, "");
        }
        if self.ignore_articles {
            text = without(&ARTICLES, text, " ");
        }
        if self.ignore_whitespace {
            return Cow::Owned(text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
            Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
        }
    }
}

fn without<'a>(what: &Option<Regex>, text: Cow<'a, str>, by: &str) -> Cow<'a, str> {
    match what {
        Some(regex) => Cow::Owned(regex.replace_all(&text, by).into_owned()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_overlooks_its_own() {
        let text = " The  Cat, „a“ dog! ";
        let none = Normalize::default();
        assert_eq!(none.of(text), "The  Cat, „a“ dog!");
        assert_eq!(Normalize { ignore_case: true, ..none }.of(text), "the  cat, „a“ dog!");
        assert_eq!(Normalize { ignore_punctuation: true, ..none }.of(text), "The  Cat a dog");
        assert_eq!(Normalize { ignore_whitespace: true, ..none }.of(text), "The Cat, „a“ dog!");
        assert_eq!(Normalize { ignore_articles: true, ..none }.of("The cat"), "cat");
        let all = Normalize {
            ignore_case: true,
            ignore_punctuation: true,
            ignore_whitespace: true,
            ignore_articles: true,
        };
        assert_eq!(all.of(text), "cat dog");
    }
}
