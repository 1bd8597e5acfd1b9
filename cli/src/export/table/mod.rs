//! Rows of typed cells, and the files they become.

mod cell;
mod columnar;
mod text;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use chandler_durable::{DurableFile, RealFs};

pub(super) use cell::{Cell, Column, Kind};

use super::{ExportError, Selection, Subject};
use crate::place::Place;
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
    /// A file, which is whole or not there; a pipe or a device is written to.
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
    let write = |out: &mut Out| -> Result<u64, ExportError> {
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
            let named = |error| match error {
                ExportError::Io { source, .. } => ExportError::Io { to: path.clone(), source },
                error => error,
            };
            match Place::of(path) {
                Place::File(path) => {
                    let mut file = DurableFile::create(&RealFs, &path)?;
                    let rows = write(&mut file).map_err(named)?;
                    file.commit()?;
                    Ok(rows)
                }
                Place::Stream(path) => {
                    let stream = Place::open_stream(&path).map_err(ExportError::from);
                    to_stream(stream.map_err(named)?, format, &write).map_err(named)
                }
            }
        }
        Destination::Stdout => to_stream(io::stdout(), format, &write),
    }
}

/// Whom a table is written to.
type Out<'a> = dyn Write + Send + 'a;

/// Has a table written to a pipe or a device, with its text made visible where that is a terminal.
fn to_stream(
    mut out: impl Write + IsTerminal + Send,
    format: Format,
    write: &dyn Fn(&mut Out) -> Result<u64, ExportError>,
) -> Result<u64, ExportError> {
    if !out.is_terminal() {
        let mut out = io::BufWriter::new(out);
        return write(&mut out).and_then(|rows| Ok(out.flush().map(|()| rows)?)).or_else(gone_away);
    }
    if format == Format::Parquet {
        return Err(ExportError::BinaryToTerminal);
    }
    let mut bytes = vec![];
    let rows = write(&mut bytes)?;
    let shown = visible(&String::from_utf8_lossy(&bytes));
    Ok(out.write_all(shown.as_bytes()).map(|()| rows)?)
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
