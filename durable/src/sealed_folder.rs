//! A folder of files, whole or absent.

use std::path::{Path, PathBuf};

use crate::error::At;
use crate::file::write_file;
use crate::hashed_fs::HashedFs;
use crate::manifest::{FileRecord, MANIFEST_NAME, Manifest};
use crate::rename::{FOLDER_MODE, create_folder_all};
use crate::temporary::{parent_of, under_temporary_name};
use crate::verify::is_plain_name;
use crate::{DurableError, Fs, Operation, digest};

/// A folder being filled under a temporary name; [`seal`](Self::seal) puts it in place.
///
/// [`place`](Self::place) does so without a manifest. Dropped before, it leaves nothing behind.
pub struct SealedFolder<'fs> {
    fs: HashedFs<'fs>,
    temporary: PathBuf,
    destination: PathBuf,
    sealed: bool,
}

impl<'fs> SealedFolder<'fs> {
    /// Begins a folder that will stand at `path`, where nothing may be yet. Its parent is made if
    /// it is missing.
    pub fn begin(fs: &'fs dyn Fs, path: &Path) -> Result<Self, DurableError> {
        let parent = parent_of(path)?;
        create_folder_all(fs, parent)?;
        let (temporary, ()) = under_temporary_name(parent, Operation::CreateFolder, |name| {
            fs.create_folder(name, FOLDER_MODE)
        })?;
        let fs = HashedFs::new(fs);
        Ok(Self { fs, temporary, destination: path.to_owned(), sealed: false })
    }

    /// The file system that it was begun on. What is written to its files through here is hashed on
    /// its way and not read back by [`seal`](Self::seal).
    pub fn fs(&self) -> &dyn Fs {
        &self.fs
    }

    /// Where to write the files: any plain name but the manifest's, each by a durable write.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Writes one file.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), DurableError> {
        if !is_plain_name(name) || name == MANIFEST_NAME {
            return Err(DurableError::BadName { name: name.to_owned() });
        }
        let path = self.temporary.join(name);
        if self.fs.open(&path).is_ok() {
            let (name, folder) = (name.to_owned(), self.destination.clone());
            return Err(DurableError::DuplicateName { name, folder });
        }
        write_file(&self.fs, &path, bytes)
    }

    /// Reads back what was not written through [`fs`](Self::fs), writes the manifest, and renames the
    /// folder into place.
    pub fn seal(mut self, extra: serde_json::Value) -> Result<Manifest, DurableError> {
        let mut files = Vec::new();
        for entry in self.fs.list(&self.temporary).at(Operation::List, &self.temporary)? {
            let name = entry.name.to_string_lossy().into_owned();
            if entry.is_folder || !is_plain_name(&name) || name == MANIFEST_NAME {
                return Err(DurableError::BadName { name });
            }
            let path = self.temporary.join(&name);
            let (bytes, hash) = match self.fs.of_file(&path) {
                Some(known) => known,
                None => digest::of_file(&self.fs, &path).at(Operation::Read, &path)?,
            };
            files.push(FileRecord { name, bytes, hash });
        }
        let manifest = Manifest::new(files, extra);
        let json = manifest
            .encode()
            .map_err(|source| DurableError::Encode { path: self.destination.clone(), source })?;
        write_file(&self.fs, &self.temporary.join(MANIFEST_NAME), &json)?;
        match self.fs.rename_new(&self.temporary, &self.destination) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(DurableError::AlreadyExists { path: self.destination.clone() });
            }
            renamed => renamed.at(Operation::Rename, &self.temporary)?,
        }
        self.settled()?;
        Ok(manifest)
    }

    /// Renames the folder into place as it is, for programs of others that know no manifest. An empty
    /// folder may stand there, and is replaced in one step.
    pub fn place(mut self) -> Result<(), DurableError> {
        use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
        let renamed = match self.fs.rename_new(&self.temporary, &self.destination) {
            Err(error) if error.kind() == AlreadyExists => {
                self.fs.rename(&self.temporary, &self.destination)
            }
            renamed => renamed,
        };
        match renamed {
            Err(error)
                if matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory) =>
            {
                return Err(DurableError::AlreadyExists { path: self.destination.clone() });
            }
            renamed => renamed.at(Operation::Rename, &self.temporary)?,
        }
        self.settled()
    }

    /// Brings the name that the folder has now to the disk.
    fn settled(&mut self) -> Result<(), DurableError> {
        self.sealed = true;
        let parent = parent_of(&self.destination)?;
        self.fs.sync_folder(parent).at(Operation::SyncFolder, parent)
    }
}

impl Drop for SealedFolder<'_> {
    fn drop(&mut self) {
        if !self.sealed {
            // If even this fails, the sweep at the next start removes it.
            let _ = self.fs.remove_folder_all(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealFs;

    #[test]
    fn a_folder_without_a_manifest_takes_a_free_name_or_an_empty_folders() {
        let place = tempfile::tempdir().unwrap();
        let destination = place.path().join("model");
        let make = || {
            let mut folder = SealedFolder::begin(&RealFs, &destination).unwrap();
            folder.add_bytes("weights", b"1").unwrap();
            folder.place()
        };
        make().unwrap();
        assert!(matches!(make(), Err(DurableError::AlreadyExists { .. })));
        assert_eq!(std::fs::read(destination.join("weights")).unwrap(), b"1");
        std::fs::remove_file(destination.join("weights")).unwrap();
        make().unwrap();
        let names: Vec<_> = RealFs.list(&destination).unwrap();
        assert_eq!(names.len(), 1, "the file, and no manifest");
        std::fs::remove_dir_all(&destination).unwrap();
        crate::write(&destination, b"a file").unwrap();
        assert!(matches!(make(), Err(DurableError::AlreadyExists { .. })));
        assert_eq!(RealFs.list(place.path()).unwrap().len(), 1, "nothing is left behind");
    }
}
