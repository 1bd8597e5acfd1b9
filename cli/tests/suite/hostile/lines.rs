//! Training files whose lines were made to do harm.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::{once, state_for, watched};
use crate::support::{model, ok, put, text_of};

/// Tokenizes a file and leaves out what cannot be used.
fn plan(file: &Path, extra: &[&str]) -> super::Watched {
    let name = model("qwen3");
    let args = ["plan", "--model", &name, "--data", text_of(file), "--device", "8GiB"];
    watched(&[&args, &["--set", "data.on_bad_line=skip"][..], extra].concat())
}

fn hazards() -> Vec<(Vec<u8>, &'static str)> {
    let deep = |open: &str| format!("{{\"text\": {}", open.repeat(100_000)).into_bytes();
    vec![
        (deep("["), "recursion limit"),
        (deep("{\"a\":"), "recursion limit"),
        (b"{\"text\": \"a\0b\"}".to_vec(), "NUL byte"),
        (b"{\"text\": \"\xff\xfe\"}".to_vec(), "not UTF-8"),
        (b"{\"text\": \"a\", \"text\": \"b\"}".to_vec(), "twice"),
        (b"{\"text\": \"a\", \"n\": 1e999999}".to_vec(), "out of range"),
        (b"{\"text\": \"\\ud800\"}".to_vec(), "hex escape"),
        ("{\"text\": \"a\"}".encode_utf16().flat_map(u16::to_le_bytes).collect(), "NUL byte"),
        (format!("{{\"text\": \"{}\"}}", "x".repeat(1 << 20)).into_bytes(), "longer than 1000000"),
        (format!("{{\"n\": [{}0]}}", "0,".repeat(400_000)).into_bytes(), "none of the keys"),
    ]
}

#[test]
fn each_is_a_bad_line_with_its_number_and_the_rest_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_for(folder.path(), &model("qwen3"));
    let file = folder.path().join("data.jsonl");
    let mut bytes = b"\xef\xbb\xbf{\"text\": \"the first\"}\n".to_vec();
    for (hazard, _) in hazards() {
        bytes.extend(hazard);
        bytes.extend(b"\n{\"text\": \"fine as well\"}\n");
    }
    put(&file, &bytes);
    ok(&["add", "--dir", &state, text_of(&file)]);
    let seen =
        once(&state, &["--set", "data.on_bad_line=skip", "--set", "limits.max_line=1000000"]);
    assert_eq!(seen.code, Some(0), "{}", seen.said);
    for (index, (_, reason)) in hazards().iter().enumerate() {
        let number = format!(".jsonl:{}: ", 2 * index + 2);
        let line = seen.said.lines().find(|line| line.contains(&number));
        assert!(line.is_some_and(|line| line.contains(reason)), "{number} {reason}: {}", seen.said);
    }
    let good = format!("{} records", hazards().len() + 1);
    assert!(seen.said.contains(&good), "{good}: {}", seen.said);
    assert!(seen.peak_bytes < 400 << 20, "{} bytes", seen.peak_bytes);
}

#[test]
fn a_line_of_a_gibibyte_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"{\"text\": \"fine\"}\n").unwrap();
    // Sparse: it takes no room on the disk.
    file.seek(SeekFrom::Current(1 << 30)).unwrap();
    file.write_all(b"\n{\"text\": \"fine too\"}\n").unwrap();
    let seen = plan(&path, &[]);
    assert_eq!(seen.code, Some(0), "{}", seen.said);
    assert!(seen.peak_bytes > 10 << 20 && seen.peak_bytes < 200 << 20, "{}", seen.peak_bytes);
    assert!(seen.seconds < 60.0, "{} s", seen.seconds);
}

#[test]
fn blank_lines_without_end_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let blank = vec![b'\n'; 64 << 20];
    put(&path, [&blank[..], b"{\"text\": \"fine\"}\n"].concat());
    let seen = plan(&path, &[]);
    assert_eq!(seen.code, Some(0), "{}", seen.said);
    assert!(seen.peak_bytes > 10 << 20 && seen.peak_bytes < 200 << 20, "{}", seen.peak_bytes);
    // Nothing else in it: the file is told to be empty, however long that took to find out.
    put(&path, &blank);
    let seen = plan(&path, &["--set", "limits.stall_seconds=2"]);
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.said.contains("holds no record"), "{}", seen.said);
}

#[test]
fn files_of_other_kinds_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    for (bytes, says) in [
        (&b"\xff\xfe{\0\"\0"[..], "UTF-16"),
        (b"\x1f\x8b\x08\0\0", "compressed"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"\x80\x04\x95rest", "pickle"),
    ] {
        put(&path, bytes);
        let seen = plan(&path, &[]);
        assert_eq!(seen.code, Some(4), "{}", seen.said);
        assert!(seen.said.contains(says), "{says}: {}", seen.said);
    }
}
