//! What can go wrong between the inbox and `done/`.

use std::io;
use std::path::PathBuf;

use chandler_durable::{DurableError, MANIFEST_NAME};

use super::refusal::Refusal;
use crate::store::StoreError;
use crate::visible::visible_path;

/// Why the queue did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A folder could not be listed.
    #[error("cannot list {}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file could not be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// This is no file that can be learned from.
    #[error("{} {refusal}", visible_path(path))]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why not.
        refusal: Refusal,
    },
    /// Somebody wanted an end while a file was being claimed.
    #[error("the claim of job {id} was stopped")]
    Stopped {
        /// The job.
        id: i64,
        /// Where its file lies by then.
        path: PathBuf,
    },
    /// A queued file is no longer where it was.
    #[error("{} (job {id}) is gone", path.display())]
    Vanished {
        /// The job.
        id: i64,
        /// Where its file was.
        path: PathBuf,
    },
    /// What the model learned from last cannot be told.
    #[error("whether {} has learned from the file is not known: {reason}", folder.display())]
    BrokenModel {
        /// The model's folder.
        folder: PathBuf,
        /// What is wrong with its manifest.
        reason: String,
    },
    /// A file could not be moved or written.
    #[error(transparent)]
    Durable {
        /// The cause, which names path and operation.
        #[from]
        source: DurableError,
    },
    /// The database did not do its part.
    #[error(transparent)]
    Store {
        /// The cause.
        #[from]
        source: StoreError,
    },
}

impl QueueError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::List { path, .. } | Self::Read { path, .. } | Self::Remove { path, .. } => {
                Some(format!("check the owner and mode of {}", path.display()))
            }
            Self::Refused { refusal, .. } => Some(refusal.hint().to_owned()),
            Self::Stopped { .. } => None,
            Self::Vanished { .. } => Some("`chandler add FILE` queues it again".to_owned()),
            Self::BrokenModel { folder, .. } => Some(format!(
                "put a snapshot in the place of {0}; or, if its files are as they should be, remove \
                 {0}/{MANIFEST_NAME}, and it counts as one that has not learned from the file",
                folder.display()
            )),
            Self::Durable { source } => source.hint(),
            Self::Store { source } => source.hint(),
        }
    }
}
