//! The queue: one row for each file.

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::error::{Doing, StoreError};
use super::{Store, now};
use crate::priority::Priority;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits in the inbox.
    Queued,
    /// Its file was claimed and is being learned from.
    Running,
    /// It was learned from; its file lies in `done/`.
    Done,
    /// It was tried as often as allowed; its file and report lie in `failed/`.
    Failed,
    /// The user passed it over; its file lies in `failed/`.
    Skipped,
}

impl JobState {
    const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Skipped];

    /// The word in the database and on the screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A file that is about to enter the queue.
#[derive(Debug, Clone)]
pub struct NewJob<'a> {
    /// The name the user gave it.
    pub file_name: &'a str,
    /// Where it lies.
    pub path: &'a Path,
    /// Its size.
    pub size_bytes: u64,
    /// Its priority.
    pub priority: Priority,
}

/// A job as the database has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// Its number, which also says who came first.
    pub id: i64,
    /// The name the user gave the file.
    pub file_name: String,
    /// Where the file lies now.
    pub path: PathBuf,
    /// The file's size.
    pub size_bytes: u64,
    /// SHA-256 of the file in hexadecimal, known once it was claimed.
    pub sha256: Option<String>,
    /// Its priority.
    pub priority: Priority,
    /// Where it stands.
    pub state: JobState,
    /// How often it was begun.
    pub attempts: u64,
    /// When it entered the queue.
    pub created_at: String,
    /// When its last attempt began.
    pub started_at: Option<String>,
    /// When it was settled.
    pub finished_at: Option<String>,
    /// What came of it.
    pub report: Option<serde_json::Value>,
}

const COLUMNS: &str = "id, file_name, path, size_bytes, sha256, priority, state, attempts, \
                       created_at, started_at, finished_at, report";

/// The condition is that of the index, which is not taken by itself: it seems larger than others.
const SETTLED: &str = "INDEXED BY jobs_by_end
                       WHERE state IN ('done', 'failed', 'skipped')
                       ORDER BY finished_at DESC, id DESC LIMIT ?1";

impl Job {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let unreadable = |column: usize| {
            rusqlite::Error::InvalidColumnType(
                column,
                "jobs".to_owned(),
                rusqlite::types::Type::Text,
            )
        };
        let state: String = row.get(6)?;
        let report: Option<String> = row.get(11)?;
        Ok(Self {
            id: row.get(0)?,
            file_name: row.get(1)?,
            path: PathBuf::from(row.get::<_, String>(2)?),
            size_bytes: row.get::<_, i64>(3)? as u64,
            sha256: row.get(4)?,
            priority: Priority::from_rank(row.get(5)?).ok_or_else(|| unreadable(5))?,
            state: JobState::parse(&state).ok_or_else(|| unreadable(6))?,
            attempts: row.get::<_, i64>(7)? as u64,
            created_at: row.get(8)?,
            started_at: row.get(9)?,
            finished_at: row.get(10)?,
            report: report
                .map(|text| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))),
        })
    }
}

impl Store {
    fn take_job(&self) -> impl FnMut(&Row<'_>) -> rusqlite::Result<Job> {
        |row| {
            let job = Job::from_row(row)?;
            Ok(Job { path: self.unfolded(job.path), ..job })
        }
    }

    /// Makes a change and returns the job as it is afterwards.
    ///
    /// In a transaction of its own, unless one goes on: without one, a row is handed out before the
    /// change is on the disk, and a failure to bring it there is not told.
    fn change_job(
        &self,
        statement: &str,
        values: impl rusqlite::Params,
    ) -> rusqlite::Result<Option<Job>> {
        let is_alone = self.connection.is_autocommit();
        let own = is_alone.then(|| self.connection.unchecked_transaction()).transpose()?;
        let job = self
            .connection
            .query_row(&format!("{statement} RETURNING {COLUMNS}"), values, self.take_job())
            .optional()?;
        own.map_or(Ok(()), Transaction::commit)?;
        Ok(job)
    }

    /// Puts a file at the end of its priority's queue. A file that waits there already, because two
    /// looked at once, keeps the job that it has.
    pub fn enqueue(&self, job: &NewJob<'_>) -> Result<Job, StoreError> {
        let mut jobs = self.enqueue_all(std::slice::from_ref(job))?;
        jobs.pop().ok_or(rusqlite::Error::QueryReturnedNoRows).doing("queue a file")
    }

    /// Puts files at the end of their priorities' queues, all or none, as [`enqueue`](Self::enqueue).
    pub fn enqueue_all(&self, jobs: &[NewJob<'_>]) -> Result<Vec<Job>, StoreError> {
        if jobs.is_empty() {
            return Ok(vec![]);
        }
        // It looks before it writes: whoever only reads so far is not let wait for another writer.
        self.all_or_none(|| {
            let queued = jobs.iter().map(|job| self.enqueue_one(job));
            queued.collect::<Result<Vec<_>, _>>().doing("queue files")
        })
    }

    /// Within a transaction.
    fn enqueue_one(&self, job: &NewJob<'_>) -> rusqlite::Result<Job> {
        let path = self.kept(job.path);
        let waiting = format!("SELECT {COLUMNS} FROM jobs WHERE path = ?1 AND state = 'queued'");
        let mut waiting = self.connection.prepare_cached(&waiting)?;
        if let Some(job) = waiting.query_row([&path], self.take_job()).optional()? {
            return Ok(job);
        }
        let mut insert = self.connection.prepare_cached(&format!(
            "INSERT INTO jobs (file_name, path, size_bytes, priority, state, created_at)
                 VALUES (?1, ?2, ?3, ?4, 'queued', ?5) RETURNING {COLUMNS}"
        ))?;
        let (bytes, rank) = (job.size_bytes as i64, job.priority.rank());
        insert.query_row(params![job.file_name, path, bytes, rank, now()], self.take_job())
    }

    /// The job with this number.
    pub fn job(&self, id: i64) -> Result<Job, StoreError> {
        self.connection
            .query_row(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"), [id], self.take_job())
            .optional()
            .doing("read a job")?
            .ok_or(StoreError::NoSuchJob { id })
    }

    /// Whether a job's file is the one at `path`.
    pub fn has_job_at(&self, path: &Path) -> Result<bool, StoreError> {
        self.connection
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM jobs WHERE path = ?1)",
                [self.kept(path)],
                |row| row.get(0),
            )
            .doing("look for a job")
    }

    /// The jobs in this state, in the order in which they are (or were) served.
    pub fn jobs_in(&self, state: JobState) -> Result<Vec<Job>, StoreError> {
        self.select_jobs("WHERE state = ?1 ORDER BY priority, id", &[&state.as_str()])
    }

    /// The job whose turn it is.
    pub fn next_queued(&self) -> Result<Option<Job>, StoreError> {
        Ok(self.select_jobs("WHERE state = 'queued' ORDER BY priority, id LIMIT 1", &[])?.pop())
    }

    /// The last `limit` jobs that are done, failed or skipped, the last settled first.
    pub fn settled_jobs(&self, limit: usize) -> Result<Vec<Job>, StoreError> {
        self.select_jobs(SETTLED, &[&(limit as i64)])
    }

    fn select_jobs(
        &self,
        rest: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<Job>, StoreError> {
        let mut statement = self
            .connection
            .prepare(&format!("SELECT {COLUMNS} FROM jobs {rest}"))
            .doing("list the jobs")?;
        let jobs = statement.query_map(values, self.take_job()).doing("list the jobs")?;
        jobs.collect::<Result<_, _>>().doing("list the jobs")
    }

    /// How many jobs are in each state, in the order queued, running, done, failed, skipped.
    pub fn count_jobs(&self) -> Result<Vec<(JobState, u64)>, StoreError> {
        JobState::ALL
            .into_iter()
            .map(|state| {
                let count: i64 = self
                    .connection
                    .query_row(
                        "SELECT count(*) FROM jobs WHERE state = ?1",
                        [state.as_str()],
                        |row| row.get(0),
                    )
                    .doing("count the jobs")?;
                Ok((state, count as u64))
            })
            .collect()
    }

    /// How many jobs have made a model, whatever became of them afterwards.
    pub fn jobs_learned(&self) -> Result<u64, StoreError> {
        self.connection
            .query_row(
                "SELECT count(*) FROM (
                     SELECT id FROM jobs WHERE state = 'done'
                     UNION SELECT job_id FROM runs WHERE state = 'done' AND job_id IS NOT NULL
                 )",
                [],
                |row| row.get::<_, i64>(0),
            )
            .doing("count the jobs that were learned from")
            .map(|count| count as u64)
    }

    /// Records that a job's file was claimed and an attempt at it begins.
    pub fn begin_attempt(&self, id: i64, path: &Path, sha256: &str) -> Result<Job, StoreError> {
        self.update_job(
            "UPDATE jobs SET state = 'running', path = ?2, sha256 = ?3, attempts = attempts + 1,
                    started_at = ?4, finished_at = NULL
             WHERE id = ?1",
            params![id, self.kept(path), sha256, now()],
            "begin an attempt",
            id,
        )
    }

    /// Puts a job back to its place in the queue, with its file at `path` and this many attempts
    /// that count.
    pub fn requeue(&self, id: i64, path: &Path, attempts: u64) -> Result<Job, StoreError> {
        self.update_job(
            "UPDATE jobs SET state = 'queued', path = ?2, started_at = NULL, finished_at = NULL,
                    attempts = ?3
             WHERE id = ?1",
            params![id, self.kept(path), attempts as i64],
            "put a job back",
            id,
        )
    }

    /// Starts a settled job over: queued, no attempts, no report, and how far its runs came counts no
    /// more.
    pub fn reset_job(&self, id: i64, path: &Path) -> Result<Job, StoreError> {
        self.update_job(
            "UPDATE jobs SET state = 'queued', path = ?2, attempts = 0, created_at = ?3,
                    started_at = NULL, finished_at = NULL, report = NULL,
                    runs_before = (SELECT coalesce(max(id), 0) FROM runs)
             WHERE id = ?1",
            params![id, self.kept(path), now()],
            "start a job over",
            id,
        )
    }

    /// Records what came of a job.
    pub fn settle(
        &self,
        id: i64,
        state: JobState,
        path: &Path,
        report: &serde_json::Value,
    ) -> Result<Job, StoreError> {
        self.update_job(
            "UPDATE jobs SET state = ?2, path = ?3, report = ?4, finished_at = ?5 WHERE id = ?1",
            params![id, state.as_str(), self.kept(path), report.to_string(), now()],
            "settle a job",
            id,
        )
    }

    /// Notes a report without changing the state, as after an attempt that will be repeated.
    pub fn note_report(&self, id: i64, report: &serde_json::Value) -> Result<(), StoreError> {
        self.connection
            .execute("UPDATE jobs SET report = ?2 WHERE id = ?1", params![id, report.to_string()])
            .doing("note a report")
            .map(drop)
    }

    /// Changes the priority of a queued job.
    pub fn set_priority(&self, id: i64, priority: Priority) -> Result<Job, StoreError> {
        self.update_job(
            "UPDATE jobs SET priority = ?2 WHERE id = ?1",
            params![id, priority.rank()],
            "change a priority",
            id,
        )
    }

    fn update_job(
        &self,
        statement: &str,
        values: impl rusqlite::Params,
        operation: &'static str,
        id: i64,
    ) -> Result<Job, StoreError> {
        self.change_job(statement, values).doing(operation)?.ok_or(StoreError::NoSuchJob { id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        (folder, store)
    }

    fn add(store: &Store, name: &str, priority: Priority) -> Job {
        let path = Path::new("/inbox").join(name);
        store.enqueue(&NewJob { file_name: name, path: &path, size_bytes: 3, priority }).unwrap()
    }

    #[test]
    fn high_goes_before_normal_before_low_and_first_before_second() {
        let (_folder, store) = store();
        for (name, priority) in [
            ("a", Priority::Low),
            ("b", Priority::Normal),
            ("c", Priority::High),
            ("d", Priority::Normal),
            ("e", Priority::High),
        ] {
            add(&store, name, priority);
        }
        let order: Vec<String> =
            store.jobs_in(JobState::Queued).unwrap().into_iter().map(|job| job.file_name).collect();
        assert_eq!(order, ["c", "e", "b", "d", "a"]);
    }

    #[test]
    fn a_file_is_queued_while_somebody_else_writes() {
        let (folder, store) = store();
        let other = Store::open(&store.path).unwrap();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            other.all_or_none(|| {
                other.record_event("kind", None, None, "word", None)?;
                begun.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(200));
                Ok::<_, StoreError>(())
            })
        });
        has_begun.recv().unwrap();
        assert_eq!(add(&store, "a", Priority::Normal).state, JobState::Queued);
        writer.join().unwrap().unwrap();
        drop(folder);
    }

    #[test]
    fn a_job_goes_through_its_states() {
        let (_folder, store) = store();
        let job = add(&store, "a", Priority::Normal);
        let job = store.begin_attempt(job.id, Path::new("/processing/a"), "ff").unwrap();
        assert_eq!((job.state, job.attempts), (JobState::Running, 1));
        let job = store.requeue(job.id, Path::new("/inbox/a"), 1).unwrap();
        assert_eq!((job.state, job.attempts), (JobState::Queued, 1));
        store.begin_attempt(job.id, Path::new("/processing/a"), "ff").unwrap();
        let job = store.requeue(job.id, Path::new("/inbox/a"), 1).unwrap();
        assert_eq!(job.attempts, 1, "the second attempt does not count");
        let report = serde_json::json!({"error": "no"});
        let job = store.settle(job.id, JobState::Failed, Path::new("/failed/a"), &report).unwrap();
        assert_eq!(job.report, Some(report));
        assert!(job.finished_at.is_some());
        let job = store.reset_job(job.id, Path::new("/inbox/a")).unwrap();
        assert_eq!((job.state, job.attempts, job.report), (JobState::Queued, 0, None));
        assert!(matches!(store.job(99), Err(StoreError::NoSuchJob { id: 99 })));
    }

    /// A job, its run and an event are settled together: what cannot be written whole is not there.
    #[test]
    fn changes_are_made_together_or_not_at_all() {
        let (_folder, store) = store();
        let job = add(&store, "a", Priority::Normal);
        store.begin_attempt(job.id, Path::new("/processing/a"), "ff").unwrap();
        let settle = |fails: bool| {
            store.all_or_none(|| {
                store.settle(
                    job.id,
                    JobState::Done,
                    Path::new("/done/a"),
                    &serde_json::json!({}),
                )?;
                if fails { Err(StoreError::NoSuchJob { id: 99 }) } else { Ok(()) }
            })
        };
        assert!(matches!(settle(true), Err(StoreError::NoSuchJob { id: 99 })));
        let unchanged = store.job(job.id).unwrap();
        assert_eq!((unchanged.state, unchanged.finished_at), (JobState::Running, None));
        settle(false).unwrap();
        assert_eq!(store.job(job.id).unwrap().state, JobState::Done);
    }

    #[test]
    fn what_is_over_is_listed_by_an_index() {
        let (_folder, store) = store();
        let plan: Vec<String> = store
            .connection
            .prepare(&format!("EXPLAIN QUERY PLAN SELECT {COLUMNS} FROM jobs {SETTLED}"))
            .unwrap()
            .query_map([10], |row| row.get(3))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(plan.iter().any(|step| step.contains("jobs_by_end")), "{plan:?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
    }
}
