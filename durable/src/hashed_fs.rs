//! A file system that knows the hash of what was written through it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::blake3_of;
use crate::{FileHash, FolderEntry, Fs, FsFile};

/// Size and hash of each file, by its present name, while it is written and after.
type Written = Arc<Mutex<BTreeMap<PathBuf, Progress>>>;

#[derive(Clone, Debug, Default)]
struct Progress {
    bytes: u64,
    hash: blake3::Hasher,
}

/// Passes everything on, and hashes what the files made through it are given.
///
/// A file's hash follows it when it is renamed. The hash is that of the bytes that were handed over,
/// so that a file which does not hold them is found out by whoever reads it.
pub(crate) struct HashedFs<'fs> {
    inner: &'fs dyn Fs,
    written: Written,
}

impl<'fs> HashedFs<'fs> {
    pub(crate) fn new(inner: &'fs dyn Fs) -> Self {
        Self { inner, written: Written::default() }
    }

    /// Bytes and hash of what was written to `path`, if that was done through here.
    pub(crate) fn of_file(&self, path: &Path) -> Option<(u64, FileHash)> {
        let written = locked(&self.written);
        let Progress { bytes, hash } = written.get(path)?;
        Some((*bytes, blake3_of(hash)))
    }

    fn hashed(&self, inner: Box<dyn FsFile>, path: &Path) -> Box<dyn FsFile> {
        let (path, written) = (path.to_owned(), Arc::clone(&self.written));
        Box::new(HashedFile { inner, path, progress: Progress::default(), written })
    }

    /// What was known of `from` is known of `to`.
    fn moved(&self, from: &Path, to: &Path) {
        let mut written = locked(&self.written);
        match written.remove(from) {
            Some(progress) => written.insert(to.to_owned(), progress),
            // Another file stands there now.
            None => written.remove(to),
        };
    }
}

fn locked(written: &Written) -> MutexGuard<'_, BTreeMap<PathBuf, Progress>> {
    // An entry is changed in one step, after the write.
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

struct HashedFile {
    inner: Box<dyn FsFile>,
    path: PathBuf,
    progress: Progress,
    written: Written,
}

/// From here on several threads hash a piece.
const WORTH_SHARING_BYTES: usize = 1 << 20;

/// Large pieces are hashed by all threads of the pool, between what else they do: this thread alone
/// would take its time from one of them, and the others would wait for that one.
fn hash(hash: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() < WORTH_SHARING_BYTES {
        hash.update(bytes);
    } else {
        hash.update_rayon(bytes);
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        hash(&mut self.progress.hash, &bytes[..count]);
        self.progress.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl FsFile for HashedFile {
    fn sync(&mut self) -> io::Result<()> {
        self.inner.sync()?;
        locked(&self.written).insert(self.path.clone(), self.progress.clone());
        Ok(())
    }
}

impl Fs for HashedFs<'_> {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        Ok(self.hashed(self.inner.create_new(path, mode)?, path))
    }

    fn create_large(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        Ok(self.hashed(self.inner.create_large(path, mode)?, path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.inner.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)?;
        self.moved(from, to);
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename_new(from, to)?;
        self.moved(from, to);
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)?;
        locked(&self.written).remove(path);
        Ok(())
    }

    fn remove_folder_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_folder_all(path)?;
        locked(&self.written).retain(|file, _| !file.starts_with(path));
        Ok(())
    }

    fn create_folder(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.inner.create_folder(path, mode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>> {
        self.inner.list(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RealFs, digest, write_file};

    #[test]
    fn a_hash_follows_its_file_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let fs = HashedFs::new(&RealFs);
        // More than a buffer, so that there are several writes.
        write_file(&fs, &path("a"), &vec![7; 1_000_000]).unwrap();
        write_file(&fs, &path("b"), b"").unwrap();
        for name in ["a", "b"] {
            let read_back = digest::of_file(&RealFs, &path(name)).unwrap();
            assert_eq!(fs.of_file(&path(name)), Some(read_back), "{name}");
        }
        fs.rename(&path("a"), &path("b")).unwrap();
        assert_eq!(fs.of_file(&path("a")), None);
        assert_eq!(fs.of_file(&path("b")).unwrap().0, 1_000_000);
        // What others wrote is not known, even in the place of what was.
        write_file(&RealFs, &path("c"), b"of another").unwrap();
        fs.rename(&path("c"), &path("b")).unwrap();
        assert_eq!(fs.of_file(&path("b")), None);
    }
}
