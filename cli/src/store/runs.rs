//! Runs: attempts at a job, with the configuration they ran under.

use std::fmt;

use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;

use super::error::{Doing, StoreError};
use super::{Store, now};
use crate::config::Config;

/// How a run stands or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It is going on.
    Running,
    /// It came to its end.
    Done,
    /// It ended with an error.
    Failed,
    /// It was asked to stop, left a checkpoint, and goes on next time.
    Stopped,
    /// The user passed the job over.
    Skipped,
    /// The process ended without a word; found at the next start.
    Crashed,
}

impl RunState {
    const ALL: [Self; 6] =
        [Self::Running, Self::Done, Self::Failed, Self::Stopped, Self::Skipped, Self::Crashed];

    /// The word in the database and on the screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Skipped => "skipped",
            Self::Crashed => "crashed",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A run as the database has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Its number.
    pub id: i64,
    /// The job, or nothing for a run outside the queue.
    pub job_id: Option<i64>,
    /// Which attempt at the job it is, from 1.
    pub attempt: u64,
    /// How it stands or ended.
    pub state: RunState,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
    /// The memory plan, as its maker wrote it.
    pub plan: Option<serde_json::Value>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A run in a list, with how far it came.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// Its number.
    pub id: i64,
    /// The job, or nothing for a run outside the queue.
    pub job_id: Option<i64>,
    /// The name the user gave the job's file.
    pub file_name: Option<String>,
    /// Which attempt at the job it is, from 1.
    pub attempt: u64,
    /// How it stands or ended.
    pub state: RunState,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Its last step.
    pub last_step: Option<u64>,
    /// The loss of that step.
    pub last_loss: Option<f64>,
}

impl RunSummary {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            job_id: row.get(1)?,
            file_name: row.get(2)?,
            attempt: row.get::<_, i64>(3)? as u64,
            state: state_in(row, 4)?,
            started_at: row.get(5)?,
            finished_at: row.get(6)?,
            error: row.get(7)?,
            last_step: row.get::<_, Option<i64>>(8)?.map(|step| step as u64),
            last_loss: row.get(9)?,
        })
    }
}

fn state_in(row: &Row<'_>, column: usize) -> rusqlite::Result<RunState> {
    let word: String = row.get(column)?;
    RunState::ALL.into_iter().find(|state| state.as_str() == word).ok_or_else(|| {
        rusqlite::Error::InvalidColumnType(column, word, rusqlite::types::Type::Text)
    })
}

const COLUMNS: &str = "id, job_id, attempt, state, started_at, finished_at, plan, error";

impl Run {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let plan: Option<String> = row.get(6)?;
        Ok(Self {
            id: row.get(0)?,
            job_id: row.get(1)?,
            attempt: row.get::<_, i64>(2)? as u64,
            state: state_in(row, 3)?,
            started_at: row.get(4)?,
            finished_at: row.get(5)?,
            plan: plan.and_then(|text| serde_json::from_str(&text).ok()),
            error: row.get(7)?,
        })
    }
}

impl Store {
    /// Records that a run begins, with the whole configuration it runs under.
    pub fn begin_run(
        &self,
        job_id: Option<i64>,
        attempt: u64,
        config: &Config,
    ) -> Result<i64, StoreError> {
        let config = serde_json::to_string(config).doing("write a configuration")?;
        self.connection
            .execute(
                "INSERT INTO runs (job_id, attempt, state, started_at, config)
                 VALUES (?1, ?2, 'running', ?3, ?4)",
                params![job_id, attempt as i64, now(), config],
            )
            .doing("begin a run")?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Keeps the plan of a run beside it.
    pub fn set_run_plan(&self, run_id: i64, plan: &serde_json::Value) -> Result<(), StoreError> {
        self.connection
            .execute("UPDATE runs SET plan = ?2 WHERE id = ?1", params![run_id, plan.to_string()])
            .doing("write a plan")
            .map(drop)
    }

    /// Records how a run ended.
    pub fn end_run(
        &self,
        run_id: i64,
        state: RunState,
        error: Option<&str>,
    ) -> Result<(), StoreError> {
        self.connection
            .execute(
                "UPDATE runs SET state = ?2, error = ?3, finished_at = ?4 WHERE id = ?1",
                params![run_id, state.as_str(), error, now()],
            )
            .doing("end a run")
            .map(drop)
    }

    /// Marks the runs that a dead process left behind, and says how many there were.
    pub fn mark_crashed_runs(&self) -> Result<usize, StoreError> {
        self.connection
            .execute(
                "UPDATE runs SET state = 'crashed', finished_at = ?1 WHERE state = 'running'",
                [now()],
            )
            .doing("mark crashed runs")
    }

    /// The run with this number.
    pub fn run(&self, run_id: i64) -> Result<Option<Run>, StoreError> {
        self.connection
            .query_row(
                &format!("SELECT {COLUMNS} FROM runs WHERE id = ?1"),
                [run_id],
                Run::from_row,
            )
            .optional()
            .doing("read a run")
    }

    /// The newest run of all.
    pub fn newest_run(&self) -> Result<Option<i64>, StoreError> {
        self.connection
            .query_row("SELECT max(id) FROM runs", [], |row| row.get(0))
            .doing("read the newest run")
    }

    /// The first run after the one with this number.
    pub fn run_after(&self, run_id: i64) -> Result<Option<i64>, StoreError> {
        self.connection
            .query_row("SELECT min(id) FROM runs WHERE id > ?1", [run_id], |row| row.get(0))
            .doing("read the next run")
    }

    /// The last `limit` runs before the one with this number, newest first; of one job where
    /// `job_id` says so.
    pub fn run_summaries(
        &self,
        before: i64,
        limit: usize,
        job_id: Option<i64>,
    ) -> Result<Vec<RunSummary>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT r.id, r.job_id, j.file_name, r.attempt, r.state, r.started_at,
                        r.finished_at, r.error, m.step, m.loss
                 FROM runs r
                 LEFT JOIN jobs j ON j.id = r.job_id
                 LEFT JOIN metrics m ON m.run_id = r.id
                      AND m.step = (SELECT max(step) FROM metrics WHERE run_id = r.id)
                 WHERE r.id < ?1 AND (?3 IS NULL OR r.job_id = ?3)
                 ORDER BY r.id DESC LIMIT ?2",
            )
            .doing("list the runs")?;
        let rows = statement
            .query_map(params![before, limit as i64, job_id], RunSummary::from_row)
            .doing("list the runs")?;
        rows.collect::<Result<_, _>>().doing("list the runs")
    }

    /// The newest run of a job.
    pub fn last_run_of(&self, job_id: i64) -> Result<Option<Run>, StoreError> {
        self.connection
            .query_row(
                &format!("SELECT {COLUMNS} FROM runs WHERE job_id = ?1 ORDER BY id DESC LIMIT 1"),
                [job_id],
                Run::from_row,
            )
            .optional()
            .doing("read a run")
    }

    /// Whether the newest run of a job recorded a step that no earlier run of it had reached, since
    /// the job was last started over.
    pub fn last_attempt_made_progress(&self, job_id: i64) -> Result<bool, StoreError> {
        let reached = |condition: &str| {
            self.connection
                .query_row(
                    &format!(
                        "SELECT max(step) FROM metrics WHERE run_id IN
                             (SELECT id FROM runs WHERE job_id = ?1 AND id {condition}
                              (SELECT max(id) FROM runs WHERE job_id = ?1)
                              AND id > (SELECT runs_before FROM jobs WHERE id = ?1))"
                    ),
                    [job_id],
                    |row| row.get::<_, Option<i64>>(0),
                )
                .doing("read how far a run came")
        };
        Ok(reached("=")?.unwrap_or(0) > reached("<")?.unwrap_or(0))
    }

    /// The configuration that a run ran under, as it was written then.
    pub fn run_config(&self, run_id: i64) -> Result<Option<serde_json::Value>, StoreError> {
        let text: Option<String> = self
            .connection
            .query_row("SELECT config FROM runs WHERE id = ?1", [run_id], |row| row.get(0))
            .optional()
            .doing("read a run's configuration")?;
        text.map(|text| serde_json::from_str(&text).doing("read a run's configuration")).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewJob, StepRow};

    #[test]
    fn a_run_left_behind_is_marked() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let first = store.begin_run(None, 1, &Config::default()).unwrap();
        store.end_run(first, RunState::Done, None).unwrap();
        let second = store.begin_run(None, 2, &Config::default()).unwrap();
        assert_eq!(store.mark_crashed_runs().unwrap(), 1);
        let config = store.run_config(second).unwrap().unwrap();
        assert_eq!(config["train"]["seed"], 42);
    }

    #[test]
    fn progress_is_counted_from_where_a_job_was_started_over() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let path = folder.path().join("a.jsonl");
        let priority = crate::priority::Priority::Normal;
        let new = NewJob { file_name: "a.jsonl", path: &path, size_bytes: 2, priority };
        let job = store.enqueue(&new).unwrap().id;
        let attempt = |step: u64| {
            let run = store.begin_run(Some(job), 1, &Config::default()).unwrap();
            store.record_step(run, &StepRow { step, ..StepRow::default() }).unwrap();
            store.last_attempt_made_progress(job).unwrap()
        };
        assert_eq!([attempt(5), attempt(5), attempt(6)], [true, false, true]);
        store.reset_job(job, &path).unwrap();
        assert_eq!([attempt(1), attempt(1), attempt(2)], [true, false, true]);
    }
}
