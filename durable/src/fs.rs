//! The few file system operations that durable writes are made of, and the real ones.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

#[cfg(target_os = "linux")]
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

#[cfg(target_os = "linux")]
use crate::direct::DirectFile;

/// A file open for writing that can be brought to the disk.
pub trait FsFile: Write + Send {
    /// Returns once the bytes written so far would survive a power cut.
    fn sync(&mut self) -> io::Result<()>;

    /// Makes this file, to which nothing was written yet, one with the bytes of `source` that takes no
    /// room of its own until one of the two is written to. An error where the file system cannot.
    fn clone_bytes_of(&mut self, _source: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FolderEntry {
    /// The name, without the folder's path.
    pub name: OsString,
    /// Whether it is a folder (a link to a folder is not).
    pub is_folder: bool,
}

/// The operations that durable writes and their recovery use.
///
/// [`RealFs`] is the operating system; [`FaultFs`](crate::faults::FaultFs) fails on purpose.
pub trait Fs: Send + Sync {
    /// Creates a file that must not exist, with the given mode less the process's umask.
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>>;
    /// The same for a file of many megabytes that nobody reads soon: it need not pass through the page
    /// cache.
    fn create_large(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        self.create_new(path, mode)
    }
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
    /// Renames a file or folder; a file that is in the way is replaced in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames a file or folder; fails with `AlreadyExists` if anything is in the way.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Brings a folder's names to the disk.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and everything in it.
    fn remove_folder_all(&self, path: &Path) -> io::Result<()>;
    /// Creates one folder with the given mode less the umask; its parent must exist.
    fn create_folder(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Lists a folder, in the order of the names.
    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>>;
    /// Bytes that this user may still write to the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl FsFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }

    #[cfg(target_os = "linux")]
    fn clone_bytes_of(&mut self, source: &File) -> io::Result<()> {
        Ok(rustix::fs::ioctl_ficlone(self, source)?)
    }
}

impl Fs for RealFs {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        Ok(Box::new(file))
    }

    #[cfg(target_os = "linux")]
    fn create_large(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(DirectFile::create_new(path, mode)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::rename(from, to)?)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rename_noreplace(from, to) {
            // A file system without RENAME_NOREPLACE (NFS, some FUSE): look first. Another
            // process could step in between, and the state directory has one owner.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                if fs::symlink_metadata(to).is_ok() {
                    return Err(Errno::EXIST.into());
                }
                Ok(rustix::fs::rename(from, to)?)
            }
            other => Ok(other?),
        }
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        match File::open(path)?.sync_all() {
            // fsync(2): the file system does not know how to sync a folder.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn create_folder(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().mode(mode).create(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>> {
        let mut entries = fs::read_dir(path)?
            .map(|entry| {
                let entry = entry?;
                Ok(FolderEntry { name: entry.file_name(), is_folder: entry.file_type()?.is_dir() })
            })
            .collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        Ok(entries)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(target_os = "linux")]
fn rename_noreplace(from: &Path, to: &Path) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

#[cfg(not(target_os = "linux"))]
fn rename_noreplace(_from: &Path, _to: &Path) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}
