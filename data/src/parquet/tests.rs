//! Files that pyarrow wrote (`fixtures/ecosystem/make.py`), and what becomes of them when somebody
//! means harm.

use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::lines::Lines;
use crate::strict_json;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/ecosystem").join(name)
}

fn read(path: &Path, max_bytes: usize) -> Result<Vec<Line>, DataError> {
    let mut lines = Lines::open(path, max_bytes)?;
    let mut all = vec![];
    while let Some(batch) = lines.take_batch()? {
        all.extend(batch);
    }
    assert_eq!(lines.number(), all.len() as u64);
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(lines.into_hash(&|| {}).unwrap(), hexadecimal(&Sha256::digest(&bytes)));
    Ok(all)
}

/// Keys that have nothing are not there, in objects within objects too.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

#[test]
fn rows_are_the_lines_that_json_has() {
    let expected = std::fs::read_to_string(fixture("records.jsonl")).unwrap();
    let expected = expected.lines().map(|line| strict_json::parse(line).unwrap());
    let expected: Vec<Value> = expected.map(without_nulls).collect();
    for name in ["snappy", "zstd", "gzip", "plain"] {
        let found = read(&fixture(&format!("records-{name}.parquet")), 1 << 20).unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (index, (line, expected)) in found.iter().zip(&expected).enumerate() {
            let Line::Text(number, text) = line else { panic!("{name}: {line:?}") };
            assert_eq!(*number, index as u64 + 1);
            assert_eq!(&strict_json::parse(text).unwrap(), expected, "{name}: row {number}");
            crate::Record::parse(text).unwrap();
        }
    }
}

#[test]
fn a_row_without_a_value_has_no_key_and_a_long_one_is_told() {
    let found = read(&fixture("pairs.parquet"), 1 << 20).unwrap();
    let texts: Vec<&str> = found
        .iter()
        .map(|line| match line {
            Line::Text(_, text) => text.as_str(),
            Line::Bad(bad) => panic!("{bad}"),
        })
        .collect();
    let first = r#"{"prompt":"2 + 2 =","completion":" 4"}"#;
    assert_eq!(
        texts,
        [first, r#"{"prompt":"3 + 3 =","completion":" 6"}"#, r#"{"completion":" 8"}"#]
    );
    for (max_bytes, reason) in [(first.len() - 1, "longer than"), (3, "longer than 3 bytes")] {
        let found = read(&fixture("pairs.parquet"), max_bytes).unwrap();
        let Line::Bad(bad) = &found[0] else { panic!("{found:?}") };
        assert!(bad.line == 1 && bad.reason.contains(reason), "{bad}");
    }
    assert!(matches!(read(&fixture("pairs.parquet"), first.len()).unwrap()[0], Line::Text(..)));
}

/// Every prefix, and every byte changed in several ways: an error that names the file, or rows.
#[test]
fn damage_is_an_error_and_no_panic() {
    std::panic::set_hook(Box::new(|_| {}));
    let whole = std::fs::read(fixture("pairs.parquet")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.parquet");
    let (mut refused, mut read_anyway) = (0, 0);
    let mut attempt = |bytes: &[u8]| {
        File::create(&path).unwrap().write_all(bytes).unwrap();
        // Whoever declares endless rows is ended by the process's limits; here, by a count.
        let mut lines = match Lines::open(&path, 1 << 20) {
            Ok(lines) => lines,
            Err(error) => {
                assert!(error.to_string().contains("damaged.parquet"), "{error}");
                assert!(error.hint().is_some());
                refused += 1;
                return;
            }
        };
        for _ in 0..4 {
            match lines.take_batch() {
                Ok(Some(_)) => read_anyway += 1,
                Ok(None) => return,
                Err(error) => {
                    assert!(error.to_string().contains("damaged.parquet"), "{error}");
                    refused += 1;
                    return;
                }
            }
        }
    };
    for end in 4..whole.len() {
        attempt(&whole[..end]);
    }
    for at in 4..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            attempt(&bytes);
        }
    }
    let _ = std::panic::take_hook();
    assert!(refused > 1000 && read_anyway > 100, "{refused} {read_anyway}");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let whole = std::fs::read(fixture("records-zstd.parquet")).unwrap();
    let reason = |bytes: &[u8]| {
        chandler_durable::write(&path, bytes).unwrap();
        read(&path, 1 << 20).unwrap_err().to_string()
    };
    assert!(reason(b"PAR1").contains("ends behind"));
    assert!(reason(&whole[..whole.len() - 1]).contains("its end is missing"));
    let mut encrypted = whole.clone();
    let end = encrypted.len();
    encrypted[end - 4..].copy_from_slice(b"PARE");
    assert!(reason(&encrypted).contains("encrypted"));
    let mut long = whole.clone();
    long[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(reason(&long).contains("longer than the file"));
    let lz4 = read(&fixture("lz4.parquet"), 1 << 20).unwrap_err().to_string();
    assert!(lz4.contains("row group 1: it is compressed by LZ4_RAW, not by"), "{lz4}");
    // The middle of the second row group's first page.
    let mut torn = whole.clone();
    torn[whole.len() / 4..whole.len() / 4 + 64].fill(0xa5);
    let text = reason(&torn);
    assert!(text.contains("row group ") && text.contains("a.parquet"), "{text}");
}
