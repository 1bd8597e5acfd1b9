//! One file, whole or absent.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::At;
use crate::rename::rename_to_free_place;
use crate::temporary::{parent_of, under_temporary_name};
use crate::{DurableError, Fs, FsFile, Operation, RealFs};

/// Mode of an ordinary new file, less the umask.
pub(crate) const SHARED_MODE: u32 = 0o666;
/// Mode of a file that only its owner may read.
const PRIVATE_MODE: u32 = 0o600;
/// Large enough that a write costs little more than the copy.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// Writes `bytes` to `path`, whole or not at all, on the real file system.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    write_file(&RealFs, path, bytes)
}

/// Writes `bytes` to `path`, whole or not at all.
pub fn write_file(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    write_with(fs, path, |file| file.write_all(bytes))
}

/// Writes to `path` what `fill` writes, whole or not at all.
///
/// If `fill` fails or panics, `path` keeps what it held.
pub fn write_with<T>(
    fs: &dyn Fs,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> Result<T, DurableError> {
    let mut file = DurableFile::create(fs, path)?;
    let value = fill(&mut file).at(Operation::Write, path)?;
    file.commit()?;
    Ok(value)
}

/// From here on a file is written past the page cache.
const LARGE_BYTES: u64 = 64 << 20;

/// [`write_with`] for a file of about so many bytes.
pub fn write_sized_with<T>(
    fs: &dyn Fs,
    path: &Path,
    bytes: u64,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> Result<T, DurableError> {
    let mut file = DurableFile::create_sized(fs, path, bytes)?;
    let value = fill(&mut file).at(Operation::Write, path)?;
    file.commit()?;
    Ok(value)
}

/// Writes what `fill` writes to the first of `places` that nothing stands at, whole or not at all;
/// all are in `folder`. Nothing is replaced; the place is returned with what `fill` did.
pub fn write_to_free_place<T>(
    fs: &dyn Fs,
    folder: &Path,
    places: impl IntoIterator<Item = PathBuf>,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> Result<(PathBuf, T), DurableError> {
    let mut file = DurableFile::create_in(fs, folder, SHARED_MODE, folder.to_owned())?;
    let value = fill(&mut file).at(Operation::Write, folder)?;
    file.sync()?;
    let place = rename_to_free_place(fs, &file.temporary, places)?;
    file.writer = None;
    Ok((place, value))
}

/// A file being written under a temporary name; [`commit`](Self::commit) puts it in place.
///
/// Dropped without a commit, it leaves nothing behind. Where `path` is a symbolic link, the link
/// itself is replaced.
pub struct DurableFile<'fs> {
    fs: &'fs dyn Fs,
    /// `None` once committed.
    writer: Option<BufWriter<Box<dyn FsFile>>>,
    temporary: PathBuf,
    destination: PathBuf,
}

impl<'fs> DurableFile<'fs> {
    /// Begins a file that will stand at `path`, readable as the umask says.
    pub fn create(fs: &'fs dyn Fs, path: &Path) -> Result<Self, DurableError> {
        Self::create_with_mode(fs, path, SHARED_MODE)
    }

    /// Begins a file that only its owner may read or write: for tokens.
    pub fn create_private(fs: &'fs dyn Fs, path: &Path) -> Result<Self, DurableError> {
        Self::create_with_mode(fs, path, PRIVATE_MODE)
    }

    /// The same as [`create`](Self::create) for a file of about so many bytes.
    pub(crate) fn create_sized(
        fs: &'fs dyn Fs,
        path: &Path,
        bytes: u64,
    ) -> Result<Self, DurableError> {
        if bytes < LARGE_BYTES {
            return Self::create(fs, path);
        }
        let create = |name: &Path| fs.create_large(name, SHARED_MODE);
        Self::create_by(fs, parent_of(path)?, path.to_owned(), create)
    }

    /// Takes over the bytes of `source`, before anything was written.
    pub(crate) fn clone_bytes_of(&mut self, source: &File) -> io::Result<()> {
        self.writer.as_mut().expect("present until the commit").get_mut().clone_bytes_of(source)
    }

    fn create_with_mode(fs: &'fs dyn Fs, path: &Path, mode: u32) -> Result<Self, DurableError> {
        Self::create_in(fs, parent_of(path)?, mode, path.to_owned())
    }

    fn create_in(
        fs: &'fs dyn Fs,
        folder: &Path,
        mode: u32,
        destination: PathBuf,
    ) -> Result<Self, DurableError> {
        Self::create_by(fs, folder, destination, |name| fs.create_new(name, mode))
    }

    fn create_by(
        fs: &'fs dyn Fs,
        folder: &Path,
        destination: PathBuf,
        create: impl Fn(&Path) -> io::Result<Box<dyn FsFile>>,
    ) -> Result<Self, DurableError> {
        let (temporary, file) = under_temporary_name(folder, Operation::Create, create)?;
        let writer = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Self { fs, writer, temporary, destination })
    }

    /// Brings the bytes to the disk.
    fn sync(&mut self) -> Result<(), DurableError> {
        let writer = self.writer.as_mut().expect("present until the commit has succeeded");
        writer.flush().at(Operation::Write, &self.temporary)?;
        writer.get_mut().sync().at(Operation::Sync, &self.temporary)
    }

    /// Brings the bytes to the disk and puts the file in place.
    pub fn commit(mut self) -> Result<(), DurableError> {
        self.sync()?;
        self.fs
            .rename(&self.temporary, &self.destination)
            .at(Operation::Rename, &self.temporary)?;
        self.writer = None;
        let folder = parent_of(&self.destination)?;
        self.fs.sync_folder(folder).at(Operation::SyncFolder, folder)
    }
}

impl Write for DurableFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.as_mut().expect("present until the commit").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().expect("present until the commit").flush()
    }
}

impl Drop for DurableFile<'_> {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // Closes the file without writing what is still in the buffer.
            drop(writer.into_parts());
            // If even this fails, the sweep at the next start removes it.
            let _ = self.fs.remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = RealFs.list(folder).unwrap().into_iter();
        entries.map(|entry| entry.name.into_string().unwrap()).collect()
    }

    #[test]
    fn replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        for bytes in [b"first".as_slice(), b"", b"third time"] {
            write(&path, bytes).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(names(folder.path()), ["state"]);
    }

    #[test]
    fn a_failing_or_panicking_writer_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write(&path, b"old").unwrap();
        let failed = write_with(&RealFs, &path, |file| {
            file.write_all(b"half")?;
            Err::<(), _>(io::Error::other("the tensor has no storage"))
        });
        assert!(matches!(failed, Err(DurableError::Io { operation: Operation::Write, .. })));
        let panicked = std::panic::catch_unwind(|| {
            write_with::<()>(&RealFs, &path, |file| {
                file.write_all(b"half")?;
                panic!("mid-write")
            })
        });
        assert!(panicked.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["state"]);
    }

    #[test]
    fn what_stands_at_a_place_is_left_there() {
        let folder = tempfile::tempdir().unwrap();
        let places = || ["a", "a-2"].map(|name| folder.path().join(name));
        for expected in ["a", "a-2"] {
            let fill = |file: &mut dyn Write| file.write_all(expected.as_bytes());
            let (place, ()) = write_to_free_place(&RealFs, folder.path(), places(), fill).unwrap();
            assert_eq!(place, folder.path().join(expected));
        }
        assert!(write_to_free_place(&RealFs, folder.path(), places(), |_| Ok(())).is_err());
        assert_eq!(names(folder.path()), ["a", "a-2"]);
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"a");
    }

    #[test]
    fn a_private_file_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut file = DurableFile::create_private(&RealFs, &path).unwrap();
        file.write_all(b"secret").unwrap();
        file.commit().unwrap();
        let mode = File::open(&path).unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("absent/state"), b"x").unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
        assert!(matches!(error, DurableError::Io { operation: Operation::Create, .. }));
    }
}
