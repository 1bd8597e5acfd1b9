//! A record that has become tokens.

use crate::row::{IGNORE_INDEX, Row};

/// The tokens of one record, and which of them carry loss.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// What was tokenized.
    pub text: String,
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// For each token, whether it carries loss.
    pub trained: Vec<bool>,
}

impl Example {
    /// The ids that carry loss.
    pub fn trained_ids(&self) -> impl Iterator<Item = u32> {
        let pairs = self.input_ids.iter().zip(&self.trained);
        pairs.filter(|(_, trained)| **trained).map(|(id, _)| *id)
    }

    /// Whether any token does.
    pub fn is_trained(&self) -> bool {
        self.trained.contains(&true)
    }

    /// Cuts the end off; whether there was anything to cut.
    pub fn truncate(&mut self, max_length: usize) -> bool {
        let cut = self.input_ids.len() > max_length;
        self.input_ids.truncate(max_length);
        self.trained.truncate(max_length);
        cut
    }

    /// The labels: the ids where there is loss, else −100.
    pub fn labels(&self) -> Vec<i64> {
        let pairs = self.input_ids.iter().zip(&self.trained);
        pairs.map(|(id, trained)| if *trained { i64::from(*id) } else { IGNORE_INDEX }).collect()
    }

    /// As a row of its own.
    pub fn into_row(self) -> Row {
        let labels = self.labels();
        let seq_lengths = vec![self.input_ids.len() as u32];
        Row { input_ids: self.input_ids, labels, seq_lengths, examples: 1 }
    }
}
