//! Where rows come from.

use chandler_data::{Dataset, Row, digest_of};

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
        Some(digest_of(self))
    }
}
