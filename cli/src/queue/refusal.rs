//! What is never taken from the inbox, and why.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::visible::visible_line;

/// Why a thing in the inbox will never be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It points elsewhere.
    Symlink,
    /// It is a folder.
    Folder,
    /// It is a pipe, a socket or a device.
    Special,
    /// Its name is not Unicode, or not to be shown.
    Name,
    /// It is larger than `limits.max_file`.
    TooLarge,
    /// This user may not read it.
    Unreadable,
    /// Another thing had its name a moment later.
    Swapped,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symlink => "is a symbolic link",
            Self::Folder => "is a folder",
            Self::Special => "is a pipe, a socket or a device",
            Self::Name => "has a name that is not Unicode or has control characters",
            Self::TooLarge => "is larger than limits.max_file",
            Self::Unreadable => "cannot be read by this user",
            Self::Swapped => "was exchanged for something else while it was being claimed",
        })
    }
}

impl Refusal {
    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Symlink => "put the file itself there: what a link leads to can change",
            Self::Folder => "put its files there one by one",
            Self::Special => "write its contents to a file and put that there",
            Self::Name => "rename it",
            Self::TooLarge => "split it, or raise limits.max_file",
            Self::Unreadable => "change its owner or mode",
            Self::Swapped => "put the file there again, by one rename",
        }
    }

    /// Why a thing with this metadata (of the thing itself, not of what it points to) is refused.
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        let kind = metadata.file_type();
        if kind.is_symlink() {
            Some(Self::Symlink)
        } else if kind.is_dir() {
            Some(Self::Folder)
        } else if kind.is_fifo() || kind.is_socket() || !kind.is_file() {
            Some(Self::Special)
        } else {
            None
        }
    }

    /// Why opening what was no symbolic link a moment ago failed.
    pub(super) fn of_error(error: &io::Error) -> Option<Self> {
        match rustix::io::Errno::from_io_error(error) {
            Some(rustix::io::Errno::ACCESS) => Some(Self::Unreadable),
            Some(rustix::io::Errno::LOOP) => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// A name that can be shown and stored as it is.
pub(super) fn plain_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    (visible_line(name) == name).then_some(name)
}

/// Opens a file itself: no link is followed and no pipe waited for.
pub(super) fn open_itself(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits() as i32).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_not_followed_and_a_pipe_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        let error = open_itself(&link).unwrap_err();
        assert_eq!(Refusal::of_error(&error), Some(Refusal::Symlink), "{error}");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let opened = open_itself(&pipe).unwrap().metadata().unwrap();
        assert_eq!(Refusal::of(&opened), Some(Refusal::Special));
    }

    #[test]
    fn names_that_act_on_a_terminal_are_not_plain() {
        for name in ["a\n.jsonl", "\u{1b}[2Ja", "a\u{202e}b", "\u{9b}a", "a\tb"] {
            assert_eq!(plain_name(Path::new(name)), None, "{name:?}");
        }
        let name = "naïve 北京 'x' $(y).jsonl";
        assert_eq!(plain_name(Path::new(name)), Some(name));
    }
}
