//! Files of a model folder that others made: read with bounds, and only from where they belong.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ModelError;
use crate::folder::COMPANION_FILES;

/// Of a JSON file; the index of the largest models has some ten megabytes.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// How often a folder is read that others put a new one in the place of.
const TRIES: usize = 8;
/// Endings of files that Python's pickle wrote, or may have.
const PICKLES: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// Opens a regular file, or a link to one; a pipe would be waited for without end.
pub(crate) fn open_regular(path: &Path) -> Result<File, ModelError> {
    let opened = std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_file() {
            File::open(path)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
        }
    });
    opened.map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

/// The text of a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<String, ModelError> {
    read_text(path, MAX_JSON_BYTES)
}

/// The text of a file that has at most `max_bytes`; a longer one is refused.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<String, ModelError> {
    let unreadable = |source| ModelError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = open_regular(path)?;
    file.take(max_bytes + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > max_bytes {
        return Err(ModelError::TooLarge { path: path.to_owned(), max_bytes });
    }
    Ok(text)
}

/// What `open` makes of the files of a folder, all of them opened in one and the same: where another
/// folder has taken the name meanwhile, as the daemon does with `model/`, it begins again.
pub(crate) fn of_one_folder<T, E: From<ModelError>>(
    folder: &Path,
    mut open: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let which = || folder.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    for _ in 0..TRIES {
        let before = which();
        let opened = open();
        if which() == before {
            return opened;
        }
    }
    let source = io::Error::other("another folder took its place again and again");
    Err(ModelError::Read { path: folder.to_owned(), source }.into())
}

/// Whether a file is a pickle by its name.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| PICKLES.contains(&ending.to_ascii_lowercase().as_str()))
}

/// Whether a file is one by how it begins: a bare pickle, or the ZIP archive of `torch.save`.
pub(crate) fn begins_as_pickle(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..])
}

/// The first pickle that lies in a folder.
pub(crate) fn pickle_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries.flatten().map(|entry| entry.path()).filter(|path| is_pickle(path)).min()
}

/// Refuses what is no folder, and a folder whose files are links to somewhere else: what they lead
/// to would be read as a part of the model, and copied into every model made from it.
pub(crate) fn check_folder(folder: &Path) -> Result<(), ModelError> {
    if folder.is_file() {
        let path = folder.to_owned();
        let pickle = is_pickle(folder);
        return Err(if pickle {
            ModelError::Pickle { path }
        } else {
            ModelError::NoFolder { path }
        });
    }
    let names = COMPANION_FILES.into_iter().chain(["config.json"]);
    for name in names {
        check_inside(folder, &folder.join(name))?;
    }
    Ok(())
}

/// Refuses a link that leads out of the folder, unless into the `blobs` of the hub's cache, of which
/// the folder is then a snapshot. What does not exist is for others to miss.
pub(crate) fn check_inside(folder: &Path, path: &Path) -> Result<(), ModelError> {
    let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let (true, Ok(target), Ok(home)) = (is_link, path.canonicalize(), folder.canonicalize()) else {
        return Ok(());
    };
    let is_blob = blobs_of(&home).is_some_and(|blobs| target.starts_with(blobs));
    if is_blob || target.starts_with(&home) {
        return Ok(());
    }
    Err(ModelError::LinkOutside { path: path.to_owned(), target })
}

/// `models--owner--name/snapshots/REVISION` has its files in `models--owner--name/blobs`.
fn blobs_of(home: &Path) -> Option<PathBuf> {
    let snapshots = home.parent()?;
    let repository = snapshots.parent()?;
    (snapshots.file_name()? == "snapshots").then(|| repository.join("blobs"))
}

#[cfg(test)]
mod tests {
    use chandler_durable::{RealFs, rename_durably};

    use super::*;

    #[test]
    fn a_folder_that_is_replaced_meanwhile_is_opened_again() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("model");
        let replace = |number: usize| {
            let next = place.path().join("next");
            std::fs::create_dir(&next).unwrap();
            chandler_durable::write(&next.join("number"), number.to_string().as_bytes()).unwrap();
            // The old one stays, so that its number is not given to another.
            let old = place.path().join(format!("old-{number}"));
            if folder.exists() {
                rename_durably(&RealFs, &folder, &old).unwrap();
            }
            rename_durably(&RealFs, &next, &folder).unwrap();
        };
        replace(0);
        let mut turn = 0;
        let read = of_one_folder(&folder, || -> Result<String, ModelError> {
            let text = std::fs::read_to_string(folder.join("number")).unwrap();
            turn += 1;
            if turn < 3 {
                replace(turn);
            }
            Ok(text)
        });
        assert_eq!((read.unwrap().as_str(), turn), ("2", 3));
        let mut turn = 100;
        let endless = of_one_folder(&folder, || -> Result<(), ModelError> {
            turn += 1;
            replace(turn);
            Ok(())
        });
        assert!(matches!(endless, Err(ModelError::Read { .. })));
    }
}
