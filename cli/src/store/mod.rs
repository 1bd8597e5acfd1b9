//! What outlives the process: queue, runs, events, metrics and samples, in SQLite.
//!
//! Write-ahead log with `synchronous=FULL`: what a function here returned from is on the disk.
//! Several processes may use the file at once, so commands work while the daemon runs.

mod binding;
mod comparison;
mod curve;
mod error;
mod evals;
mod events;
mod forget;
mod jobs;
mod layers;
mod metrics;
mod outbox;
mod runs;
mod schema;
mod settings;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

pub use binding::{Binding, BindingMismatch};
pub use comparison::Earlier;
pub use curve::{Bucket, Curve, SERIES, Span};
use error::Doing;
pub use error::StoreError;
pub use evals::{EvalRow, EvalSample, HELD_OUT, OWN_SETS, PROMPTS, ScoreRow, TRAINING};
pub use events::Event;
pub use forget::Forgotten;
pub use jobs::{Job, JobState, NewJob};
pub use layers::LayerStep;
pub use metrics::StepRow;
pub use outbox::{LONGEST_WAIT_MS, Parcel};
pub use runs::{Run, RunState, RunSummary};

/// How long a statement waits for another process to let go of the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The database of one state directory.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens the database, makes it if it is missing, and brings it to the newest version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(open)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(open)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(open)?;
        schema::migrate(&mut connection, path)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Whether it could only be opened for reading, which SQLite does where writing is refused.
    pub fn is_read_only(&self) -> bool {
        self.connection.is_readonly(rusqlite::MAIN_DB).unwrap_or(true)
    }

    /// Lets go of the pages that are kept in memory; they are read again where they are wanted.
    pub fn shrink(&self) -> Result<(), StoreError> {
        self.connection.execute_batch("PRAGMA shrink_memory").doing("let go of the cache")
    }

    /// Opens the database for reading alone: a writer is never kept waiting, and what is there is
    /// not brought to a newer version. It must exist.
    pub fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(open)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Reads several things as they are at one moment, whatever is written meanwhile.
    pub fn at_one_moment<T>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let moment = self.connection.unchecked_transaction().doing("begin to read")?;
        let value = read(self)?;
        moment.commit().doing("end reading")?;
        Ok(value)
    }

    /// Makes several changes of which all or none are on the disk afterwards. Nobody else writes
    /// meanwhile.
    pub fn all_or_none<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        // Dropped without a commit, it takes back what was changed.
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
                .doing("begin to write")?;
        let value = change()?;
        transaction.commit().doing("write")?;
        Ok(value)
    }

    /// A number that is another one once anybody else has written to the database.
    pub fn data_version(&self) -> Result<i64, StoreError> {
        self.connection
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .doing("look for changes")
    }

    /// Reads the whole file through; what is damaged is said in words.
    pub fn check(&self) -> Result<Option<String>, StoreError> {
        let verdict: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .doing("look for damage")?;
        Ok((verdict != "ok").then_some(verdict))
    }

    /// A path as it is kept: within the state directory without that, so that the directory may be
    /// moved, or reached by another name.
    fn kept<'a>(&self, path: &'a Path) -> std::borrow::Cow<'a, str> {
        let root = self.path.parent().unwrap_or(Path::new(""));
        path.strip_prefix(root).unwrap_or(path).to_string_lossy()
    }

    /// A kept path as it is now.
    fn unfolded(&self, kept: PathBuf) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(kept)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The time now, as the database keeps it.
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_made_reopened_and_refused_when_newer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chandler.db");
        drop(Store::open(&path).unwrap());
        let store = Store::open(&path).unwrap();
        let mode: String =
            store.connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        let synchronous: i64 =
            store.connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
        assert_eq!((mode.as_str(), synchronous), ("wal", 2));
        store.connection.pragma_update(None, "user_version", 99).unwrap();
        drop(store);
        assert!(matches!(Store::open(&path), Err(StoreError::TooNew { found: 99, .. })));
    }

    #[test]
    fn a_reader_sees_what_is_written_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chandler.db");
        assert!(matches!(Store::open_to_read(&path), Err(StoreError::Open { .. })));
        let writer = Store::open(&path).unwrap();
        let reader = Store::open_to_read(&path).unwrap();
        let before = reader.data_version().unwrap();
        assert_eq!(reader.data_version().unwrap(), before);
        writer.set_paused(true).unwrap();
        assert_ne!(reader.data_version().unwrap(), before);
        assert!(reader.is_paused().unwrap());
        reader
            .at_one_moment(|reader| {
                assert!(reader.is_paused()?);
                writer.set_paused(false)?;
                assert!(reader.is_paused()?, "as it was when reading began");
                Ok(())
            })
            .unwrap();
        assert!(!reader.is_paused().unwrap());
        assert!(reader.set_paused(false).is_err());
    }

    #[test]
    fn a_file_that_is_no_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chandler.db");
        chandler_durable::write(&path, &[b'x'; 4096]).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(error.to_string().contains("chandler.db"), "{error}");
        assert!(error.hint().unwrap().contains("aside"));
    }
}
