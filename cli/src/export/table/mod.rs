//! Rows of typed cells, and the files they become.

mod cell;
mod columnar;
mod text;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use chandler_durable::{DurableFile, RealFs};

pub(super) use cell::{Cell, Column, Kind};

use super::{ExportError, Selection, Subject};
use crate::store::Store;
use crate::visible::visible;

/// The format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated values by RFC 4180, with a head line.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// The format that a file's name asks for.
    pub fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// Where a table goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file, which is whole or not there.
    File(PathBuf),
    /// Standard output: as it is, or made visible where that is a terminal.
    Stdout,
}

/// Writes a table and says how many rows it has.
pub fn write_table(
    store: &Store,
    subject: Subject,
    selection: Selection,
    format: Format,
    destination: &Destination,
) -> Result<u64, ExportError> {
    let write = |out: &mut (dyn Write + Send)| -> Result<u64, ExportError> {
        let columns = subject.columns();
        let mut rows = 0;
        let mut writer = writer(format, columns, out)?;
        subject.read(store, selection, &mut |row| {
            rows += 1;
            Ok(writer.row(row)?)
        })?;
        writer.finish()?;
        Ok(rows)
    };
    match destination {
        Destination::File(path) => {
            let mut file = DurableFile::create(&RealFs, path)?;
            let named = |error| match error {
                ExportError::Io { source, .. } => ExportError::Io { to: path.clone(), source },
                error => error,
            };
            let rows = write(&mut file).map_err(named)?;
            file.commit()?;
            Ok(rows)
        }
        Destination::Stdout if !io::stdout().is_terminal() => {
            let mut out = io::BufWriter::new(io::stdout());
            write(&mut out).and_then(|rows| Ok(out.flush().map(|()| rows)?)).or_else(gone_away)
        }
        Destination::Stdout if format == Format::Parquet => Err(ExportError::BinaryToTerminal),
        Destination::Stdout => {
            let mut bytes = vec![];
            let rows = write(&mut bytes)?;
            let shown = visible(&String::from_utf8_lossy(&bytes));
            io::stdout().write_all(shown.as_bytes()).map(|()| rows).map_err(ExportError::from)
        }
    }
}

/// A reader that went away, as `head` does, has what it wanted.
fn gone_away(error: ExportError) -> Result<u64, ExportError> {
    match error {
        ExportError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        error => Err(error),
    }
}

/// A file in the making.
trait TableWriter {
    fn row(&mut self, row: Vec<Cell>) -> io::Result<()>;
    fn finish(self: Box<Self>) -> io::Result<()>;
}

fn writer<'a>(
    format: Format,
    columns: Vec<Column>,
    out: &'a mut (dyn Write + Send),
) -> io::Result<Box<dyn TableWriter + 'a>> {
    Ok(match format {
        Format::Csv => Box::new(text::Csv::begin(&columns, out)?),
        Format::Jsonl => Box::new(text::Jsonl::new(columns, out)),
        Format::Parquet => Box::new(columnar::Parquet::begin(columns, out)?),
    })
}
