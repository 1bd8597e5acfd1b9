//! Tables as text: CSV and JSON lines.
//!
//! A number is written with as few digits as bring the same `f64` back.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::{Cell, Column, TableWriter};

/// CSV by RFC 4180: lines end in CR LF, cells with commas, quotes or line ends are quoted. An
/// unknown value is an empty cell.
pub(super) struct Csv<'a>(csv::Writer<&'a mut (dyn Write + Send)>);

impl<'a> Csv<'a> {
    pub(super) fn begin(columns: &[Column], out: &'a mut (dyn Write + Send)) -> io::Result<Self> {
        let mut writer =
            csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(out);
        writer.write_record(columns.iter().map(|column| &column.name)).map_err(io::Error::from)?;
        Ok(Self(writer))
    }
}

impl TableWriter for Csv<'_> {
    fn row(&mut self, row: Vec<Cell>) -> io::Result<()> {
        let text = |cell| match value(cell) {
            Value::Null => String::new(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        self.0.write_record(row.into_iter().map(text)).map_err(io::Error::from)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.0.flush()
    }
}

/// JSON lines; an unknown value is `null`.
pub(super) struct Jsonl<'a> {
    columns: Vec<Column>,
    out: &'a mut (dyn Write + Send),
}

impl<'a> Jsonl<'a> {
    pub(super) fn new(columns: Vec<Column>, out: &'a mut (dyn Write + Send)) -> Self {
        Self { columns, out }
    }
}

impl TableWriter for Jsonl<'_> {
    fn row(&mut self, row: Vec<Cell>) -> io::Result<()> {
        let names = self.columns.iter().map(|column| column.name.clone());
        let object: Map<String, Value> = names.zip(row.into_iter().map(value)).collect();
        serde_json::to_writer(&mut *self.out, &object)?;
        self.out.write_all(b"\n")
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.out.flush()
    }
}

/// What JSON has no number for (NaN, infinities) is `null` there.
fn value(cell: Cell) -> Value {
    match cell {
        Cell::Unknown => Value::Null,
        Cell::Int(number) => json!(number),
        Cell::Float(number) => json!(number),
        Cell::Bool(yes) => json!(yes),
        Cell::Text(text) => Value::String(text),
    }
}
