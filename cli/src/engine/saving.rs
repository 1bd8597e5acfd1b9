//! The file system, which tells how much has been written to it.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chandler_durable::{FolderEntry, Fs, FsFile, RealFs};

use crate::logging::Progress;

/// [`RealFs`], with a progress line for the bytes of the files that it creates.
pub(crate) struct ToldFs {
    telling: Telling,
}

#[derive(Clone)]
struct Telling {
    progress: Progress,
    name: &'static str,
    total: u64,
    done: Arc<AtomicU64>,
}

impl ToldFs {
    /// For about `total` bytes of what has this name.
    pub(crate) fn new(progress: &Progress, name: &'static str, total: u64) -> Self {
        let done = Arc::default();
        Self { telling: Telling { progress: progress.clone(), name, total, done } }
    }
}

/// A file, each of whose bytes is told.
struct ToldFile {
    file: Box<dyn FsFile>,
    telling: Telling,
}

impl Write for ToldFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let Telling { progress, name, total, done } = &self.telling;
        let before = done.fetch_add(written as u64, Ordering::Relaxed);
        progress.saving(name, before + written as u64, *total);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl FsFile for ToldFile {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Fs for ToldFs {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        let file = RealFs.create_new(path, mode)?;
        Ok(Box::new(ToldFile { file, telling: self.telling.clone() }))
    }

    fn create_large(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        let file = RealFs.create_large(path, mode)?;
        Ok(Box::new(ToldFile { file, telling: self.telling.clone() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        RealFs.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename_new(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        RealFs.sync_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_file(path)
    }

    fn remove_folder_all(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_folder_all(path)
    }

    fn create_folder(&self, path: &Path, mode: u32) -> io::Result<()> {
        RealFs.create_folder(path, mode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>> {
        RealFs.list(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        RealFs.free_bytes(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::Terminal;

    #[test]
    fn what_is_written_is_counted_and_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let fs = ToldFs::new(&Progress::new(&Terminal::stderr()), "model", 10);
        let path = folder.path().join("a");
        chandler_durable::write_file(&fs, &path, b"12345").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"12345");
        assert_eq!(fs.telling.done.load(Ordering::Relaxed), 5);
    }
}
