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
        writer.write_record(columns.iter().map(|column| &column.name)).map_err(within)?;
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
        self.0.write_record(row.into_iter().map(text)).map_err(within)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.0.flush()
    }
}

/// What the system said: its kind tells a full disk and a reader that went away.
fn within(error: csv::Error) -> io::Error {
    let said = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        _ => io::Error::other(said),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::table::Kind;

    struct Full;

    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_system_says_of_a_table_keeps_its_kind() {
        let columns = || vec![Column { name: "a".to_owned(), kind: Kind::Text }];
        let row = || vec![Cell::Text("b".repeat(1 << 20))];
        let (mut csv_out, mut json_out) = (Full, Full);
        let csv = Csv::begin(&columns(), &mut csv_out).and_then(|mut csv| csv.row(row()));
        let json = Jsonl::new(columns(), &mut json_out).row(row());
        for written in [csv, json] {
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
