//! Lines of a file, read with a bound, so that a file without line ends cannot take all memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::{BadLine, DataError};

/// A line that is there to be used, or the reason why not.
pub(crate) enum Line {
    /// Its number, from 1, and its text.
    Text(u64, String),
    /// It cannot be text.
    Bad(BadLine),
}

/// The non-blank lines of a JSONL file.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
    max_bytes: usize,
}

impl Lines {
    pub(crate) fn open(path: &Path, max_bytes: usize) -> Result<Self, DataError> {
        let file =
            File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
        let reader = BufReader::with_capacity(1 << 18, file);
        Ok(Self { path: path.to_owned(), reader, number: 0, max_bytes })
    }

    /// At most `count` lines; none at the end.
    pub(crate) fn take_lines(&mut self, count: usize) -> Result<Vec<Line>, DataError> {
        let mut lines = Vec::with_capacity(count);
        while lines.len() < count {
            match self.next_line() {
                Ok(Some(line)) => lines.push(line),
                Ok(None) => break,
                Err(source) => return Err(DataError::Read { path: self.path.clone(), source }),
            }
        }
        Ok(lines)
    }

    fn next_line(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let limit = self.max_bytes as u64 + 1;
            if self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes.len() > self.max_bytes && !bytes.ends_with(b"\n") {
                self.skip_to_line_end()?;
                let reason = format!("it is longer than {} bytes", self.max_bytes);
                return Ok(Some(self.bad(reason)));
            }
            let mut text = bytes.as_slice();
            if self.number == 1 {
                text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
                if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
                    return Ok(Some(self.bad("the file is UTF-16, not UTF-8".to_owned())));
                }
                if text.starts_with(b"\x1f\x8b") {
                    return Ok(Some(self.bad("the file is compressed".to_owned())));
                }
            }
            let text = text.trim_ascii();
            if text.is_empty() {
                continue;
            }
            return Ok(Some(match std::str::from_utf8(text) {
                Ok(text) if text.contains('\0') => self.bad("it has a NUL byte".to_owned()),
                Ok(text) => Line::Text(self.number, text.to_owned()),
                Err(error) => {
                    self.bad(format!("it is not UTF-8 from byte {} on", error.valid_up_to()))
                }
            }));
        }
    }

    fn skip_to_line_end(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            match buffer.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.reader.consume(end + 1);
                    return Ok(());
                }
                None => {
                    let all = buffer.len();
                    self.reader.consume(all);
                }
            }
        }
    }

    fn bad(&self, reason: String) -> Line {
        Line::Bad(BadLine { file: self.path.clone(), line: self.number, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8], max_bytes: usize) -> Vec<Result<(u64, String), (u64, String)>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let lines = Lines::open(file.path(), max_bytes).unwrap().take_lines(100).unwrap();
        let plain = |line| match line {
            Line::Text(number, text) => Ok((number, text)),
            Line::Bad(bad) => Err((bad.line, bad.reason)),
        };
        lines.into_iter().map(plain).collect()
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
}
