//! Broken folders are moved aside, for a person to look at; nothing is deleted or overwritten.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::At;
use crate::rename::{create_folder_all, sync_both};
use crate::temporary::parent_of;
use crate::{DurableError, Fs, Operation};

/// The folder beside a broken one that takes it in.
pub const QUARANTINE_FOLDER: &str = "quarantine";

/// Namesakes that a quarantine may hold.
const ATTEMPTS: usize = 100_000;

/// Moves a file or folder into `quarantine/` beside it, and returns its new place.
///
/// Where the name is taken there, `.1`, `.2` and so on are added.
pub fn quarantine(fs: &dyn Fs, path: &Path) -> Result<PathBuf, DurableError> {
    let parent = parent_of(path)?;
    let name = path.file_name().unwrap_or_default();
    let ward = parent.join(QUARANTINE_FOLDER);
    create_folder_all(fs, &ward)?;
    for number in 0..ATTEMPTS {
        let mut name = name.to_owned();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        let place = ward.join(name);
        match fs.rename_new(path, &place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            moved => {
                moved.at(Operation::Rename, path)?;
                sync_both(fs, parent, &ward)?;
                return Ok(place);
            }
        }
    }
    Err(DurableError::AlreadyExists { path: ward.join(name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealFs;

    #[test]
    fn namesakes_stand_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step-1");
        for (number, expected) in ["step-1", "step-1.1", "step-1.2"].into_iter().enumerate() {
            crate::write(&path, number.to_string().as_bytes()).unwrap();
            let place = quarantine(&RealFs, &path).unwrap();
            assert_eq!(place, folder.path().join(QUARANTINE_FOLDER).join(expected));
            assert_eq!(std::fs::read_to_string(place).unwrap(), number.to_string());
        }
    }
}
