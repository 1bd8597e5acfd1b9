//! What can go wrong, with the path and the operation it went wrong at.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A step of a durable write or of a recovery, as named in an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Creating a file that must not exist yet.
    Create,
    /// Creating a folder.
    CreateFolder,
    /// Writing bytes.
    Write,
    /// Bringing a file's bytes to the disk (`fsync`).
    Sync,
    /// Bringing a folder's names to the disk (`fsync` of the folder).
    SyncFolder,
    /// Renaming a file or folder.
    Rename,
    /// Removing a file or folder.
    Remove,
    /// Opening or reading a file.
    Read,
    /// Listing a folder.
    List,
    /// Looking whether something is there.
    Look,
    /// Asking how much room a file system has.
    FreeSpace,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::CreateFolder => "create the folder",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::SyncFolder => "sync the folder",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Read => "read",
            Self::List => "list",
            Self::Look => "look at",
            Self::FreeSpace => "ask for the free space of",
        })
    }
}

/// Why a durable write, a seal or a recovery did not happen.
///
/// After any of these the destination holds what it held before, or, where only the last sync of
/// the folder failed, the new bytes in full.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DurableError {
    /// The operating system refused an operation.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done.
        operation: Operation,
        /// To which file or folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// There is not enough room, found before anything was written.
    #[error("{} has {free_bytes} bytes free, and {needed_bytes} are needed", path.display())]
    NotEnoughSpace {
        /// A path on the file system that is too full.
        path: PathBuf,
        /// Bytes that the write would take.
        needed_bytes: u64,
        /// Bytes that this user may still write there.
        free_bytes: u64,
    },
    /// A path without a file name (`/`, `..`) was given where a file is to be written.
    #[error("{} does not name a file or folder", path.display())]
    NoFileName {
        /// The path as given.
        path: PathBuf,
    },
    /// A name in a sealed folder must be a plain, visible file name other than the manifest's.
    #[error("{name:?} cannot be the name of a file in a sealed folder")]
    BadName {
        /// The name as given.
        name: String,
    },
    /// The same name was added to a sealed folder twice.
    #[error("{name:?} was already added to {}", folder.display())]
    DuplicateName {
        /// The name as given.
        name: String,
        /// The sealed folder's place.
        folder: PathBuf,
    },
    /// Something is already where a sealed folder should go.
    #[error("{} already exists", path.display())]
    AlreadyExists {
        /// The place that is taken.
        path: PathBuf,
    },
    /// The manifest could not be put into JSON.
    #[error("cannot put the manifest of {} into JSON", path.display())]
    Encode {
        /// The sealed folder's place.
        path: PathBuf,
        /// The encoder's answer.
        #[source]
        source: serde_json::Error,
    },
}

impl DurableError {
    /// What to do next, for a `hint:` line.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotEnoughSpace { needed_bytes, free_bytes, .. } => Some(format!(
                "free at least {} bytes there, or move the state directory to a larger disk",
                needed_bytes.saturating_sub(*free_bytes)
            )),
            Self::Io { source, path, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(format!(
                    "the disk or quota that holds {} is full; free some room and try again",
                    path.display()
                )),
                io::ErrorKind::PermissionDenied => {
                    Some(format!("check the owner and mode of {}", path.display()))
                }
                _ if source.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    Some("the disk does not answer as it should: look at `dmesg`".to_owned())
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    Some("the file system is mounted read-only".to_owned())
                }
                _ => None,
            },
            Self::AlreadyExists { .. } => {
                Some("remove it or choose another name; it is never overwritten".to_owned())
            }
            Self::NoFileName { .. }
            | Self::BadName { .. }
            | Self::DuplicateName { .. }
            | Self::Encode { .. } => None,
        }
    }

    /// Whether the disk or the quota was full.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::NotEnoughSpace { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Names the operation and the path that an `io::Error` belongs to.
pub(crate) trait At<T> {
    fn at(self, operation: Operation, path: &Path) -> Result<T, DurableError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, operation: Operation, path: &Path) -> Result<T, DurableError> {
        self.map_err(|source| DurableError::Io { operation, path: path.to_owned(), source })
    }
}
