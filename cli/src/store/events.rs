//! Events: what happened, in words, for `status` and for whoever looks back.

use rusqlite::params;
use serde::Serialize;

use super::error::{Doing, StoreError};
use super::{Store, now};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// When.
    pub at: String,
    /// To which job.
    pub job_id: Option<i64>,
    /// In which run.
    pub run_id: Option<i64>,
    /// Which kind of thing, such as `claimed` or `attempt_failed`.
    pub kind: String,
    /// What, in a sentence.
    pub message: String,
    /// More, for machines.
    pub details: Option<serde_json::Value>,
}

impl Store {
    /// Records an event, stamped now.
    pub fn record_event(
        &self,
        kind: &str,
        job_id: Option<i64>,
        run_id: Option<i64>,
        message: &str,
        details: Option<&serde_json::Value>,
    ) -> Result<(), StoreError> {
        self.connection
            .execute(
                "INSERT INTO events (at, job_id, run_id, kind, message, details)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![now(), job_id, run_id, kind, message, details.map(ToString::to_string)],
            )
            .doing("record an event")
            .map(drop)
    }

    /// The last `limit` events, newest first.
    pub fn recent_events(&self, limit: usize) -> Result<Vec<Event>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT at, job_id, run_id, kind, message, details
                 FROM events ORDER BY id DESC LIMIT ?1",
            )
            .doing("read events")?;
        let rows = statement
            .query_map([limit as i64], |row| {
                let details: Option<String> = row.get(5)?;
                Ok(Event {
                    at: row.get(0)?,
                    job_id: row.get(1)?,
                    run_id: row.get(2)?,
                    kind: row.get(3)?,
                    message: row.get(4)?,
                    details: details.and_then(|text| serde_json::from_str(&text).ok()),
                })
            })
            .doing("read events")?;
        rows.collect::<Result<_, _>>().doing("read events")
    }
}
