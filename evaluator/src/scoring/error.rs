//! Why a scorer cannot be read, and why an answer has no score.

use super::pattern::PatternError;
use super::scorer::Scorer;

/// What is wrong with the settings of a scorer.
#[derive(Debug, thiserror::Error)]
pub enum ScorerSettingsError {
    /// Nothing has this name.
    #[error("there is no scorer {name:?}; there are {}", Scorer::NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The table does not say which scorer it is for.
    #[error(
        "a scorer's table says which one it is for: name = one of {}",
        Scorer::NAMES.join(", ")
    )]
    NoName,
    /// The scorer has no such setting.
    #[error("the scorer {scorer} has no setting {setting:?}; it has {}", .settings.join(", "))]
    UnknownSetting {
        /// The scorer.
        scorer: &'static str,
        /// What it was told.
        setting: String,
        /// What it can be told.
        settings: Vec<&'static str>,
    },
    /// A setting is of the wrong kind.
    #[error("the scorer {scorer}: {source}")]
    Setting {
        /// The scorer.
        scorer: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A setting is out of bounds.
    #[error("the scorer {scorer}: {setting} must be {must}")]
    Bounds {
        /// The scorer.
        scorer: &'static str,
        /// The setting.
        setting: &'static str,
        /// What it must be.
        must: String,
    },
}

/// Why an answer has no score. The reference is to blame each time, never the answer; neither's
/// text is repeated.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The reference is of a kind that the scorer cannot compare with.
    #[error("{scorer} compares with a text, a number or a list of them; the reference is {found}")]
    ReferenceKind {
        /// The scorer.
        scorer: &'static str,
        /// What the reference is.
        found: &'static str,
    },
    /// Every answer contains it.
    #[error("{scorer} needs a reference that is not empty")]
    EmptyReference {
        /// The scorer.
        scorer: &'static str,
    },
    /// A number was needed.
    #[error("numeric needs a reference with a finite number in it")]
    ReferenceNumber,
    /// JSON was needed.
    #[error("json_equal needs a reference that is JSON: {source}")]
    ReferenceJson {
        /// Where it is not.
        #[source]
        source: serde_json::Error,
    },
    /// A pattern was needed.
    #[error("regex needs a reference that is a regular expression: {source}")]
    ReferencePattern {
        /// Why it is none.
        #[source]
        source: PatternError,
    },
}
