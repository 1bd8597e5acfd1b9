//! Copies that share no bytes with what they were made of, as links do.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use crate::error::At;
use crate::file::{BUFFER_BYTES, DurableFile};
use crate::{DurableError, Fs, Operation, RealFs, SealedFolder};

/// Copies the files of a folder into a new one at `to`, which is whole or absent; folders in it are left
/// out. Where the file system can, the copies are clones, which take no room until one of the two is
/// written to.
///
/// An error where something stands at `to` that is no empty folder, and where a file cannot be read or
/// written; then nothing is left behind.
pub fn copy_folder(from: &Path, to: &Path) -> Result<(), DurableError> {
    let folder = SealedFolder::begin(&RealFs, to)?;
    for entry in RealFs.list(from).at(Operation::List, from)? {
        if !entry.is_folder {
            copy_file(&from.join(&entry.name), &folder.path().join(&entry.name))?;
        }
    }
    folder.place()
}

fn copy_file(from: &Path, to: &Path) -> Result<(), DurableError> {
    let source = File::open(from).at(Operation::Read, from)?;
    let bytes = source.metadata().at(Operation::Read, from)?.len();
    let mut file = DurableFile::create_sized(&RealFs, to, bytes)?;
    if file.clone_bytes_of(&source).is_err() {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, source);
        io::copy(&mut reader, &mut file).at(Operation::Write, to)?;
    }
    file.commit()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_to_one_is_not_seen_in_the_other() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("model"), place.path().join("snapshot"));
        std::fs::create_dir_all(from.join("folder")).unwrap();
        // The second is written past the page cache.
        for (name, bytes) in [("small", vec![1; 5]), ("large", vec![2; (64 << 20) + 5])] {
            crate::write(&from.join(name), &bytes).unwrap();
        }
        copy_folder(&from, &to).unwrap();
        for (name, length) in [("small", 5), ("large", (64 << 20) + 5)] {
            let changed = File::options().write(true).open(from.join(name)).unwrap();
            changed.write_all_at(&[9; 3], 1).unwrap();
            let copy = std::fs::read(to.join(name)).unwrap();
            assert!(copy.len() == length && copy.iter().all(|byte| *byte == copy[0]), "{name}");
        }
        let names: Vec<_> = RealFs.list(&to).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["large", "small"]);
        assert!(copy_folder(&from, &to).is_err(), "nothing is replaced");
        assert_eq!(RealFs.list(place.path()).unwrap().len(), 2);
    }
}
