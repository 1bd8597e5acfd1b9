//! Taking a lock, and asking who has it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::{Holder, LockError};

/// More than any honest holder writes.
const MAX_TEXT_BYTES: u64 = 64 * 1024;

/// The lock is ours as long as this lives.
///
/// The file is opened close-on-exec, so a program that we start does not keep it. A child that was
/// forked without exec does, until it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    holder: Holder,
}

/// Takes the lock of a state directory: the file `lock` in it.
pub fn lock_state_dir(state_dir: &Path) -> Result<Lock, LockError> {
    lock_file(&state_dir.join("lock"))
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
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let mut file = open(path).map_err(io)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let holder = read_holder(&mut file);
            return Err(LockError::Held { path: path.to_owned(), holder });
        }
        Err(errno) => return Err(io(errno.into())),
    }
    let mut lock = Lock { file, path: path.to_owned(), holder: Holder::this_process() };
    lock.write_holder()?;
    Ok(lock)
}

/// Who holds the lock at the moment: `None` if nobody, `Some(None)` if somebody unnamed.
pub fn holder_of(path: &Path) -> Result<Option<Option<Holder>>, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file: File = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(io(errno.into())),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Ok(Some(read_holder(&mut file))),
        Err(errno) => Err(io(errno.into())),
    }
}

impl Lock {
    /// Tells those who come second how much GPU memory we use.
    pub fn set_vram_bytes(&mut self, bytes: Option<u64>) -> Result<(), LockError> {
        self.holder.vram_bytes = bytes;
        self.write_holder()
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write_holder(&mut self) -> Result<(), LockError> {
        let io = |source| LockError::Io { path: self.path.clone(), source };
        let line = serde_json::to_string(&self.holder).map_err(|error| io(error.into()))?;
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(line.as_bytes()));
        written.map_err(io)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?.into())
}

/// The text may be half written by a holder that just began, or by another program.
fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(MAX_TEXT_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
