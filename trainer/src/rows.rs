//! Where rows come from.

use chandler_data::{Dataset, Row};
use sha2::{Digest, Sha256};

use crate::BoxError;

/// Rows by their number.
pub trait Rows {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads one.
    fn row(&self, index: usize) -> Result<Row, BoxError>;

    /// What tells these rows from all others, so that a run goes on with the rows that it began
    /// with; `None` where that is not known.
    fn digest(&self) -> Option<String> {
        None
    }
}

impl Rows for Dataset {
    fn len(&self) -> usize {
        Dataset::len(self)
    }

    fn row(&self, index: usize) -> Result<Row, BoxError> {
        Ok(Dataset::row(self, index)?)
    }

    fn digest(&self) -> Option<String> {
        Some(Dataset::digest(self))
    }
}

impl Rows for Vec<Row> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn row(&self, index: usize) -> Result<Row, BoxError> {
        self.get(index).cloned().ok_or_else(|| format!("there are only {}", Vec::len(self)).into())
    }

    fn digest(&self) -> Option<String> {
        let mut hash = Sha256::new();
        for row in self {
            let Row { input_ids, labels, seq_lengths, examples } = row;
            for size in [input_ids.len(), labels.len(), seq_lengths.len(), *examples as usize] {
                hash.update((size as u64).to_le_bytes());
            }
            for number in input_ids.iter().chain(seq_lengths) {
                hash.update(number.to_le_bytes());
            }
            for label in labels {
                hash.update(label.to_le_bytes());
            }
        }
        Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
