//! A lock that is held.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::place::{Opened, moved};
use crate::take::{Taken, take};
use crate::{Holder, LockError, Loss};

/// The lock is ours as long as this lives, and as [`still_ours`](Self::still_ours) says so.
///
/// The file is opened close-on-exec, so a program that we start does not keep it. A child that was
/// forked without exec does, until it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// Locked besides, so that whoever removes the file lets nobody else in.
    _folder: Option<File>,
    path: PathBuf,
    holder: Holder,
    naming_error: Option<io::Error>,
}

/// Takes the lock of a state directory: the file `lock` in it, and the folder itself.
pub fn lock_state_dir(state_dir: &Path) -> Result<Lock, LockError> {
    lock(&state_dir.join("lock"), Some(state_dir))
}

/// Takes the lock of a GPU by its UUID: a file in `folder`, which all users of the GPU share
/// (such as `/tmp` or `/run/lock`).
pub fn lock_gpu(folder: &Path, uuid: &str) -> Result<Lock, LockError> {
    lock_file(&gpu_lock_path(folder, uuid)?)
}

/// Where [`lock_gpu`] keeps the lock of a GPU.
pub fn gpu_lock_path(folder: &Path, uuid: &str) -> Result<PathBuf, LockError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if uuid.is_empty() || uuid.len() > 100 || !uuid.chars().all(plain) {
        return Err(LockError::BadUuid { uuid: uuid.to_owned() });
    }
    Ok(folder.join(format!("chandler-gpu-{uuid}.lock")))
}

/// Takes the lock that is the file `path`, which is made if it is missing and never removed.
pub fn lock_file(path: &Path) -> Result<Lock, LockError> {
    lock(path, None)
}

fn lock(path: &Path, folder: Option<&Path>) -> Result<Lock, LockError> {
    let Taken { opened: Opened { file, read_only }, folder } = take(path, folder)?;
    let mut lock = Lock {
        file,
        _folder: folder,
        path: path.to_owned(),
        holder: Holder::this_process(),
        naming_error: read_only,
    };
    if lock.naming_error.is_none() {
        lock.naming_error = lock.write_holder().err();
    }
    Ok(lock)
}

impl Lock {
    /// Tells those who come second how much GPU memory we use.
    pub fn set_vram_bytes(&mut self, bytes: Option<u64>) -> Result<(), LockError> {
        self.holder.vram_bytes = bytes;
        self.write_holder().map_err(|source| LockError::Io { path: self.path.clone(), source })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why the file does not say who holds it: it may not be written, or the disk is full. The
    /// lock holds all the same.
    pub fn naming_error(&self) -> Option<&io::Error> {
        self.naming_error.as_ref()
    }

    /// Whether the lock still keeps others out. Who finds that it does not
    /// ([`LockError::Lost`]) changes nothing more and ends, since another process may have begun.
    ///
    /// A few system calls: cheap enough for every turn of a loop.
    ///
    /// ```
    /// use chandler_daemon_lock::{LockError, Loss, lock_state_dir};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let folder = tempfile::tempdir()?;
    /// let lock = lock_state_dir(folder.path())?;
    /// lock.still_ours()?;
    /// std::fs::remove_file(lock.path())?;
    /// assert!(matches!(lock.still_ours(), Err(LockError::Lost { how: Loss::Removed, .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn still_ours(&self) -> Result<(), LockError> {
        let lost = |how| Err(LockError::Lost { path: self.path.clone(), how });
        match moved(&self.file, &self.path) {
            Ok(None) => {}
            Ok(Some(how)) => return lost(how),
            Err(source) => return Err(LockError::Io { path: self.path.clone(), source }),
        }
        // Changes nothing where the lock is ours.
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => lost(Loss::Unlocked),
            Err(errno) => Err(LockError::Io { path: self.path.clone(), source: errno.into() }),
        }
    }

    fn write_holder(&mut self) -> io::Result<()> {
        let line = serde_json::to_string(&self.holder)?;
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(line.as_bytes())
    }
}

impl Drop for Lock {
    /// Takes the name out of the file while the lock is still ours. A forked child that comes here
    /// is not who the name stands for.
    fn drop(&mut self) {
        if self.holder.pid == std::process::id() && self.naming_error.is_none() {
            // A name that stays is that of a process which holds nothing: it is tried again.
            let _ = self.file.set_len(0);
        }
    }
}
