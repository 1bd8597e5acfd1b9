//! Scores of answers, what many of them say together, and which way is better.
//!
//! A [`Scorer`] compares an answer with a reference and gives a number from 0 to 1; a
//! [`Summary`] is the mean of many with its 95 % interval, and [`Paired`] says what changed
//! between two sets of answers to the same prompts.
//!
//! ```
//! use chandler_evaluator::{Reference, Scorer, Summary};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scorer: Scorer = serde_json::from_value(serde_json::json!({
//!     "name": "numeric", "tolerance": 0.01, "extract": { "after": "####" },
//! }))?;
//! let reference = Reference::from("12.5");
//! let answers = ["<think>25 / 2</think> It is #### 12.5", "#### 12,500", "I do not know."];
//! let mut scores = vec![];
//! for answer in answers {
//!     scores.extend(scorer.score(answer, Some(&reference))?);
//! }
//! assert_eq!(scores, [1.0, 0.0, 0.0]);
//! let summary = Summary::of(&scores);
//! assert_eq!((summary.value, summary.count), (Some(1.0 / 3.0), 3));
//! # Ok(())
//! # }
//! ```

mod better;
mod choice;
mod chrf;
mod distributions;
mod error;
mod external;
mod extract;
mod json;
mod normalize;
mod numeric;
mod paired;
mod pass_at_k;
mod pattern;
mod porter;
mod ratio;
mod reference;
mod rouge;
mod scorer;
mod settings;
mod summary;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod properties;

pub use better::Better;
pub use choice::{ChoiceLogprob, Normalization, choice_accuracy, pick};
pub use chrf::Chrf;
pub use error::{ScoreError, ScorerSettingsError};
pub use external::{Asked, ExternalError, ExternalLimits, ExternalScore, ExternalScorer};
pub use extract::Extract;
pub use normalize::Normalize;
pub use numeric::Numeric;
pub use paired::Paired;
pub use pass_at_k::{pass_at_k, pass_at_k_over};
pub use pattern::{Pattern, PatternError, RegexRule};
pub(crate) use ratio::Ratio;
pub use reference::Reference;
pub use rouge::RougeL;
pub use scorer::{Rule, Scorer, Which};
pub use summary::Summary;
