//! Taking a lock, and asking who has it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::place::{self, Opened};
use crate::process::keepers;
use crate::{Holder, LockError};

/// More than any honest holder writes.
const MAX_TEXT_BYTES: u64 = 64 * 1024;

/// How long a lock that nobody living lays claim to is tried again. Somebody may just have taken
/// it and not have written a name yet, be about to end, or be asking who holds it.
const PATIENCE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(5);

/// What a lock consists of, once taken.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) opened: Opened,
    /// The folder, locked besides the file where that was asked for.
    pub(crate) folder: Option<File>,
}

enum Attempt {
    Taken(Taken),
    /// Another holds this file, or the folder.
    Busy(File),
    /// The path has come to lead to another file since it was opened.
    Moved,
}

/// Takes the lock of the file `path`, and of `folder` before it, or says who has it.
pub(crate) fn take(path: &Path, folder: Option<&Path>) -> Result<Taken, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let attempt = attempt(path, folder).map_err(io)?;
        let is_last = Instant::now() >= deadline;
        match attempt {
            Attempt::Taken(taken) => return Ok(taken),
            Attempt::Busy(file) => {
                let named = read_holder(path);
                let is_running = named.as_ref().is_some_and(Holder::is_running);
                if is_running || is_last {
                    return Err(refusal(path, named, is_running, &file));
                }
            }
            Attempt::Moved if is_last => {
                return Err(io(io::Error::other("the file is replaced again and again")));
            }
            Attempt::Moved => {}
        }
        std::thread::sleep(PAUSE);
    }
}

fn attempt(path: &Path, folder: Option<&Path>) -> io::Result<Attempt> {
    let exclusively = FlockOperation::NonBlockingLockExclusive;
    let locked = folder.map(|folder| lock_folder(folder, exclusively)).transpose()?.flatten();
    let folder = match locked {
        Some(Ok(locked)) => Some(locked),
        Some(Err(busy)) => return Ok(Attempt::Busy(busy)),
        None => None,
    };
    let opened = place::open(path)?;
    match flock(&opened.file, exclusively) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Attempt::Busy(opened.file)),
        Err(errno) => return Err(errno.into()),
    }
    if place::moved(&opened.file, path)?.is_some() {
        return Ok(Attempt::Moved);
    }
    Ok(Attempt::Taken(Taken { opened, folder }))
}

/// The folder locked, or busy (`Err`); nothing where its file system cannot lock folders.
fn lock_folder(folder: &Path, how: FlockOperation) -> io::Result<Option<Result<File, File>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened: File = rustix::fs::open(folder, flags, Mode::empty())?.into();
    Ok(match flock(&opened, how) {
        Ok(()) => Some(Ok(opened)),
        Err(Errno::WOULDBLOCK) => Some(Err(opened)),
        Err(_) => None,
    })
}

fn refusal(path: &Path, named: Option<Holder>, is_running: bool, file: &File) -> LockError {
    let path = path.to_owned();
    match named {
        Some(holder) if is_running => {
            LockError::Held { path, holder: Some(holder), keepers: Box::default() }
        }
        Some(ended) => LockError::Kept { path, ended, keepers: keepers(file) },
        None => LockError::Held { path, holder: None, keepers: keepers(file) },
    }
}

/// Who holds the lock at the moment: `None` if nobody, `Some(None)` if somebody unnamed.
pub fn holder_of(path: &Path) -> Result<Option<Option<Holder>>, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file: File = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(io(errno.into())),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Ok(Some(read_holder(path).filter(Holder::is_running))),
        Err(errno) => Err(io(errno.into())),
    }
}

/// Who holds a state directory at the moment, as [`holder_of`] its file, also where that was
/// removed under its owner.
pub fn holder_of_state_dir(state_dir: &Path) -> Result<Option<Option<Holder>>, LockError> {
    let path = state_dir.join("lock");
    if let Some(holder) = holder_of(&path)? {
        return Ok(Some(holder));
    }
    match lock_folder(state_dir, FlockOperation::NonBlockingLockShared) {
        Ok(Some(Err(_busy))) => Ok(Some(None)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LockError::Io { path, source }),
    }
}

/// The text may be half written by a holder that just began, or by another program.
fn read_holder(path: &Path) -> Option<Holder> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file: File = rustix::fs::open(path, flags, Mode::empty()).ok()?.into();
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(MAX_TEXT_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
