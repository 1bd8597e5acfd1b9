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

const COLUMNS: &str = "id, job_id, attempt, state, started_at, finished_at, plan, error";

impl Run {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let word: String = row.get(3)?;
        let state =
            RunState::ALL.into_iter().find(|state| state.as_str() == word).ok_or_else(|| {
                rusqlite::Error::InvalidColumnType(3, word, rusqlite::types::Type::Text)
            })?;
        let plan: Option<String> = row.get(6)?;
        Ok(Self {
            id: row.get(0)?,
            job_id: row.get(1)?,
            attempt: row.get::<_, i64>(2)? as u64,
            state,
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

    /// Whether the newest run of a job recorded a step that no earlier run of it had reached.
    pub fn last_attempt_made_progress(&self, job_id: i64) -> Result<bool, StoreError> {
        let reached = |condition: &str| {
            self.connection
                .query_row(
                    &format!(
                        "SELECT max(step) FROM metrics WHERE run_id IN
                             (SELECT id FROM runs WHERE job_id = ?1 AND id {condition}
                              (SELECT max(id) FROM runs WHERE job_id = ?1))"
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
}
