//! Where a file goes that the user named.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Links that lead to one another, at most.
const MAX_LINKS: usize = 40;

/// What stands under a name, or is to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file, replaced as a whole; links to it were followed, and stay.
    File(PathBuf),
    /// A pipe, a device such as `/dev/stdout`, a terminal: written to.
    Stream(PathBuf),
}

impl Place {
    /// The place of this name.
    pub(crate) fn of(path: &Path) -> Self {
        match path.metadata() {
            Ok(there) if !there.is_file() && !there.is_dir() => Self::Stream(path.to_owned()),
            _ => Self::File(behind_links(path)),
        }
    }

    /// Opens a stream to write to.
    pub(crate) fn open_stream(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).open(path)
    }
}

/// What a name leads to, whether or not there is anything.
fn behind_links(path: &Path) -> PathBuf {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = place.read_link() else { break };
        place = place.parent().unwrap_or(Path::new("")).join(target);
    }
    place
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_and_devices_are_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("real.csv", at("link")).unwrap();
        symlink(at("link"), at("second")).unwrap();
        let place = Place::File(at("real.csv"));
        assert_eq!(Place::of(&at("second")), place, "also before there is a file");
        chandler_durable::write(&at("real.csv"), b"old").unwrap();
        assert_eq!(Place::of(&at("second")), place);
        assert_eq!(Place::of(&at("real.csv")), place);
        symlink("/dev/null", at("null")).unwrap();
        assert_eq!(Place::of(&at("null")), Place::Stream(at("null")));
        Place::open_stream(&at("null")).unwrap();
        symlink("loop", at("loop")).unwrap();
        assert!(matches!(Place::of(&at("loop")), Place::File(_)));
    }
}
