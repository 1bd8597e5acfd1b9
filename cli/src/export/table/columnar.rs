//! Tables as Parquet.

use std::io::{self, Write};
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{Type, TypePtr};

use super::{Cell, Column, Kind, TableWriter};

/// Rows of a group, which are in memory together.
const GROUP_ROWS: usize = 8192;
/// Bytes of text after which a group is full.
const GROUP_BYTES: usize = 32 << 20;

/// Parquet with a column for each of the table's, all of them optional, compressed by Snappy.
pub(super) struct Parquet<'a> {
    columns: Vec<Column>,
    writer: SerializedFileWriter<&'a mut (dyn Write + Send)>,
    group: Vec<Vec<Cell>>,
    text_bytes: usize,
}

impl<'a> Parquet<'a> {
    pub(super) fn begin(columns: Vec<Column>, out: &'a mut (dyn Write + Send)) -> io::Result<Self> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let schema = schema(&columns).map_err(io::Error::other)?;
        let writer = SerializedFileWriter::new(out, schema, Arc::new(properties));
        let writer = writer.map_err(io_error)?;
        Ok(Self { columns, writer, group: vec![], text_bytes: 0 })
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        if self.group.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.group);
        self.text_bytes = 0;
        let mut group = self.writer.next_row_group()?;
        for column in 0..self.columns.len() {
            let Some(mut writer) = group.next_column()? else { break };
            write_column(&mut writer, rows.iter().map(|row| &row[column]))?;
            writer.close()?;
        }
        group.close()?;
        Ok(())
    }
}

impl TableWriter for Parquet<'_> {
    fn row(&mut self, row: Vec<Cell>) -> io::Result<()> {
        let texts = row.iter().map(|cell| if let Cell::Text(text) = cell { text.len() } else { 0 });
        self.text_bytes += texts.sum::<usize>();
        self.group.push(row);
        if self.group.len() < GROUP_ROWS && self.text_bytes < GROUP_BYTES {
            return Ok(());
        }
        self.write_group().map_err(io_error)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.write_group().map_err(io_error)?;
        self.writer.close().map(drop).map_err(io_error)
    }
}

fn schema(columns: &[Column]) -> Result<TypePtr, ParquetError> {
    let field = |column: &Column| {
        let (physical, logical) = match column.kind {
            Kind::Int => (Physical::INT64, None),
            Kind::Float => (Physical::DOUBLE, None),
            Kind::Bool => (Physical::BOOLEAN, None),
            Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        };
        let field = Type::primitive_type_builder(&column.name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical)
            .build();
        field.map(Arc::new)
    };
    let fields = columns.iter().map(field).collect::<Result<_, _>>()?;
    Ok(Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?))
}

/// Values are those that are known; a definition level of 0 says that one is not.
fn write_column<'c>(
    writer: &mut SerializedColumnWriter<'_>,
    cells: impl Iterator<Item = &'c Cell> + Clone,
) -> Result<(), ParquetError> {
    let known = cells.clone().map(|cell| i16::from(*cell != Cell::Unknown));
    let levels: Vec<i16> = known.collect();
    macro_rules! write {
        ($writer:expr, $pattern:pat => $value:expr) => {{
            let values = cells.filter_map(|cell| match cell {
                $pattern => Some($value),
                _ => None,
            });
            $writer.write_batch(&values.collect::<Vec<_>>(), Some(&levels), None)?
        }};
    }
    match writer.untyped() {
        ColumnWriter::Int64ColumnWriter(writer) => write!(writer, Cell::Int(value) => *value),
        ColumnWriter::DoubleColumnWriter(writer) => write!(writer, Cell::Float(value) => *value),
        ColumnWriter::BoolColumnWriter(writer) => write!(writer, Cell::Bool(value) => *value),
        ColumnWriter::ByteArrayColumnWriter(writer) => {
            write!(writer, Cell::Text(text) => ByteArray::from(text.as_str()))
        }
        _ => unreachable!("the schema has four types"),
    };
    Ok(())
}

fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(inner) => io::Error::other(inner),
        },
        error => io::Error::other(error),
    }
}
