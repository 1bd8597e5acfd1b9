//! Whether an open file is still the one that a path leads to.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, fstat, lstat};
use rustix::io::Errno;

use crate::Loss;

/// A lock file that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    /// Why nothing can be written into it, where that is so.
    pub(crate) read_only: Option<io::Error>,
}

/// Opens `path`, and makes it where it is missing. A file that may not be written, because it is
/// another user's or lies on a read-only file system, can still be locked.
pub(crate) fn open(path: &Path) -> io::Result<Opened> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(0o644);
    let open = |more: OFlags| rustix::fs::open(path, flags | more, mode);
    // A file that is there is opened without O_CREAT: in a sticky folder such as /tmp the kernel
    // refuses that flag for other people's files.
    let made = match open(OFlags::RDWR) {
        Err(Errno::NOENT) => match open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL) {
            // Somebody else made it in between.
            Err(Errno::EXIST) => open(OFlags::RDWR),
            // Whatever the umask: who may look into the folder may try the lock, and read who has it. A file
            // system that keeps no modes has the same one for everybody.
            made => made.inspect(|file| {
                fchmod(file, mode).ok();
            }),
        },
        opened => opened,
    };
    match made {
        Ok(file) => Ok(Opened { file: file.into(), read_only: None }),
        Err(why @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => match open(OFlags::RDONLY) {
            Ok(file) => Ok(Opened { file: file.into(), read_only: Some(why.into()) }),
            Err(_) => Err(why.into()),
        },
        Err(errno) => Err(errno.into()),
    }
}

/// How `path` has ceased to lead to `file`, if it has.
pub(crate) fn moved(file: &File, path: &Path) -> io::Result<Option<Loss>> {
    let ours = fstat(file)?;
    match lstat(path) {
        Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => Ok(None),
        Ok(_) => Ok(Some(Loss::Replaced)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Some(Loss::Removed)),
        Err(errno) => Err(errno.into()),
    }
}
