use std::io;
use std::path::PathBuf;

use crate::Holder;

/// Why a lock is not ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error("{} is in use by {}", path.display(), described(holder.as_ref()))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, where the file says so.
        holder: Option<Holder>,
    },

    /// The lock file could not be opened, locked or written.
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

fn described(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "a process that has not said who it is".to_owned(), Holder::to_string)
}

impl LockError {
    /// What the person who sees the error can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Held { holder: Some(holder), .. } => Some(format!(
                "wait for it, or end it with `kill {}`: it writes a checkpoint and goes",
                holder.pid
            )),
            Self::Held { path, .. } => {
                Some(format!("`fuser {}` says which process it is", path.display()))
            }
            Self::Io { path, source } => Some(match source.raw_os_error() {
                Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => {
                    format!("{} is a symbolic link; remove it", path.display())
                }
                Some(code)
                    if code == rustix::io::Errno::NOLCK.raw_os_error()
                        || code == rustix::io::Errno::OPNOTSUPP.raw_os_error() =>
                {
                    "this file system has no locks; put the folder on a local disk".to_owned()
                }
                _ => format!("check the owner and mode of {}", path.display()),
            }),
            Self::BadUuid { .. } => None,
        }
    }
}
