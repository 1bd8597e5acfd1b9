//! The protobuf messages of an event file, as far as scalars and texts need them.
//!
//! Field numbers are those of TensorFlow's `util/event.proto`, `framework/summary.proto` and
//! `framework/tensor.proto`; fields stand in the order of their numbers.

/// What TensorBoard looks for in the first record of a file.
const FILE_VERSION: &str = "brain.Event:2";
/// `DT_STRING` of `framework/types.proto`.
const DT_STRING: u64 = 7;

/// Something that is shown for a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shown {
    /// A point of a curve; event files hold f32.
    Scalar(f64),
    /// Markdown.
    Text(String),
}

/// The first record of a file, made at `wall_time`, in seconds since 1970.
pub(super) fn file_version(wall_time: f64) -> Vec<u8> {
    let mut event = vec![];
    put_f64(&mut event, 1, wall_time);
    put_bytes(&mut event, 3, FILE_VERSION.as_bytes());
    event
}

/// What is shown for a step, each under its tag.
pub(super) fn summary(wall_time: f64, step: u64, values: &[(String, Shown)]) -> Vec<u8> {
    let mut summary = vec![];
    for (tag, shown) in values {
        put_bytes(&mut summary, 1, &value(tag, shown));
    }
    let mut event = vec![];
    put_f64(&mut event, 1, wall_time);
    // Zero is the default, and defaults are not written.
    if step > 0 {
        put_varint(&mut event, 2, step);
    }
    put_bytes(&mut event, 5, &summary);
    event
}

fn value(tag: &str, shown: &Shown) -> Vec<u8> {
    let mut value = vec![];
    put_bytes(&mut value, 1, tag.as_bytes());
    match shown {
        Shown::Scalar(number) => {
            put_key(&mut value, 2, 5);
            value.extend((*number as f32).to_le_bytes());
        }
        Shown::Text(text) => {
            let (mut tensor, mut plugin, mut metadata) = (vec![], vec![], vec![]);
            put_varint(&mut tensor, 1, DT_STRING);
            put_bytes(&mut tensor, 2, &shape_of_one());
            put_bytes(&mut tensor, 8, text.as_bytes());
            put_bytes(&mut plugin, 1, b"text");
            put_bytes(&mut metadata, 1, &plugin);
            put_bytes(&mut value, 8, &tensor);
            put_bytes(&mut value, 9, &metadata);
        }
    }
    value
}

/// A `TensorShapeProto` of one dimension of size 1.
fn shape_of_one() -> Vec<u8> {
    let (mut dimension, mut shape) = (vec![], vec![]);
    put_varint(&mut dimension, 1, 1);
    put_bytes(&mut shape, 2, &dimension);
    shape
}

/// A field's number and wire type: 0 varint, 1 eight bytes, 2 counted bytes, 5 four bytes.
fn put_key(message: &mut Vec<u8>, field: u64, wire_type: u64) {
    push_varint(message, field << 3 | wire_type);
}

fn put_varint(message: &mut Vec<u8>, field: u64, value: u64) {
    put_key(message, field, 0);
    push_varint(message, value);
}

fn put_f64(message: &mut Vec<u8>, field: u64, value: f64) {
    put_key(message, field, 1);
    message.extend(value.to_le_bytes());
}

fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(message, field, 2);
    push_varint(message, bytes.len() as u64);
    message.extend(bytes);
}

fn push_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_cut_by_seven_bits() {
        let bytes = |value| {
            let mut message = vec![];
            push_varint(&mut message, value);
            message
        };
        assert_eq!(bytes(0), [0]);
        assert_eq!(bytes(127), [0x7f]);
        assert_eq!(bytes(300), [0xac, 0x02], "the example of protobuf's own documentation");
        assert_eq!(bytes(u64::MAX).len(), 10);
    }

    /// What `fixtures/ecosystem/make.py` had TensorBoard's own writer write.
    #[test]
    fn the_bytes_are_those_of_tensorboards_writer() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../fixtures/ecosystem/events.out.tfevents.1700000000.fixture"
        );
        let theirs = std::fs::read(path).unwrap();
        let scalar = |tag: &str, value| (tag.to_owned(), Shown::Scalar(value));
        let text = Shown::Text("**prompt**\n\n    2 + 2 = é".to_owned());
        let ours: Vec<Vec<u8>> = vec![
            file_version(1_700_000_000.25),
            summary(1_700_000_001.5, 0, &[scalar("eval/loss", 2.5)]),
            summary(
                1_700_000_002.75,
                300,
                &[scalar("train/loss", 0.1), scalar("train/learning_rate", 2e-5)],
            ),
            summary(1_700_000_003.0, 300, &[("samples/0".to_owned(), text)]),
        ];
        assert_eq!(super::super::framing::records(&theirs), ours);
    }
}
