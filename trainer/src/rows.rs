//! Where rows come from.

use chandler_data::{Dataset, Row};

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
}

impl Rows for Dataset {
    fn len(&self) -> usize {
        Dataset::len(self)
    }

    fn row(&self, index: usize) -> Result<Row, BoxError> {
        Ok(Dataset::row(self, index)?)
    }
}

impl Rows for Vec<Row> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn row(&self, index: usize) -> Result<Row, BoxError> {
        self.get(index).cloned().ok_or_else(|| format!("there are only {}", Vec::len(self)).into())
    }
}
