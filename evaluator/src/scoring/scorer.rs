//! What a scorer is, and how it comes to a score.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chrf::Chrf;
use super::error::ScoreError;
use super::extract::{Extract, without_thinking};
use super::json;
use super::normalize::Normalize;
use super::numeric::Numeric;
use super::pattern::RegexRule;
use super::reference::Reference;
use super::rouge::RougeL;

/// How an answer becomes a number from 0 to 1.
///
/// In configuration it is a name, `"contains"`, or a table with the name and settings,
/// `{ name = "numeric", tolerance = 1e-3, extract = "boxed" }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scorer {
    /// What is compared.
    pub rule: Rule,
    /// The part of the answer that is scored. An answer without that part scores 0.
    pub extract: Extract,
    /// Whether `<think>…</think>` is cut out of answer and reference before anything else; a
    /// reference that is a pattern stays as it is.
    pub strip_thinking: bool,
}

/// What a scorer compares.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// 1 if the answer is the reference, `exact_match`.
    ExactMatch(Normalize),
    /// 1 if the answer contains the reference, `contains`.
    Contains(Normalize),
    /// 1 if the answer matches a pattern, `regex`.
    Regex(RegexRule),
    /// 1 if the answer is JSON, `json_valid`.
    JsonValid,
    /// 1 if the answer is JSON with the reference's value, `json_equal`: the order of members does
    /// not count, nor how a number is written.
    JsonEqual,
    /// 1 if the answer's number is the reference's, `numeric`.
    Numeric(Numeric),
    /// The longest sequence of words in common, `rouge_l`.
    RougeL(RougeL),
    /// Character n-grams in common, `chrf`.
    Chrf(Chrf),
}

/// Which of several finds counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The first.
    #[default]
    First,
    /// The last.
    Last,
}

impl From<Rule> for Scorer {
    fn from(rule: Rule) -> Self {
        Self { rule, extract: Extract::Whole, strip_thinking: true }
    }
}

impl Default for Scorer {
    fn default() -> Self {
        Rule::ExactMatch(Normalize::default()).into()
    }
}

impl Rule {
    /// What configuration calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ExactMatch(_) => "exact_match",
            Self::Contains(_) => "contains",
            Self::Regex(_) => "regex",
            Self::JsonValid => "json_valid",
            Self::JsonEqual => "json_equal",
            Self::Numeric(_) => "numeric",
            Self::RougeL(_) => "rouge_l",
            Self::Chrf(_) => "chrf",
        }
    }
}

impl Scorer {
    /// The names of all scorers.
    pub const NAMES: [&'static str; 8] = [
        "exact_match",
        "contains",
        "regex",
        "json_valid",
        "json_equal",
        "numeric",
        "rouge_l",
        "chrf",
    ];

    /// What configuration calls it.
    pub fn name(&self) -> &'static str {
        self.rule.name()
    }

    /// Whether an answer has no score without a reference.
    pub fn needs_reference(&self) -> bool {
        match &self.rule {
            Rule::JsonValid => false,
            Rule::Regex(rule) => rule.needs_reference(),
            _ => true,
        }
    }

    /// Whether every score is 0 or 1.
    pub fn is_binary(&self) -> bool {
        !matches!(self.rule, Rule::RougeL(_) | Rule::Chrf(_))
    }

    /// The score of an answer, from 0 to 1; of several references, the best one. `None` where it
    /// needs a reference and there is none.
    pub fn score(
        &self,
        answer: &str,
        reference: Option<&Reference>,
    ) -> Result<Option<f64>, ScoreError> {
        let reference = reference.filter(|reference| !reference.0.is_null());
        let answer = if self.strip_thinking { without_thinking(answer) } else { answer.into() };
        let part = self.extract.of(&answer);
        match reference {
            None if self.needs_reference() => Ok(None),
            None => part.map_or(Ok(0.0), |part| self.without_reference(part)).map(Some),
            Some(reference) => part.map_or(Ok(0.0), |part| self.compare(part, reference)).map(Some),
        }
    }

    fn without_reference(&self, answer: &str) -> Result<f64, ScoreError> {
        let fits = match &self.rule {
            Rule::JsonValid => json::is_valid(answer),
            Rule::Regex(rule) => rule.fits(answer, None)?,
            _ => false,
        };
        Ok(f64::from(u8::from(fits)))
    }

    fn compare(&self, answer: &str, reference: &Reference) -> Result<f64, ScoreError> {
        if !self.needs_reference() {
            return self.without_reference(answer);
        }
        if self.rule == Rule::JsonEqual {
            let reference = match &reference.0 {
                Value::String(text) => Reference::from(self.of_reference(text).as_ref()),
                _ => reference.clone(),
            };
            return Ok(f64::from(u8::from(json::is_equal(answer, &reference)?)));
        }
        let mut best = 0.0;
        for text in reference.texts(self.name())? {
            best = self.compare_with_text(answer, &self.of_reference(&text))?.max(best);
        }
        Ok(best)
    }

    /// What is compared of a reference's text: a model that learned to think aloud has records that
    /// do so too.
    fn of_reference<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let is_pattern = matches!(&self.rule, Rule::Regex(rule) if rule.pattern.is_none());
        if self.strip_thinking && !is_pattern { without_thinking(text) } else { text.into() }
    }

    fn compare_with_text(&self, answer: &str, reference: &str) -> Result<f64, ScoreError> {
        let fits = match &self.rule {
            Rule::ExactMatch(normalize) => normalize.of(answer) == normalize.of(reference),
            Rule::Contains(normalize) => {
                let reference = normalize.of(reference);
                if reference.is_empty() {
                    return Err(ScoreError::EmptyReference { scorer: self.name() });
                }
                normalize.of(answer).contains(reference.as_ref())
            }
            Rule::Regex(rule) => rule.fits(answer, Some(reference))?,
            Rule::Numeric(rule) => rule.fits(answer, reference)?,
            Rule::RougeL(rule) => return Ok(rule.f1(answer, reference)),
            Rule::Chrf(rule) => return Ok(rule.score(answer, reference)),
            Rule::JsonValid | Rule::JsonEqual => false,
        };
        Ok(f64::from(u8::from(fits)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn score(scorer: serde_json::Value, answer: &str, reference: serde_json::Value) -> Option<f64> {
        let scorer: Scorer = serde_json::from_value(scorer).unwrap();
        scorer.score(answer, Some(&reference.into())).unwrap()
    }

    #[test]
    fn thinking_is_left_out_of_the_reference_too() {
        let (thought, short) = ("<think>Hm.</think>\nParis", "<think>Easy.</think>Paris");
        assert_eq!(score(json!("exact_match"), short, json!(thought)), Some(1.0));
        assert_eq!(score(json!("exact_match"), "Paris", json!(["Lyon", thought])), Some(1.0));
        assert_eq!(score(json!("numeric"), "4", json!("<think>2 + 3</think>4")), Some(1.0));
        assert_eq!(score(json!("json_equal"), "[1]", json!("<think>a</think>[1]")), Some(1.0));
        let kept = json!({ "name": "exact_match", "strip_thinking": false });
        assert_eq!(score(kept, "Paris", json!(thought)), Some(0.0));
        // What captures is compared with a text; without a pattern the reference is one.
        let group = json!({ "name": "regex", "pattern": "is (.*)", "group": 1 });
        assert_eq!(score(group, "It is Paris", json!("<think>Hm.</think>Paris")), Some(1.0));
        let pattern = json!({ "name": "regex", "strip_thinking": true });
        assert_eq!(score(pattern, "ac", json!("a<think>b</think>c")), Some(0.0));
    }

    #[test]
    fn the_best_of_several_references_counts() {
        assert_eq!(score(json!("exact_match"), " Paris\n", json!("Paris")), Some(1.0));
        assert_eq!(score(json!("exact_match"), "Paris", json!(["Lyon", "Paris"])), Some(1.0));
        assert_eq!(score(json!("exact_match"), "Nice", json!(["Lyon", "Paris"])), Some(0.0));
        assert_eq!(score(json!("exact_match"), "4", json!(4)), Some(1.0));
        let case = json!({ "name": "contains", "ignore_case": true });
        assert_eq!(score(case.clone(), "It is paris.", json!(["Lyon", "Paris"])), Some(1.0));
        assert_eq!(score(case, "It is Rome.", json!(["Lyon", "Paris"])), Some(0.0));
        assert_eq!(score(json!("regex"), "Paris", json!(["^L", "s$"])), Some(1.0));
        assert_eq!(score(json!("numeric"), "is 5", json!([4, 5])), Some(1.0));
        assert_eq!(score(json!("rouge_l"), "a b", json!(["c", "a b"])), Some(1.0));
        assert_eq!(score(json!("chrf"), "a b", json!(["c", "a b"])), Some(1.0));
        // For JSON, a list is one reference.
        assert_eq!(score(json!("json_equal"), "[1, 2]", json!([1, 2])), Some(1.0));
        assert_eq!(score(json!("json_equal"), "1", json!([1, 2])), Some(0.0));
        assert_eq!(score(json!("json_equal"), "[1, 2.0]", json!("[1, 2]")), Some(1.0));
    }

    #[test]
    fn the_part_that_was_thought_is_not_scored() {
        assert_eq!(score(json!("exact_match"), "<think>or 5?</think>\n4", json!("4")), Some(1.0));
        let thinking = json!({ "name": "contains", "strip_thinking": false });
        assert_eq!(score(json!("contains"), "<think>5</think>4", json!("5")), Some(0.0));
        assert_eq!(score(thinking, "<think>5</think>4", json!("5")), Some(1.0));
        let boxed = json!({ "name": "exact_match", "extract": "boxed" });
        assert_eq!(score(boxed.clone(), r"So \boxed{4}.", json!("4")), Some(1.0));
        assert_eq!(score(boxed, "4", json!("4")), Some(0.0));
        let fenced = json!({ "name": "json_equal", "extract": "fenced" });
        assert_eq!(score(fenced.clone(), "```json\n{\"a\": 1}\n```", json!({ "a": 1 })), Some(1.0));
        assert_eq!(score(fenced, "{\"a\": 1}", json!({ "a": 1 })), Some(1.0));
    }

    #[test]
    fn a_missing_reference_is_no_score_where_one_is_needed() {
        for name in Scorer::NAMES {
            let scorer = Scorer::named(name).unwrap();
            let needs = name != "json_valid";
            assert_eq!(scorer.needs_reference(), needs, "{name}");
            for missing in [None, Some(&Reference::from(serde_json::Value::Null))] {
                assert_eq!(scorer.score("1", missing).unwrap().is_none(), needs, "{name}");
            }
            if needs && name != "json_equal" {
                assert!(scorer.score("1", Some(&json!({}).into())).is_err(), "{name}");
            }
        }
        let pattern: Scorer =
            serde_json::from_value(json!({ "name": "regex", "pattern": "^a" })).unwrap();
        assert_eq!(pattern.score("ab", None).unwrap(), Some(1.0));
        assert_eq!(pattern.score("ba", Some(&"b".into())).unwrap(), Some(0.0));
        assert!(Scorer::named("contains").unwrap().score("a", Some(&" ".into())).is_err());
    }
}
