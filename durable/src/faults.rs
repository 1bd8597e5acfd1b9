//! A file system that fails on purpose, for tests that ask what happens at every single operation.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{FolderEntry, Fs, FsFile, RealFs};

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It alone fails, with this kind of error.
    Error(io::ErrorKind),
    /// It and every later one fail, as if the process had been killed; a write gets half of its
    /// bytes through.
    Crash,
}

/// The real file system up to its Nth operation.
///
/// Every call that changes or reads something counts as one operation, and so does every write and
/// sync of a file.
#[derive(Clone, Debug)]
pub struct FaultFs {
    count: Arc<AtomicU64>,
    at: u64,
    fault: Fault,
}

impl FaultFs {
    /// Fails at operation `at`, counted from 1.
    pub fn new(at: u64, fault: Fault) -> Self {
        Self { count: Arc::default(), at, fault }
    }

    /// Whether the fault has happened.
    pub fn fired(&self) -> bool {
        self.count.load(Ordering::SeqCst) >= self.at
    }

    fn pass(&self) -> io::Result<()> {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        match self.fault {
            Fault::Error(kind) if number == self.at => Err(kind.into()),
            Fault::Crash if number >= self.at => Err(io::Error::other("killed")),
            _ => Ok(()),
        }
    }
}

struct FaultFile {
    inner: Box<dyn FsFile>,
    faults: FaultFs,
}

impl Write for FaultFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.faults.pass() {
            if self.faults.fault == Fault::Crash {
                let _ = self.inner.write(&bytes[..bytes.len() / 2]);
            }
            return Err(error);
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl FsFile for FaultFile {
    fn sync(&mut self) -> io::Result<()> {
        self.faults.pass()?;
        self.inner.sync()
    }
}

impl Fs for FaultFs {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        self.pass()?;
        let inner = RealFs.create_new(path, mode)?;
        Ok(Box::new(FaultFile { inner, faults: self.clone() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.pass()?;
        RealFs.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        RealFs.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        RealFs.rename_new(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealFs.sync_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealFs.remove_file(path)
    }

    fn remove_folder_all(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        RealFs.remove_folder_all(path)
    }

    fn create_folder(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.pass()?;
        RealFs.create_folder(path, mode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>> {
        self.pass()?;
        RealFs.list(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.pass()?;
        RealFs.free_bytes(path)
    }
}
