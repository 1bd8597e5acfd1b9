//! What a data set is told.

use serde::{Deserialize, Serialize};

/// Which tokens carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The completion; of a conversation its last turn, of plain text everything.
    #[default]
    Completion,
    /// Every turn of the assistant; of plain text everything.
    Assistant,
    /// Every token.
    All,
}

/// What happens when a line cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadLine {
    /// The file is refused.
    #[default]
    Fail,
    /// The line is left out and reported.
    Skip,
}

/// How documents are laid into rows of `max_length` tokens, as TRL does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Best fit, longest first; documents stay whole.
    Bfd,
    /// One after another, cut wherever a row is full.
    Wrapped,
}

/// How records become rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataOptions {
    /// Longest row in tokens; what is longer is cut at its end.
    pub max_length: usize,
    /// Which tokens carry loss.
    pub loss_on: LossOn,
    /// Several documents in a row, or one.
    pub packing: Option<Packing>,
    /// What happens when a line cannot be used.
    pub on_bad_line: OnBadLine,
    /// Longest line that is read, in bytes.
    pub max_line_bytes: usize,
    /// Ids must be below this, where it is known: the rows of the model's embedding table.
    pub vocab_size: Option<usize>,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            max_length: 1024,
            loss_on: LossOn::default(),
            packing: None,
            on_bad_line: OnBadLine::default(),
            max_line_bytes: 16 << 20,
            vocab_size: None,
        }
    }
}
