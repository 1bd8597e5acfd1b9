//! Renames, new folders and removals that survive a power cut.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crate::error::At;
use crate::temporary::{parent_of, under_temporary_name};
use crate::{DurableError, Fs, Operation, RealFs};

/// Mode of an ordinary new folder, less the umask.
pub(crate) const FOLDER_MODE: u32 = 0o777;

/// Renames a file or folder and brings both folders' names to the disk.
///
/// A file at `to` is replaced in one step. Both must be on one file system.
pub fn rename_durably(fs: &dyn Fs, from: &Path, to: &Path) -> Result<(), DurableError> {
    let (from_folder, to_folder) = (parent_of(from)?, parent_of(to)?);
    fs.rename(from, to).at(Operation::Rename, from)?;
    sync_both(fs, from_folder, to_folder)
}

/// Renames a file to the first of `places` that nothing stands at, and brings both folders' names to
/// the disk. Nothing is ever replaced; the place is returned.
pub fn rename_to_free_place(
    fs: &dyn Fs,
    from: &Path,
    places: impl IntoIterator<Item = PathBuf>,
) -> Result<PathBuf, DurableError> {
    for place in places {
        let (from_folder, to_folder) = (parent_of(from)?, parent_of(&place)?);
        match fs.rename_new(from, &place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            renamed => {
                renamed.at(Operation::Rename, from)?;
                return sync_both(fs, from_folder, to_folder).map(|()| place);
            }
        }
    }
    Err(DurableError::AlreadyExists { path: from.to_owned() })
}

/// The receiving folder first: a power cut in between may show the name twice, never nowhere.
pub(crate) fn sync_both(fs: &dyn Fs, from: &Path, to: &Path) -> Result<(), DurableError> {
    fs.sync_folder(to).at(Operation::SyncFolder, to)?;
    if from != to {
        fs.sync_folder(from).at(Operation::SyncFolder, from)?;
    }
    Ok(())
}

/// Whether anything is at `path`; a link counts as what it leads to.
///
/// Unlike `Path::exists`, a disk that does not answer is an error and not a no.
pub fn is_there(path: &Path) -> Result<bool, DurableError> {
    path.try_exists().at(Operation::Look, path)
}

/// Creates a folder and its missing parents, and brings their names to the disk.
pub fn create_folder_all(fs: &dyn Fs, path: &Path) -> Result<(), DurableError> {
    match fs.create_folder(path, FOLDER_MODE) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Something is there; listing it tells a folder (or a link to one) from a file.
            return fs.list(path).map(drop).at(Operation::CreateFolder, path);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_folder_all(fs, parent_of(path)?)?;
            fs.create_folder(path, FOLDER_MODE).at(Operation::CreateFolder, path)?;
        }
        Err(error) => return Err(error).at(Operation::CreateFolder, path),
    }
    let parent = parent_of(path)?;
    fs.sync_folder(parent).at(Operation::SyncFolder, parent)
}

/// Removes a folder such that a crash in between never shows a half-empty one under its name.
///
/// It is first renamed to a temporary name, which [`sweep_temporaries`](crate::sweep_temporaries)
/// finishes off after a crash.
pub fn remove_folder(fs: &dyn Fs, path: &Path) -> Result<(), DurableError> {
    let temporary = taken_away(fs, path)?;
    fs.remove_folder_all(&temporary).at(Operation::Remove, &temporary)
}

/// The same, and large files are given back to the disk, which takes its time, while the caller goes
/// on.
pub fn remove_folder_meanwhile(path: &Path) -> Result<Removal, DurableError> {
    let temporary = taken_away(&RealFs, path)?;
    let thread = std::thread::Builder::new().name("removal".to_owned()).spawn(move || {
        // What stays is swept at the next start.
        let _unheard = RealFs.remove_folder_all(&temporary);
    });
    Ok(Removal { thread: Some(thread.at(Operation::Remove, path)?) })
}

/// A folder whose name is gone, and whose bytes are going.
#[derive(Debug)]
#[must_use]
pub struct Removal {
    /// `None` once joined.
    thread: Option<JoinHandle<()>>,
}

impl Drop for Removal {
    /// Whoever ends has removed what it said it would.
    fn drop(&mut self) {
        let _unheard = self.thread.take().map(JoinHandle::join);
    }
}

/// Renames a folder to a temporary name, for good.
fn taken_away(fs: &dyn Fs, path: &Path) -> Result<PathBuf, DurableError> {
    let parent = parent_of(path)?;
    let (temporary, ()) =
        under_temporary_name(parent, Operation::Rename, |name| fs.rename_new(path, name))?;
    fs.sync_folder(parent).at(Operation::SyncFolder, parent)?;
    Ok(temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_file_moves_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let (inbox, processing) = (folder.path().join("inbox"), folder.path().join("processing"));
        create_folder_all(&RealFs, &inbox).unwrap();
        create_folder_all(&RealFs, &processing).unwrap();
        crate::write(&inbox.join("a.jsonl"), b"new").unwrap();
        crate::write(&processing.join("a.jsonl"), b"old").unwrap();
        rename_durably(&RealFs, &inbox.join("a.jsonl"), &processing.join("a.jsonl")).unwrap();
        assert_eq!(std::fs::read(processing.join("a.jsonl")).unwrap(), b"new");
        assert!(RealFs.list(&inbox).unwrap().is_empty());
    }

    #[test]
    fn the_first_free_place_is_taken_and_nothing_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a", "b", "from"] {
            crate::write(&path(name), name.as_bytes()).unwrap();
        }
        let places = || ["a", "b", "c"].map(path);
        assert_eq!(rename_to_free_place(&RealFs, &path("from"), places()).unwrap(), path("c"));
        for (name, expected) in [("a", "a"), ("b", "b"), ("c", "from")] {
            assert_eq!(std::fs::read(path(name)).unwrap(), expected.as_bytes());
        }
        let error = rename_to_free_place(&RealFs, &path("a"), places()).unwrap_err();
        assert!(matches!(error, DurableError::AlreadyExists { .. }) && path("a").exists());
    }

    #[test]
    fn nested_folders_are_made_once_and_a_file_in_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let nested = folder.path().join("a/b/c");
        for _ in 0..2 {
            create_folder_all(&RealFs, &nested).unwrap();
            assert!(nested.is_dir());
        }
        crate::write(&nested.join("file"), b"").unwrap();
        let error = create_folder_all(&RealFs, &nested.join("file")).unwrap_err();
        assert!(matches!(error, DurableError::Io { operation: Operation::CreateFolder, .. }));
    }

    #[test]
    fn a_removed_folder_is_gone_and_a_missing_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let doomed = folder.path().join("step-1");
        create_folder_all(&RealFs, &doomed.join("inner")).unwrap();
        remove_folder(&RealFs, &doomed).unwrap();
        assert!(RealFs.list(folder.path()).unwrap().is_empty());
        assert!(remove_folder(&RealFs, &doomed).is_err());
    }

    #[test]
    fn a_folder_is_gone_at_once_and_its_bytes_soon() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("checkpoint-5");
        create_folder_all(&RealFs, &folder).unwrap();
        crate::write(&folder.join("weights"), &vec![1; 100_000]).unwrap();
        let removal = remove_folder_meanwhile(&folder).unwrap();
        assert!(!is_there(&folder).unwrap());
        drop(removal);
        assert!(RealFs.list(parent.path()).unwrap().is_empty());
        assert!(remove_folder_meanwhile(&folder).is_err());
    }
}
