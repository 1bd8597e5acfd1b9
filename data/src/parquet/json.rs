//! A row as JSON.
//!
//! What is null is left out: a column, or a field of a struct, that a record does not have must be
//! null in a table. Bytes that are no UTF-8 are left out as well; no record is made of them.

use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};

/// The line of a row, unless it would have more than `max_bytes`.
pub(super) fn line(row: &Row, max_bytes: usize) -> Result<String, String> {
    // The text is at least as long as the strings in it: what is too long is not built at all.
    let mut room = max_bytes;
    let object = object(row, &mut room).ok_or_else(|| too_long(max_bytes))?;
    let text = Value::Object(object).to_string();
    if text.len() > max_bytes { Err(too_long(max_bytes)) } else { Ok(text) }
}

fn too_long(max_bytes: usize) -> String {
    format!("it is longer than {max_bytes} bytes")
}

/// `None` where there is no room.
fn object(row: &Row, room: &mut usize) -> Option<Map<String, Value>> {
    let mut object = Map::new();
    for (name, field) in row.get_column_iter() {
        if let Some(value) = value(field, room)? {
            take(room, name.len())?;
            object.insert(name.clone(), value);
        }
    }
    Some(object)
}

/// `Some(None)` for what is left out.
fn value(field: &Field, room: &mut usize) -> Option<Option<Value>> {
    take(room, 1)?;
    let mut text = |text: &str| {
        take(room, text.len())?;
        Some(Some(Value::String(text.to_owned())))
    };
    Some(Some(match field {
        Field::Null => return Some(None),
        Field::Bool(value) => json!(value),
        Field::Byte(value) => json!(value),
        Field::Short(value) => json!(value),
        Field::Int(value) => json!(value),
        Field::Long(value) => json!(value),
        Field::UByte(value) => json!(value),
        Field::UShort(value) => json!(value),
        Field::UInt(value) => json!(value),
        Field::ULong(value) => json!(value),
        Field::Float16(value) => json!(value.to_f32()),
        Field::Float(value) => json!(value),
        Field::Double(value) => json!(value),
        Field::Str(value) => return text(value),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(value) => return text(value),
            Err(_) => return Some(None),
        },
        Field::Group(row) => Value::Object(object(row, room)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter();
            let items = items.map(|item| Some(value(item, room)?.unwrap_or(Value::Null)));
            Value::Array(items.collect::<Option<_>>()?)
        }
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, item) in map.entries() {
                let key = match key {
                    Field::Str(key) => key.clone(),
                    other => other.to_string(),
                };
                take(room, key.len())?;
                if let Some(item) = value(item, room)? {
                    object.insert(key, item);
                }
            }
            Value::Object(object)
        }
        // Dates, times and decimals, as Parquet's own tools print them.
        other => return text(&other.to_string()),
    }))
}

fn take(room: &mut usize, bytes: usize) -> Option<()> {
    *room = room.checked_sub(bytes)?;
    Some(())
}
