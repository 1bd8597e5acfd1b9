//! The records of a file, one JSON text each, read with bounds, so that no file takes more memory
//! than a batch of them.
//!
//! A file of JSON lines has them as its lines. A Parquet file has rows, which become the lines that
//! JSON would have had; it is known by its first bytes, whatever its name.

mod text;

use std::io::{self, Read, Seek};
use std::path::Path;

use crate::files::open_regular;
#[cfg(feature = "parquet")]
use crate::parquet::ParquetRows;
use crate::{BadLine, DataError};
use text::TextLines;

/// Lines of a batch, at most.
pub(crate) const BATCH_LINES: usize = 4096;
/// Bytes after which a batch is full; a longer line is a batch of its own.
pub(crate) const BATCH_BYTES: u64 = 4 << 20;
/// How Parquet files begin, and end.
const PARQUET_MAGIC: &[u8; 4] = b"PAR1";

/// A line that is there to be used, or the reason why not.
#[derive(Debug)]
pub(crate) enum Line {
    /// Its number, from 1, and its text.
    Text(u64, String),
    /// It cannot be text.
    Bad(BadLine),
}

/// The records of a file.
pub(crate) enum Lines {
    /// The non-blank lines of JSON lines.
    Text(TextLines),
    /// The rows of a Parquet file.
    #[cfg(feature = "parquet")]
    Parquet(ParquetRows),
}

impl Lines {
    /// Opens a file whose lines may have `max_bytes`.
    pub(crate) fn open(path: &Path, max_bytes: usize) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.to_owned(), source };
        let mut file = open_regular(path)?;
        let mut first = [0; PARQUET_MAGIC.len()];
        let is_parquet = match file.read_exact(&mut first) {
            Ok(()) => first == *PARQUET_MAGIC,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(read(error)),
        };
        file.rewind().map_err(read)?;
        if !is_parquet {
            return Ok(Self::Text(TextLines::new(path, file, max_bytes)));
        }
        #[cfg(feature = "parquet")]
        return Ok(Self::Parquet(ParquetRows::open(path, file, max_bytes)?));
        #[cfg(not(feature = "parquet"))]
        return Err(DataError::BadParquet {
            path: path.to_owned(),
            place: crate::Place::File,
            reason: "this program was built without Parquet".to_owned(),
        });
    }

    /// Some lines, perhaps none of them worth anything; `None` at the end of the file.
    pub(crate) fn take_batch(&mut self) -> Result<Option<Vec<Line>>, DataError> {
        match self {
            Self::Text(lines) => lines.take_batch(),
            #[cfg(feature = "parquet")]
            Self::Parquet(rows) => rows.take_batch(),
        }
    }

    /// The line that was read last.
    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Text(lines) => lines.number(),
            #[cfg(feature = "parquet")]
            Self::Parquet(rows) => rows.number(),
        }
    }

    /// Bytes of the file that were read.
    pub(crate) fn consumed(&self) -> u64 {
        match self {
            Self::Text(lines) => lines.consumed(),
            #[cfg(feature = "parquet")]
            Self::Parquet(rows) => rows.consumed(),
        }
    }

    /// SHA-256, in hexadecimal, of the whole file, whose end was reached. `alive` is called now and
    /// then.
    pub(crate) fn into_hash(self, alive: &dyn Fn()) -> Result<String, DataError> {
        match self {
            Self::Text(lines) => Ok(lines.into_hash()),
            #[cfg(feature = "parquet")]
            Self::Parquet(rows) => rows.into_hash(alive),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_no_file_and_a_short_one_is_text() {
        let error = Lines::open("/dev/null".as_ref(), 100).err().unwrap();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for bytes in [&b""[..], b"{}", b"PAR"] {
            chandler_durable::write(&path, bytes).unwrap();
            assert!(matches!(Lines::open(&path, 100), Ok(Lines::Text(_))));
        }
    }
}
