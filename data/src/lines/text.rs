//! Lines of text.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{BATCH_BYTES, BATCH_LINES, Line};
use crate::tokenizer::hexadecimal;
use crate::{BadLine, DataError};

/// The non-blank lines of a JSONL file.
pub(crate) struct TextLines {
    path: PathBuf,
    reader: BufReader<Hashed>,
    /// The bytes of the line that is being read.
    bytes: Vec<u8>,
    number: u64,
    max_bytes: usize,
    /// Whether the rest of a line that is too long is still to be passed over.
    skipping: bool,
    consumed: u64,
}

/// What one read came to.
enum Step {
    Line(Line),
    /// A blank line, or a part of one that is too long.
    Nothing,
    End,
}

impl TextLines {
    /// Begins at the beginning of `file`, which was opened by `path`.
    pub(crate) fn new(path: &Path, file: File, max_bytes: usize) -> Self {
        let reader = BufReader::with_capacity(1 << 18, Hashed { file, hash: Sha256::new() });
        Self {
            path: path.to_owned(),
            reader,
            bytes: vec![],
            number: 0,
            max_bytes,
            skipping: false,
            consumed: 0,
        }
    }

    /// Some lines, perhaps none of them worth anything; `None` at the end of the file.
    pub(crate) fn take_batch(&mut self) -> Result<Option<Vec<Line>>, DataError> {
        let mut lines = vec![];
        let full = self.consumed + BATCH_BYTES;
        while lines.len() < BATCH_LINES && self.consumed < full {
            let step = self.step();
            match step.map_err(|source| DataError::Read { path: self.path.clone(), source })? {
                Step::Line(line) => lines.push(line),
                Step::Nothing => {}
                Step::End => return Ok((!lines.is_empty()).then_some(lines)),
            }
        }
        Ok(Some(lines))
    }

    /// The line that was read last.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Bytes that were read.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// SHA-256, in hexadecimal, of the whole file, whose end was reached.
    pub(crate) fn into_hash(self) -> String {
        hexadecimal(&self.reader.into_inner().hash.finalize())
    }

    fn step(&mut self) -> io::Result<Step> {
        self.bytes.clear();
        let limit = self.max_bytes as u64 + 1;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.bytes)?;
        if read == 0 {
            return Ok(Step::End);
        }
        self.consumed += read as u64;
        let ended = self.bytes.ends_with(b"\n");
        if std::mem::replace(&mut self.skipping, self.bytes.len() > self.max_bytes && !ended) {
            self.skipping = !ended;
            return Ok(Step::Nothing);
        }
        self.number += 1;
        if self.skipping {
            let reason = format!("it is longer than {} bytes", self.max_bytes);
            return Ok(Step::Line(self.bad(reason)));
        }
        Ok(self.line())
    }

    fn line(&self) -> Step {
        let mut text = self.bytes.as_slice();
        if self.number == 1 {
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            if let Some(kind) = other_kind(text) {
                return Step::Line(self.bad(format!("the file is {kind}")));
            }
        }
        let text = text.trim_ascii();
        if text.is_empty() {
            return Step::Nothing;
        }
        Step::Line(match std::str::from_utf8(text) {
            Ok(text) if text.contains('\0') => self.bad("it has a NUL byte".to_owned()),
            Ok(text) => Line::Text(self.number, text.to_owned()),
            Err(error) => self.bad(format!("it is not UTF-8 from byte {} on", error.valid_up_to())),
        })
    }

    fn bad(&self, reason: String) -> Line {
        Line::Bad(BadLine { file: self.path.clone(), line: self.number, reason })
    }
}

/// What a file is that cannot be JSON lines, by its first bytes.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16, not UTF-8"),
        [0x1f, 0x8b, ..] => Some("compressed"),
        [b'P', b'K', 3, 4, ..] => Some("a ZIP archive, or a PyTorch file"),
        [0x80, 2..=5, ..] => Some("a pickle, which is a program that chandler does not run"),
        _ => None,
    }
}

/// A file that is hashed while it is read.
struct Hashed {
    file: File,
    hash: Sha256,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lines_of(bytes: &[u8], max_bytes: usize) -> (tempfile::NamedTempFile, TextLines) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let lines = TextLines::new(file.path(), File::open(file.path()).unwrap(), max_bytes);
        (file, lines)
    }

    fn read(bytes: &[u8], max_bytes: usize) -> Vec<Result<(u64, String), (u64, String)>> {
        let (_file, mut lines) = lines_of(bytes, max_bytes);
        let plain = |line| match line {
            Line::Text(number, text) => Ok((number, text)),
            Line::Bad(bad) => Err((bad.line, bad.reason)),
        };
        let mut found = vec![];
        while let Some(batch) = lines.take_batch().unwrap() {
            found.extend(batch.into_iter().map(plain));
        }
        assert_eq!(lines.into_hash(), hexadecimal(&Sha256::digest(bytes)));
        found
    }

    #[test]
    fn marks_line_ends_and_blank_lines_do_not_matter() {
        let found = read(b"\xef\xbb\xbfone\r\n\n  two  \n\r\nthree", 100);
        let expected = [(1, "one"), (3, "two"), (5, "three")];
        assert_eq!(found, expected.map(|(number, text)| Ok((number, text.to_owned()))));
        assert!(read(b"", 100).is_empty() && read(b"\n\n", 100).is_empty());
    }

    #[test]
    fn bad_bytes_are_reported_and_the_next_line_is_read() {
        let found = read(b"ok\n\xff\xfe\nnul\0\n0123456789012345\nlast", 8);
        let bad = |at: usize| found[at].clone().unwrap_err();
        assert_eq!((bad(1).0, bad(2).0, bad(3).0), (2, 3, 4));
        assert!(bad(1).1.contains("UTF-8") && bad(2).1.contains("NUL"));
        assert!(bad(3).1.contains("longer than 8"));
        assert_eq!(found[4], Ok((5, "last".to_owned())));
        assert!(read(b"\xff\xfe{\0", 100)[0].as_ref().unwrap_err().1.contains("UTF-16"));
        assert!(read(b"\x1f\x8b\x08", 100)[0].as_ref().unwrap_err().1.contains("compressed"));
    }

    #[test]
    fn a_line_of_the_allowed_length_is_read_and_a_long_one_is_told_once() {
        let found = read(b"12345678\n123456789\n1234567890123456789012345\n12345678", 8);
        let ok = |number: u64| Ok((number, "12345678".to_owned()));
        let long = |number: u64| Err((number, "it is longer than 8 bytes".to_owned()));
        assert_eq!(found, [ok(1), long(2), long(3), ok(4)]);
    }

    #[test]
    fn a_batch_ends_where_it_would_take_too_much_memory() {
        let line = "x".repeat(1 << 20) + "\n";
        let (_file, mut lines) = lines_of(line.repeat(10).as_bytes(), 2 << 20);
        let mut sizes = vec![];
        while let Some(batch) = lines.take_batch().unwrap() {
            sizes.push(batch.len());
        }
        assert_eq!(sizes, [4, 4, 2]);
        // Blank lines end a batch too, so that whoever reads can say that it is alive.
        let (_file, mut lines) = lines_of(&vec![b'\n'; 10 << 20], 100);
        assert!(lines.take_batch().unwrap().is_some_and(|batch| batch.is_empty()));
        assert_eq!((lines.number(), lines.consumed()), (4 << 20, 4 << 20));
    }
}
