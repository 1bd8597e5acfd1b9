//! Who says that it owns, in the order in which it was said: lines that are only ever appended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(crate) struct Witness {
    path: PathBuf,
    file: File,
}

/// What happened in a race.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) owners: u64,
    /// Two owned at once.
    pub(crate) overlaps: u64,
    /// Owners that noticed that their file was removed or replaced.
    pub(crate) noticed: u64,
}

impl Witness {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// One write of a few bytes, which the kernel does as a whole.
    pub(crate) fn say(&mut self, what: &str, pid: u32) -> io::Result<()> {
        self.file.write_all(format!("{what} {pid}\n").as_bytes())
    }

    /// Reads what was said and forgets it.
    ///
    /// Whoever enters while another one has entered, has not left, and has not been killed (which
    /// is said before it is done), overlaps with it.
    pub(crate) fn account(&mut self) -> io::Result<Account> {
        let text = fs::read_to_string(&self.path)?;
        self.file.set_len(0)?;
        let mut account = Account::default();
        let mut inside: Vec<&str> = Vec::new();
        for line in text.lines() {
            let (what, pid) = line.split_once(' ').unwrap_or((line, ""));
            match what {
                "enter" => {
                    account.owners += 1;
                    account.overlaps += u64::from(!inside.is_empty());
                    inside.push(pid);
                }
                "lost" => account.noticed += 1,
                _ => inside.retain(|other| *other != pid),
            }
        }
        Ok(account)
    }
}
