//! The newest lines, found from the end of the files: of each line its place is kept, not its text,
//! so that what is asked for decides about the time it takes and not about the memory.

use std::io;

use super::files::LogFile;
use super::line::{LogLine, MOST_BYTES};

/// What is read of a file at a time.
const BLOCK: u64 = 64 << 10;

/// Where a line stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    file: usize,
    start: u64,
    len: u64,
}

impl Place {
    pub(super) fn read(self, files: &[LogFile]) -> io::Result<LogLine> {
        let wanted = self.len.min(MOST_BYTES as u64);
        let bytes = files[self.file].read(self.start, wanted as usize)?;
        Ok(LogLine::parse(&bytes, self.len - wanted))
    }
}

/// The last `count` lines that are `wanted`, in order. A last line without its end is left out
/// where `follow`ing will show it.
pub(super) fn newest(
    files: &[LogFile],
    count: usize,
    follow: bool,
    wanted: impl Fn(&LogLine) -> bool,
) -> io::Result<Vec<Place>> {
    let mut places = Vec::new();
    for (index, file) in files.iter().enumerate().rev() {
        let mut lines = Backwards { file, block: Vec::new(), block_at: 0, end: Some(file.len) };
        if !lines.begin()? && follow {
            lines.next()?;
        }
        while places.len() < count {
            let Some((start, len)) = lines.next()? else { break };
            let place = Place { file: index, start, len };
            if len > 0 && wanted(&place.read(files)?) {
                places.push(place);
            }
        }
    }
    places.reverse();
    Ok(places)
}

/// Where the last line begins that has no end yet, or else the end of the file.
pub(super) fn unfinished(file: &LogFile) -> io::Result<u64> {
    let mut lines = Backwards { file, block: Vec::new(), block_at: 0, end: Some(file.len) };
    if lines.begin()? {
        return Ok(file.len);
    }
    Ok(lines.next()?.map_or(file.len, |(start, _)| start))
}

/// The lines of a file, the last first.
struct Backwards<'a> {
    file: &'a LogFile,
    block: Vec<u8>,
    block_at: u64,
    /// Where the next line to give ends; `None` once there is none.
    end: Option<u64>,
}

impl Backwards<'_> {
    /// Steps over the line end at the end of the file, and says whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        let len = self.file.len;
        if len == 0 {
            self.end = None;
            return Ok(true);
        }
        let has_end = self.before(len)?.last() == Some(&b'\n');
        self.end = Some(if has_end { len - 1 } else { len });
        Ok(has_end)
    }

    /// Where the next line starts, and its length.
    fn next(&mut self) -> io::Result<Option<(u64, u64)>> {
        let Some(end) = self.end else { return Ok(None) };
        let mut at = end;
        let start = loop {
            if at == 0 {
                break 0;
            }
            let before = self.before(at)?;
            if before.is_empty() {
                // It was cut meanwhile.
                self.end = None;
                return Ok(None);
            }
            let newline = before.iter().rposition(|byte| *byte == b'\n');
            if let Some(newline) = newline {
                break self.block_at + newline as u64 + 1;
            }
            at = self.block_at;
        };
        self.end = start.checked_sub(1);
        Ok(Some((start, end - start)))
    }

    /// The bytes of one block that stand before `at`, which is not 0.
    fn before(&mut self, at: u64) -> io::Result<&[u8]> {
        let block_at = (at - 1) / BLOCK * BLOCK;
        let is_there = self.block_at == block_at && block_at + self.block.len() as u64 >= at;
        if !is_there || self.block.is_empty() {
            self.block = self.file.read(block_at, BLOCK.min(self.file.len - block_at) as usize)?;
            self.block_at = block_at;
        }
        let wanted = (at - block_at) as usize;
        Ok(self.block.get(..wanted).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::logs::files;
    use std::path::Path;

    fn put(folder: &Path, name: &str, text: &str) {
        chandler_durable::write(&folder.join(name), text.as_bytes()).unwrap();
    }

    fn entry(level: &str, message: &str) -> String {
        format!("{{\"level\":\"{level}\",\"message\":\"{message}\"}}\n")
    }

    fn messages(folder: &Path, count: usize, follow: bool, worst: bool) -> Vec<String> {
        let files = files::list(folder).unwrap();
        let wanted = |line: &LogLine| {
            !worst || line.level().is_none_or(|level| level > super::super::line::Level::Info)
        };
        let places = newest(&files, count, follow, wanted).unwrap();
        let lines = places.into_iter().map(|place| match place.read(&files).unwrap() {
            LogLine::Logged { fields, .. } => fields["message"].as_str().unwrap().to_owned(),
            LogLine::Foreign(text) => format!("?{text}"),
        });
        lines.collect()
    }

    #[test]
    fn the_newest_lines_are_found_over_files_and_blocks() {
        let folder = tempfile::tempdir().unwrap();
        assert!(messages(folder.path(), 9, false, false).is_empty());
        put(
            folder.path(),
            "chandler.2026-03-01.jsonl",
            &(entry("WARN", "a") + &entry("INFO", "b")),
        );
        put(folder.path(), "chandler.2026-03-02.jsonl", "");
        let long = "x".repeat(3 * BLOCK as usize);
        let last = format!(
            "{}\n{}garbage\n{}half",
            entry("INFO", &long),
            entry("INFO", "c"),
            entry("INFO", "d")
        );
        put(folder.path(), "chandler.2026-03-03.jsonl", &last);
        put(folder.path(), "other.jsonl", "no\n");
        assert_eq!(messages(folder.path(), 3, false, false), ["?garbage", "d", "?half"]);
        assert_eq!(messages(folder.path(), 3, true, false), ["c", "?garbage", "d"]);
        let all = messages(folder.path(), 99, false, false);
        assert_eq!(all, ["a", "b", &long, "c", "?garbage", "d", "?half"]);
        assert_eq!(messages(folder.path(), 99, false, true), ["a", "?garbage", "?half"]);
        assert_eq!(messages(folder.path(), 0, false, false).len(), 0);
        let files = files::list(folder.path()).unwrap();
        assert_eq!(unfinished(&files[2]).unwrap(), files[2].len - 4);
        assert_eq!(unfinished(&files[0]).unwrap(), files[0].len);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_said() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "chandler.jsonl", &"y".repeat(MOST_BYTES + 5));
        let shown = messages(folder.path(), 1, false, false);
        assert!(shown[0].starts_with("?yyy") && shown[0].len() < 1000, "{}", shown[0].len());
        assert!(shown[0].contains(&format!("({} bytes more)", MOST_BYTES + 5 - 500)));
    }
}
