//! What can go wrong with the database.

use std::path::PathBuf;

use super::jobs::JobState;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not be opened.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A step of the schema could not be applied.
    #[error("cannot bring the database {} from version {from} to {to}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The version before the step.
        from: i64,
        /// The version after it.
        to: i64,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The database was written by a newer chandler.
    #[error("the database {} has version {found}, this chandler knows up to {known}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this binary knows.
        known: i64,
    },
    /// A statement failed.
    #[error("cannot {operation} in the database")]
    Query {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A value could not be put into JSON, or taken out of it.
    #[error("cannot {operation} in the database")]
    Json {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// There is no job with this number.
    #[error("there is no job {id}")]
    NoSuchJob {
        /// The number asked for.
        id: i64,
    },
    /// A job is not in a state in which this can be done to it.
    #[error("job {id} is {found}, and only a {} job can be {action}", allowed.join(" or "))]
    WrongState {
        /// The job.
        id: i64,
        /// Its state.
        found: JobState,
        /// What was asked, as a participle: retried, skipped.
        action: &'static str,
        /// The states in which it could be done.
        allowed: &'static [&'static str],
    },
}

impl StoreError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open { path, .. } | Self::Migrate { path, .. } => Some(format!(
                "check the owner and mode of {0} and that the disk has room; if the file is \
                 damaged, move it and its -wal and -shm aside: the files in inbox/ are queued anew",
                path.display()
            )),
            Self::TooNew { .. } => Some("use the chandler that wrote it, or a newer one".into()),
            Self::NoSuchJob { .. } | Self::WrongState { .. } => {
                Some("`chandler jobs` lists them".into())
            }
            Self::Query { source, .. } => match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => {
                    Some("the disk is full; free some room and try again".into())
                }
                Some(rusqlite::ErrorCode::DatabaseBusy) => {
                    Some("another process holds the database; try again".into())
                }
                Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::CannotOpen) => {
                    Some("check the owner and mode of chandler.db, and what `dmesg` says".into())
                }
                Some(rusqlite::ErrorCode::SystemIoFailure) => {
                    Some("the disk does not answer as it should: look at `dmesg`".into())
                }
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                    Some(
                        "move chandler.db and its -wal and -shm aside: the files in inbox/ are \
                         queued anew; look at `dmesg` for what the disk says"
                            .into(),
                    )
                }
                _ => None,
            },
            Self::Json { .. } => None,
        }
    }
}

/// Says what was being done when a statement failed.
pub(super) trait Doing<T> {
    fn doing(self, operation: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for Result<T, rusqlite::Error> {
    fn doing(self, operation: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Query { operation, source })
    }
}

impl<T> Doing<T> for Result<T, serde_json::Error> {
    fn doing(self, operation: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Json { operation, source })
    }
}
