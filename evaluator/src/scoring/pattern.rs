//! Regular expressions, matched in time linear in the answer.

use regex::{Captures, Regex, RegexBuilder};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::ScoreError;
use super::scorer::Which;

/// Most memory of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Of an answer, no more than this is searched: its beginning, or its end for the last match.
const MAX_SEARCHED_BYTES: usize = 64 << 10;

/// A regular expression that has been compiled.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

/// Why a text is no [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is not written as one.
    #[error("{reason}")]
    Syntax {
        /// What is wrong.
        reason: String,
    },
    /// It would take too much memory.
    #[error("compiled, it would take more than {limit_bytes} bytes")]
    TooLarge {
        /// Most that it may take.
        limit_bytes: usize,
    },
}

impl Pattern {
    /// Compiles a pattern in the syntax of the `regex` crate.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let regex = RegexBuilder::new(text)
            .size_limit(MAX_PATTERN_BYTES)
            .dfa_size_limit(MAX_PATTERN_BYTES)
            .build();
        regex.map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                PatternError::TooLarge { limit_bytes: MAX_PATTERN_BYTES }
            }
            error => {
                // The lines above the last draw the pattern.
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                PatternError::Syntax { reason: last.trim_start_matches("error: ").to_owned() }
            }
        })
    }

    /// The text it was made from.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Groups, the whole match included.
    pub(super) fn groups(&self) -> usize {
        self.0.captures_len()
    }

    fn captures<'a>(&self, answer: &'a str, which: Which) -> Option<Captures<'a>> {
        let searched = searched(answer, which);
        match which {
            Which::First => self.0.captures(searched),
            Which::Last => self.0.captures_iter(searched).last(),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?)
            .map_err(|error| D::Error::custom(format!("not a regular expression: {error}")))
    }
}

fn searched(answer: &str, which: Which) -> &str {
    match which {
        Which::First => &answer[..answer.floor_char_boundary(MAX_SEARCHED_BYTES)],
        Which::Last => {
            let start = answer.len().saturating_sub(MAX_SEARCHED_BYTES);
            &answer[answer.ceil_char_boundary(start)..]
        }
    }
}

/// Whether an answer matches a pattern, or what a pattern finds in it is the reference.
///
/// Without a `pattern`, the reference is the pattern. Of an answer, 64 KiB are searched.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegexRule {
    /// What is searched for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// The number of the group that must be the reference, white space at the ends aside; 0 is the
    /// whole match. Without it, a match is all that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Of several matches, the one whose group is compared.
    pub which: Which,
}

impl RegexRule {
    pub(super) const SETTINGS: &[&str] = &["pattern", "group", "which"];

    /// Whether a match decides by itself.
    pub(super) fn needs_reference(&self) -> bool {
        self.pattern.is_none() || self.group.is_some()
    }

    /// Whether an answer fits one of the references.
    pub(super) fn fits(&self, answer: &str, reference: Option<&str>) -> Result<bool, ScoreError> {
        match (&self.pattern, self.group, reference) {
            (Some(pattern), None, _) => Ok(pattern.0.is_match(searched(answer, self.which))),
            (Some(pattern), Some(group), Some(reference)) => {
                let found = pattern.captures(answer, self.which);
                let found = found.as_ref().and_then(|captures| captures.get(group));
                Ok(found.is_some_and(|found| found.as_str().trim() == reference.trim()))
            }
            (None, _, Some(reference)) => {
                let pattern = Pattern::new(reference)
                    .map_err(|source| ScoreError::ReferencePattern { source })?;
                Ok(pattern.0.is_match(searched(answer, self.which)))
            }
            (_, _, None) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str, group: Option<usize>, which: Which) -> RegexRule {
        RegexRule { pattern: Some(Pattern::new(pattern).unwrap()), group, which }
    }

    #[test]
    fn a_match_or_what_was_found_counts() {
        let fits = |rule: &RegexRule, answer, reference| rule.fits(answer, reference).unwrap();
        let year = rule(r"\b\d{4}\b", None, Which::First);
        assert!(fits(&year, "in 1969", None) && !fits(&year, "in 69", None));
        let first = rule(r"x = (\d+)", Some(1), Which::First);
        let last = RegexRule { which: Which::Last, ..first.clone() };
        let answer = "x = 1, then x = 2";
        assert!(fits(&first, answer, Some(" 1")) && !fits(&first, answer, Some("2")));
        assert!(fits(&last, answer, Some("2")) && !fits(&last, answer, Some("1")));
        assert!(!fits(&last, "y", Some("1")));
        let theirs = RegexRule::default();
        assert!(
            fits(&theirs, "colour", Some("^colou?r$")) && !fits(&theirs, "hue", Some("colou?r"))
        );
    }

    #[test]
    fn what_is_no_pattern_is_said_without_repeating_it() {
        let error = Pattern::new("secret(").unwrap_err();
        assert_eq!(error, PatternError::Syntax { reason: "unclosed group".to_owned() });
        let error = Pattern::new(r"(\w{500}){500}").unwrap_err();
        assert!(matches!(error, PatternError::TooLarge { .. }), "{error}");
        let error = RegexRule::default().fits("a", Some("secret(")).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_long_answer_is_searched_in_part() {
        let long = format!("start {} end", "é".repeat(MAX_SEARCHED_BYTES));
        let fits = |pattern, which| rule(pattern, None, which).fits(&long, None).unwrap();
        assert!(fits("start", Which::First) && !fits("end", Which::First));
        assert!(!fits("start", Which::Last) && fits("end", Which::Last));
    }
}
