//! Rows of a Parquet file as the JSON lines that they would be.
//!
//! The file is read row group by row group and page by page; what is in memory is a page of each
//! column and a batch of lines. Whoever wrote it is a stranger: sizes are checked where they are
//! declared, the library's panics are errors, and what it allocates beyond is bounded by the limits
//! of the process (`cli/src/worker`).

mod json;

use std::fs::File;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::record::Row;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use sha2::{Digest, Sha256};

use crate::lines::{BATCH_BYTES, BATCH_LINES, Line};
use crate::tokenizer::hexadecimal;
use crate::{BadLine, DataError, Place};

/// Of the description at a file's end.
const MAX_FOOTER_BYTES: u64 = 256 << 20;
/// Columns, those within others counted.
const MAX_COLUMNS: usize = 10_000;
/// Values of a column that are decoded at a time.
const VALUES_AT_ONCE: usize = 256;
/// Of the library's words in an error.
const REASON_CHARS: usize = 200;

/// The rows of a Parquet file.
pub(crate) struct ParquetRows {
    path: PathBuf,
    file: File,
    reader: SerializedFileReader<File>,
    max_bytes: usize,
    /// The row group that is read next.
    next_group: usize,
    rows: Option<ReaderIter>,
    /// Rows of the groups before, and of this one.
    number: u64,
    in_group: u64,
    /// Bytes of the groups before this one.
    consumed: u64,
}

impl ParquetRows {
    /// Reads what `file`, which was opened by `path`, says about itself.
    pub(crate) fn open(path: &Path, file: File, max_bytes: usize) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.to_owned(), source };
        check_footer(path, &file)?;
        let own = file.try_clone().map_err(read)?;
        let reader = guarded(|| SerializedFileReader::new(own))
            .map_err(|reason| bad(path, Place::File, reason))?;
        let columns = reader.metadata().file_metadata().schema_descr().num_columns();
        if columns == 0 || columns > MAX_COLUMNS {
            let reason = format!("it has {columns} columns, not 1 to {MAX_COLUMNS}");
            return Err(bad(path, Place::File, reason));
        }
        check_codecs(path, reader.metadata())?;
        let path = path.to_owned();
        let (next_group, number, in_group, consumed) = (0, 0, 0, 0);
        let rows = None;
        Ok(Self { path, file, reader, max_bytes, next_group, rows, number, in_group, consumed })
    }

    pub(crate) fn take_batch(&mut self) -> Result<Option<Vec<Line>>, DataError> {
        let (mut lines, mut bytes) = (vec![], 0);
        while lines.len() < BATCH_LINES && bytes < BATCH_BYTES {
            let Some(row) = self.next_row()? else {
                return Ok((!lines.is_empty()).then_some(lines));
            };
            let line = self.line(&row);
            if let Line::Text(_, text) = &line {
                bytes += text.len() as u64;
            }
            lines.push(line);
        }
        Ok(Some(lines))
    }

    /// The next row, of the next group where this one has no more.
    fn next_row(&mut self) -> Result<Option<Row>, DataError> {
        loop {
            if let Some(rows) = &mut self.rows {
                let row = guarded(|| rows.next().transpose());
                match row.map_err(|reason| self.bad_at(1, reason))? {
                    Some(row) => {
                        self.number += 1;
                        self.in_group += 1;
                        return Ok(Some(row));
                    }
                    None => {
                        self.consumed += self.group_bytes(self.next_group - 1);
                        self.rows = None;
                    }
                }
            }
            if self.next_group == self.reader.num_row_groups() {
                return Ok(None);
            }
            let (reader, group) = (&self.reader, self.next_group);
            let rows = guarded(|| {
                let group = reader.get_row_group(group)?;
                let schema = reader.metadata().file_metadata().schema_descr_ptr();
                rows_of(schema, &*group)
            });
            self.next_group += 1;
            self.in_group = 0;
            self.rows = Some(rows.map_err(|reason| self.bad_at(0, reason))?);
        }
    }

    fn line(&self, row: &Row) -> Line {
        match json::line(row, self.max_bytes) {
            Ok(text) => Line::Text(self.number, text),
            Err(reason) => {
                Line::Bad(BadLine { file: self.path.clone(), line: self.number, reason })
            }
        }
    }

    /// The error that something is wrong `ahead` rows behind the last one.
    fn bad_at(&self, ahead: u64, reason: String) -> DataError {
        let (group, row) = (self.next_group, self.in_group + ahead);
        bad(&self.path, Place::Row { group, row }, reason)
    }

    /// What a group takes in the file.
    fn group_bytes(&self, group: usize) -> u64 {
        let bytes = self.reader.metadata().row_group(group).compressed_size();
        u64::try_from(bytes).unwrap_or(0)
    }

    /// The row that was read last.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of the row groups that were read.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// SHA-256, in hexadecimal, of the whole file as it is now.
    pub(crate) fn into_hash(mut self, alive: &dyn Fn()) -> Result<String, DataError> {
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        let mut read = || -> std::io::Result<()> {
            self.file.rewind()?;
            loop {
                match self.file.read(&mut chunk)? {
                    0 => return Ok(()),
                    some => hash.update(&chunk[..some]),
                }
                alive();
            }
        };
        read().map_err(|source| DataError::Read { path: self.path.clone(), source })?;
        Ok(hexadecimal(&hash.finalize()))
    }
}

fn rows_of(
    schema: Arc<parquet::schema::types::SchemaDescriptor>,
    group: &dyn RowGroupReader,
) -> parquet::errors::Result<ReaderIter> {
    TreeBuilder::new().with_batch_size(VALUES_AT_ONCE).as_iter(schema, group)
}

/// A description as large as its length says is read in one piece.
fn check_footer(path: &Path, file: &File) -> Result<(), DataError> {
    use std::os::unix::fs::FileExt;
    let read = |source| DataError::Read { path: path.to_owned(), source };
    let size = file.metadata().map_err(read)?.len();
    let mut end = [0; 8];
    let Some(at) = size.checked_sub(12) else {
        return Err(bad(path, Place::File, "it ends behind its first bytes".to_owned()));
    };
    file.read_exact_at(&mut end, at + 4).map_err(read)?;
    let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    let reason = match &end[4..] {
        b"PAR1" if length <= at.min(MAX_FOOTER_BYTES) => return Ok(()),
        b"PAR1" if length <= at => format!("its description has {length} bytes"),
        b"PAR1" => "its description is longer than the file".to_owned(),
        b"PARE" => "it is encrypted".to_owned(),
        _ => "its end is missing".to_owned(),
    };
    Err(bad(path, Place::File, reason))
}

/// Refuses what is compressed in a way that is not built in.
fn check_codecs(path: &Path, file: &ParquetMetaData) -> Result<(), DataError> {
    for (number, group) in file.row_groups().iter().enumerate() {
        for column in group.columns() {
            let codec = column.compression();
            let known = matches!(
                codec,
                Compression::UNCOMPRESSED
                    | Compression::SNAPPY
                    | Compression::GZIP(_)
                    | Compression::ZSTD(_)
            );
            if !known {
                let reason = format!("it is compressed by {codec}, not by Snappy, gzip or zstd");
                return Err(bad(path, Place::Row { group: number + 1, row: 0 }, reason));
            }
        }
    }
    Ok(())
}

fn bad(path: &Path, place: Place, reason: String) -> DataError {
    DataError::BadParquet { path: path.to_owned(), place, reason }
}

/// What the library answers; where it panics, that is an error too.
fn guarded<T>(work: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string().chars().take(REASON_CHARS).collect()),
        Err(_) => Err("its parts contradict each other".to_owned()),
    }
}

#[cfg(test)]
mod tests;
