//! The lines of a training file, one at a time, for whoever looks at a few of them.

use std::path::Path;

use crate::lines::{Line, Lines};
use crate::{BadLine, DataError};

/// An iterator over the non-blank lines of a file: number and text, or why it cannot be text.
///
/// An error ends it.
pub struct SourceLines {
    lines: Lines,
    batch: std::vec::IntoIter<Line>,
    ended: bool,
}

impl SourceLines {
    /// Opens a file whose lines may be so long.
    pub fn open(path: &Path, max_line_bytes: usize) -> Result<Self, DataError> {
        let lines = Lines::open(path, max_line_bytes)?;
        Ok(Self { lines, batch: vec![].into_iter(), ended: false })
    }
}

impl Iterator for SourceLines {
    type Item = Result<(u64, String), SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.batch.next() {
                Some(Line::Text(number, text)) => return Some(Ok((number, text))),
                Some(Line::Bad(bad)) => return Some(Err(SourceError::Line(bad))),
                None if self.ended => return None,
                None => {}
            }
            match self.lines.take_batch() {
                Ok(Some(batch)) => self.batch = batch.into_iter(),
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(SourceError::File(error)));
                }
            }
        }
    }
}

/// Why there is no line, or none to be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// This line cannot be used; the next may be.
    #[error("{0}")]
    Line(BadLine),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] DataError),
}

impl From<SourceError> for DataError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Line(bad) => Self::BadLines { lines: vec![bad], count: 1 },
            SourceError::File(error) => error,
        }
    }
}
