//! Events: what happened, in words, for `status` and for whoever looks back.

use rusqlite::{Row, params};
use serde::Serialize;

use super::error::{Doing, StoreError};
use super::{Store, now};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Its number, which also says what came first.
    pub id: i64,
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

/// The columns that [`Event::from_row`] reads, in its order.
pub(super) const COLUMNS: &str = "id, at, job_id, run_id, kind, message, details";

impl Event {
    /// The event whose columns begin at `first`.
    pub(super) fn from_row(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        let details: Option<String> = row.get(first + 6)?;
        Ok(Self {
            id: row.get(first)?,
            at: row.get(first + 1)?,
            job_id: row.get(first + 2)?,
            run_id: row.get(first + 3)?,
            kind: row.get(first + 4)?,
            message: row.get(first + 5)?,
            details: details.and_then(|text| serde_json::from_str(&text).ok()),
        })
    }
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
        self.events_before(i64::MAX, limit)
    }

    /// The last `limit` events before the one with this number, newest first.
    pub fn events_before(&self, id: i64, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.select_events("id < ?1 ORDER BY id DESC", id, limit)
    }

    /// The first `limit` events after the one with this number, oldest first.
    pub fn events_after(&self, id: i64, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.select_events("id > ?1 ORDER BY id", id, limit)
    }

    /// The last `limit` events of one kind, newest first.
    pub fn recent_events_of(&self, kind: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        let doing = "read events of a kind";
        let sql = format!("SELECT {COLUMNS} FROM events WHERE kind = ?1 ORDER BY id DESC LIMIT ?2");
        let mut statement = self.connection.prepare_cached(&sql).doing(doing)?;
        let rows = statement
            .query_map(params![kind, limit as i64], |row| Event::from_row(row, 0))
            .doing(doing)?;
        rows.collect::<Result<_, _>>().doing(doing)
    }

    fn select_events(&self, rest: &str, id: i64, limit: usize) -> Result<Vec<Event>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM events WHERE {rest} LIMIT ?2"))
            .doing("read events")?;
        let rows = statement
            .query_map([id, limit as i64], |row| Event::from_row(row, 0))
            .doing("read events")?;
        rows.collect::<Result<_, _>>().doing("read events")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_either_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        for word in ["a", "b", "c", "d"] {
            store.record_event("kind", None, None, word, None).unwrap();
        }
        let words = |events: Vec<Event>| {
            events.into_iter().map(|event| event.message).collect::<Vec<_>>().concat()
        };
        assert_eq!(words(store.recent_events(3).unwrap()), "dcb");
        let second = store.recent_events(3).unwrap()[2].id;
        assert_eq!(words(store.events_before(second, 9).unwrap()), "a");
        assert_eq!(words(store.events_after(second, 1).unwrap()), "c");
    }
}
