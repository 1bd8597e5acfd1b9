use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::{Holder, Keeper};

/// Why a lock is not ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error("{} is in use by {}", path.display(), described(holder.as_ref(), keepers))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, where the file says so.
        holder: Option<Holder>,
        /// Where it does not, the processes that do, as far as the system shows them.
        keepers: Box<[Keeper]>,
    },

    /// The process that took it has ended, and one that it forked keeps it.
    #[error(
        "{} is still locked: {}, which took it, no longer runs here, and {}",
        path.display(), ended, keeping(keepers)
    )]
    Kept {
        /// The lock file.
        path: PathBuf,
        /// Who took it.
        ended: Holder,
        /// Who keeps it, as far as the system shows them.
        keepers: Box<[Keeper]>,
    },

    /// It was ours, and is not any more.
    #[error("{} is no longer held by this process: {how}", path.display())]
    Lost {
        /// The lock file.
        path: PathBuf,
        /// How it was lost.
        how: Loss,
    },

    /// The lock file could not be opened or locked.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A GPU's UUID that cannot be part of a file name.
    #[error("{uuid:?} is not the UUID of a GPU")]
    BadUuid {
        /// As given.
        uuid: String,
    },
}

/// How a lock was lost by the process that held it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The file, or the folder it lay in, is gone.
    Removed,
    /// Another file lies in its place.
    Replaced,
    /// The lock itself was ended, by a forked child or by the file system.
    Unlocked,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the file was removed or moved",
            Self::Replaced => "another file lies in its place",
            Self::Unlocked => "somebody else has locked the file",
        })
    }
}

fn described(holder: Option<&Holder>, keepers: &[Keeper]) -> String {
    match (holder, keepers) {
        (Some(holder), _) => holder.to_string(),
        (None, []) => "a process that has not said who it is".to_owned(),
        (None, keepers) => listed(keepers),
    }
}

fn keeping(keepers: &[Keeper]) -> String {
    match keepers {
        [] => "a process that is not shown here keeps it".to_owned(),
        [one] => format!("{} keeps it", listed(std::slice::from_ref(one))),
        several => format!("{} keep it", listed(several)),
    }
}

fn listed(keepers: &[Keeper]) -> String {
    let mut text = String::new();
    for (turn, Keeper { pid, command_line }) in keepers.iter().enumerate() {
        let comma = if turn == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}pid {pid} (`{command_line}`)");
    }
    text
}

impl LockError {
    /// What the person who sees the error can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Held { holder: Some(holder), .. } => Some(format!(
                "wait for it, or end it with `kill {}`: it writes a checkpoint and goes",
                holder.pid
            )),
            Self::Held { path, keepers, .. } | Self::Kept { path, keepers, .. } => {
                Some(freeing(path, keepers))
            }
            Self::Lost { path, .. } => Some(format!(
                "leave {} alone while a process holds it; make sure that no other one runs, and \
                 start again",
                path.display()
            )),
            Self::Io { path, source } => Some(io_hint(path, source)),
            Self::BadUuid { .. } => None,
        }
    }
}

fn freeing(path: &Path, keepers: &[Keeper]) -> String {
    if keepers.is_empty() {
        return format!(
            "`sudo fuser -v {}` says which process it is, of another user or container perhaps; \
             the lock is free when it ends",
            path.display()
        );
    }
    let pids: Vec<String> = keepers.iter().map(|keeper| keeper.pid.to_string()).collect();
    format!("`kill {}` ends it, and the lock with it", pids.join(" "))
}

fn io_hint(path: &Path, source: &io::Error) -> String {
    let is = |errno: Errno| source.raw_os_error() == Some(errno.raw_os_error());
    if is(Errno::LOOP) {
        format!("{} is a symbolic link; remove it", path.display())
    } else if is(Errno::NOLCK) || is(Errno::OPNOTSUPP) {
        "this file system has no locks; put the folder on a local disk".to_owned()
    } else if is(Errno::ROFS) {
        "the file system is mounted read-only; name another folder".to_owned()
    } else if is(Errno::NOSPC) || is(Errno::DQUOT) {
        "the file system is full; free some room and try again".to_owned()
    } else {
        format!("check the owner and mode of {}", path.display())
    }
}
