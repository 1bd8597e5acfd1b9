//! Reads on in log files as they grow, are cut, are replaced and give way to others.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::files::{self, LogFile};
use super::line::{LogLine, MOST_BYTES};
use super::tail::unfinished;

/// What is read of a file at a time.
const BLOCK: usize = 64 << 10;

/// The files of a folder, and how far each was read.
pub(super) struct Follower {
    folder: PathBuf,
    known: BTreeMap<PathBuf, Followed>,
}

struct Followed {
    file: LogFile,
    offset: u64,
    /// A line whose end has not been read yet.
    part: Vec<u8>,
    /// Bytes of it that were passed over, since it is too long.
    beyond: u64,
}

impl Follower {
    /// Goes on after what these files hold in whole lines.
    pub(super) fn after(folder: PathBuf, files: Vec<LogFile>) -> io::Result<Self> {
        let mut known = BTreeMap::new();
        for file in files {
            let offset = unfinished(&file)?;
            known.insert(file.path.clone(), Followed::from(file, offset));
        }
        Ok(Self { folder, known })
    }

    /// Tells every line that was finished since the last look; returns what else is worth saying.
    pub(super) fn look(&mut self, tell: &mut dyn FnMut(LogLine)) -> io::Result<Vec<String>> {
        let mut notes = Vec::new();
        // A file that was renamed or removed is read to its end all the same: it is open.
        for followed in self.known.values_mut() {
            if followed.read_on(tell)? {
                notes.push(format!("{} was cut; on from its start", followed.file.path.display()));
            }
        }
        let files = files::list(&self.folder)?;
        self.known.retain(|path, _| files.iter().any(|file| file.path == *path));
        for file in files {
            if self.known.get(&file.path).is_some_and(|known| known.file.id == file.id) {
                continue;
            }
            let path = file.path.clone();
            let mut followed = Followed::from(file, 0);
            followed.read_on(tell)?;
            self.known.insert(path, followed);
        }
        Ok(notes)
    }
}

impl Followed {
    fn from(file: LogFile, offset: u64) -> Self {
        Self { file, offset, part: Vec::new(), beyond: 0 }
    }

    /// Reads to the end; says whether the file had become shorter.
    fn read_on(&mut self, tell: &mut dyn FnMut(LogLine)) -> io::Result<bool> {
        let was_cut = self.file.file.metadata()?.len() < self.offset;
        if was_cut {
            (self.offset, self.beyond) = (0, 0);
            self.part.clear();
        }
        loop {
            let bytes = self.file.read(self.offset, BLOCK)?;
            self.offset += bytes.len() as u64;
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                self.take(piece, tell);
            }
            if bytes.len() < BLOCK {
                return Ok(was_cut);
            }
        }
    }

    fn take(&mut self, piece: &[u8], tell: &mut dyn FnMut(LogLine)) {
        let text = piece.strip_suffix(b"\n").unwrap_or(piece);
        let room = MOST_BYTES.saturating_sub(self.part.len()).min(text.len());
        self.part.extend_from_slice(&text[..room]);
        self.beyond += (text.len() - room) as u64;
        if text.len() < piece.len() {
            let beyond = std::mem::take(&mut self.beyond);
            if !self.part.is_empty() {
                tell(LogLine::parse(&self.part, beyond));
            }
            self.part.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::Path;

    fn append(path: &Path, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn entry(message: &str) -> String {
        format!("{{\"level\":\"INFO\",\"message\":\"{message}\"}}\n")
    }

    #[test]
    fn growth_halves_cuts_replacement_and_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let day = |name: &str| folder.path().join(format!("chandler.{name}.jsonl"));
        append(&day("1"), &(entry("old") + "{\"level\":\"INFO\","));
        let files = files::list(folder.path()).unwrap();
        let mut follower = Follower::after(folder.path().to_owned(), files).unwrap();
        let mut look = || {
            let mut seen = Vec::new();
            let notes = follower.look(&mut |line| {
                seen.push(match line {
                    LogLine::Logged { fields, .. } => {
                        fields["message"].as_str().unwrap().to_owned()
                    }
                    LogLine::Foreign(text) => format!("?{text}"),
                });
            });
            (seen, notes.unwrap().len())
        };
        let none: [&str; 0] = [];
        assert_eq!(look().0, none);
        append(&day("1"), "\"message\":\"whole\"}\nbroken\n");
        assert_eq!(look().0, ["whole", "?broken"]);
        // Rotated: something still comes to the old file, and then the new one is written to.
        append(&day("1"), &entry("last"));
        append(&day("2"), &entry("first"));
        assert_eq!(look().0, ["last", "first"]);
        // Cut.
        OpenOptions::new().write(true).truncate(true).open(day("2")).unwrap();
        append(&day("2"), &entry("a"));
        assert_eq!(look(), (vec!["a".to_owned()], 1));
        // Renamed away and begun anew, with something written before the rename.
        append(&day("2"), &entry("b"));
        fs::hard_link(day("2"), folder.path().join("elsewhere")).unwrap();
        fs::remove_file(day("2")).unwrap();
        append(&day("2"), &entry("c"));
        assert_eq!(look().0, ["b", "c"]);
        fs::remove_file(day("1")).unwrap();
        assert_eq!(look().0, none);
        // A line too long is one line.
        append(&day("2"), &"z".repeat(MOST_BYTES + 3 * BLOCK));
        assert_eq!(look().0, none);
        append(&day("2"), &format!("\n{}", entry("d")));
        let (seen, _) = look();
        assert_eq!(seen.len(), 2);
        assert!(seen[0].starts_with("?zz") && seen[0].contains("bytes more"));
        assert_eq!(seen[1], "d");
    }
}
