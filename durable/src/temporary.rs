//! Temporary names: chosen so that they never clash, and swept after a crash.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::At;
use crate::{DurableError, Fs, Operation};

/// Every name that is not yet (or no longer) meant to be seen begins with this.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Tries before a folder that answers "exists" to every fresh name is taken for broken.
const ATTEMPTS: usize = 10_000;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Makes something under a fresh temporary name in `folder`.
///
/// After a crash and a reused process id the name may be taken; then the next one is tried.
pub(crate) fn under_temporary_name<T>(
    folder: &Path,
    operation: Operation,
    mut make: impl FnMut(&Path) -> io::Result<T>,
) -> Result<(PathBuf, T), DurableError> {
    for _ in 0..ATTEMPTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id()));
        match make(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return Ok((path.clone(), made.at(operation, &path)?)),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists)).at(operation, folder)
}

/// Removes what interrupted writes left in `folder`, and returns the paths removed.
///
/// Call it at start-up, while nothing else writes there: a temporary file of a write that is
/// still going on would be removed as well. It may itself be interrupted and called again.
pub fn sweep_temporaries(fs: &dyn Fs, folder: &Path) -> Result<Vec<PathBuf>, DurableError> {
    let mut removed = Vec::new();
    for entry in fs.list(folder).at(Operation::List, folder)? {
        if !is_temporary(&entry.name) {
            continue;
        }
        let path = folder.join(&entry.name);
        if entry.is_folder {
            fs.remove_folder_all(&path).at(Operation::Remove, &path)?;
        } else {
            fs.remove_file(&path).at(Operation::Remove, &path)?;
        }
        removed.push(path);
    }
    if !removed.is_empty() {
        fs.sync_folder(folder).at(Operation::SyncFolder, folder)?;
    }
    Ok(removed)
}

fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// The folder that holds `path`, and proof that `path` has a name of its own.
pub(crate) fn parent_of(path: &Path) -> Result<&Path, DurableError> {
    if path.file_name().is_none() {
        return Err(DurableError::NoFileName { path: path.to_owned() });
    }
    Ok(match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealFs;

    #[test]
    fn sweeps_temporary_names_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path(".tmp-1-0/inner")).unwrap();
        for name in [".tmp-1-1", "kept", ".hidden"] {
            std::fs::File::create(path(name)).unwrap();
        }
        let removed = sweep_temporaries(&RealFs, folder.path()).unwrap();
        assert_eq!(removed, [path(".tmp-1-0"), path(".tmp-1-1")]);
        let left: Vec<_> =
            RealFs.list(folder.path()).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(left, [".hidden", "kept"]);
    }

    #[test]
    fn a_taken_name_is_stepped_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut refused = 0;
        let (path, ()) = under_temporary_name(folder.path(), Operation::Create, |_| {
            refused += 1;
            if refused < 4 { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) }
        })
        .unwrap();
        assert_eq!(refused, 4);
        assert!(is_temporary(path.file_name().unwrap()));
    }

    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        assert_eq!(parent_of(Path::new("a")).unwrap(), Path::new("."));
        assert_eq!(parent_of(Path::new("a/b")).unwrap(), Path::new("a"));
        assert!(matches!(parent_of(Path::new("/")), Err(DurableError::NoFileName { .. })));
    }
}
