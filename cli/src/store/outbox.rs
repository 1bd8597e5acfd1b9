//! The outbox: what webhooks have yet to be told.
//!
//! Events are the source: a position says up to which event webhooks have been thought of, and moves
//! in one transaction with the rows that this makes. So a process that is killed at any moment loses
//! no event and makes no row twice.

use rusqlite::{OptionalExtension, params};

use super::Store;
use super::error::{Doing, StoreError};
use super::events::{COLUMNS, Event};

/// The name in `settings` of the last event that webhooks were thought of.
const POSITION: &str = "outbox";
/// No parcel waits longer for its next turn, in milliseconds.
pub const LONGEST_WAIT_MS: i64 = 24 * 3600 * 1000;
/// Events that are looked at in one transaction.
const AT_ONCE: usize = 200;

/// Something that one webhook is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Parcel {
    /// Its number.
    pub id: i64,
    /// The same each time it is sent: what the receiver knows repeats by.
    pub key: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// How often sending it failed.
    pub failures: u32,
    /// What it is about.
    pub event: Event,
}

impl Store {
    /// Where nothing was ever sent, begins with what happens from now on.
    pub fn begin_outbox(&self) -> Result<(), StoreError> {
        self.connection
            .execute(
                "INSERT OR IGNORE INTO settings (name, value)
                 VALUES (?1, (SELECT CAST(ifnull(max(id), 0) AS TEXT) FROM events))",
                [POSITION],
            )
            .doing("begin the outbox")
            .map(drop)
    }

    /// Looks at the next events and makes a parcel of each for every webhook that `hooks` names;
    /// returns the events, of which there may be more.
    pub fn fill_outbox(
        &mut self,
        now_ms: i64,
        hooks: &dyn Fn(&Event) -> Vec<String>,
    ) -> Result<Vec<Event>, StoreError> {
        let doing = "fill the outbox";
        let position: Option<String> = self
            .connection
            .query_row("SELECT value FROM settings WHERE name = ?1", [POSITION], |row| row.get(0))
            .optional()
            .doing(doing)?;
        let position = position.and_then(|text| text.parse().ok()).unwrap_or(0);
        let events = self.events_after(position, AT_ONCE)?;
        let Some(last) = events.last() else { return Ok(events) };
        let transaction = self.connection.transaction().doing(doing)?;
        for event in &events {
            for hook in hooks(event) {
                transaction
                    .execute(
                        "INSERT OR IGNORE INTO outbox (key, hook, event_id, created_ms, next_ms)
                         VALUES (lower(hex(randomblob(16))), ?1, ?2, ?3, ?3)",
                        params![hook, event.id, now_ms],
                    )
                    .doing(doing)?;
            }
        }
        transaction
            .execute(
                "UPDATE settings SET value = ?2 WHERE name = ?1",
                params![POSITION, last.id.to_string()],
            )
            .doing(doing)?;
        transaction.commit().doing(doing)?;
        Ok(events)
    }

    /// The first `limit` parcels for a webhook whose time has come, oldest first. So has that of one
    /// which is to wait for longer than any does: the clock was ahead when it was put off.
    pub fn due_parcels(
        &self,
        hook: &str,
        now_ms: i64,
        limit: usize,
    ) -> Result<Vec<Parcel>, StoreError> {
        let doing = "read the outbox";
        let columns = COLUMNS.split(", ").map(|column| format!("events.{column}"));
        let sql = format!(
            "SELECT outbox.id, key, created_ms, failures, {}
             FROM outbox JOIN events ON events.id = event_id
             WHERE hook = ?1 AND (next_ms <= ?2 OR next_ms > ?2 + {LONGEST_WAIT_MS})
             ORDER BY outbox.id LIMIT ?3",
            columns.collect::<Vec<_>>().join(", ")
        );
        let mut statement = self.connection.prepare_cached(&sql).doing(doing)?;
        let rows = statement
            .query_map(params![hook, now_ms, limit as i64], |row| {
                Ok(Parcel {
                    id: row.get(0)?,
                    key: row.get(1)?,
                    created_ms: row.get(2)?,
                    failures: row.get(3)?,
                    event: Event::from_row(row, 4)?,
                })
            })
            .doing(doing)?;
        rows.collect::<Result<_, _>>().doing(doing)
    }

    /// How many parcels wait, whether or not their time has come.
    pub fn waiting_parcels(&self) -> Result<u64, StoreError> {
        self.connection
            .query_row("SELECT count(*) FROM outbox", [], |row| row.get::<_, i64>(0))
            .doing("count the outbox")
            .map(|count| count as u64)
    }

    /// Notes that a parcel failed once more and is not to be tried before `next_ms`.
    pub fn postpone_parcel(&self, id: i64, next_ms: i64) -> Result<(), StoreError> {
        self.connection
            .execute(
                "UPDATE outbox SET failures = failures + 1, next_ms = ?2 WHERE id = ?1",
                [id, next_ms],
            )
            .doing("postpone a parcel")
            .map(drop)
    }

    /// Notes that nothing for a webhook is to be tried before `next_ms`.
    pub fn postpone_hook(&self, hook: &str, next_ms: i64) -> Result<(), StoreError> {
        self.connection
            .execute(
                "UPDATE outbox SET next_ms = ?2 WHERE hook = ?1 AND next_ms < ?2",
                params![hook, next_ms],
            )
            .doing("postpone a webhook")
            .map(drop)
    }

    /// Forgets a parcel: it was delivered, or never will be.
    pub fn forget_parcel(&self, id: i64) -> Result<(), StoreError> {
        self.connection
            .execute("DELETE FROM outbox WHERE id = ?1", [id])
            .doing("forget a parcel")
            .map(drop)
    }

    /// Forgets what is for webhooks other than these, and says how much that was.
    pub fn forget_other_hooks(&self, hooks: &[String]) -> Result<usize, StoreError> {
        let known = serde_json::json!(hooks).to_string();
        self.connection
            .execute(
                "DELETE FROM outbox WHERE hook NOT IN (SELECT value FROM json_each(?1))",
                [known],
            )
            .doing("forget webhooks that are gone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        (folder, store)
    }

    fn happen(store: &Store, words: &[&str]) {
        for word in words {
            store.record_event("kind", None, None, word, None).unwrap();
        }
    }

    fn both(event: &Event) -> Vec<String> {
        let hooks = if event.message == "b" { vec!["one"] } else { vec!["one", "two"] };
        hooks.into_iter().map(str::to_owned).collect()
    }

    fn messages(store: &Store, hook: &str, now_ms: i64) -> String {
        let due = store.due_parcels(hook, now_ms, 9).unwrap();
        due.into_iter().map(|parcel| parcel.event.message).collect()
    }

    #[test]
    fn each_event_is_put_in_once_and_history_never() {
        let (_folder, mut store) = open();
        happen(&store, &["before"]);
        store.begin_outbox().unwrap();
        happen(&store, &["a", "b"]);
        store.begin_outbox().unwrap();
        assert_eq!(store.fill_outbox(5, &both).unwrap().len(), 2);
        assert_eq!(store.fill_outbox(6, &both).unwrap(), []);
        happen(&store, &["c"]);
        assert_eq!(store.fill_outbox(7, &both).unwrap().len(), 1);
        assert_eq!(
            (messages(&store, "one", 7), messages(&store, "two", 7)),
            ("abc".into(), "ac".into())
        );
        assert_eq!(messages(&store, "one", 6), "ab", "its time has not come");
        store.postpone_hook("two", LONGEST_WAIT_MS + 9).unwrap();
        let of_two = |now_ms| messages(&store, "two", now_ms);
        assert_eq!((of_two(9), of_two(8)), (String::new(), "ac".into()), "the clock was set back");
        let keys: std::collections::BTreeSet<_> =
            store.due_parcels("one", 9, 9).unwrap().into_iter().map(|parcel| parcel.key).collect();
        assert_eq!(keys.len(), 3);
        assert!(keys.iter().all(|key| key.len() == 32));
    }

    #[test]
    fn a_fill_that_is_cut_off_is_done_again_whole() {
        let (_folder, mut store) = open();
        store.begin_outbox().unwrap();
        happen(&store, &["a", "b"]);
        let cut_off = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            store.fill_outbox(1, &|event| {
                assert!(event.message != "b", "the process ends here");
                both(event)
            })
        }));
        assert!(cut_off.is_err());
        assert_eq!(store.waiting_parcels().unwrap(), 0, "nothing by halves");
        store.fill_outbox(1, &both).unwrap();
        assert_eq!(messages(&store, "one", 1), "ab");
    }

    #[test]
    fn parcels_are_postponed_and_forgotten() {
        let (_folder, mut store) = open();
        store.begin_outbox().unwrap();
        happen(&store, &["a", "c"]);
        store.fill_outbox(1, &both).unwrap();
        let first = store.due_parcels("one", 1, 1).unwrap().remove(0);
        store.postpone_parcel(first.id, 100).unwrap();
        assert_eq!(messages(&store, "one", 99), "c");
        let again = store.due_parcels("one", 100, 1).unwrap().remove(0);
        assert_eq!((again.failures, &again.key), (1, &first.key), "the key stays");
        store.postpone_hook("one", 200).unwrap();
        assert_eq!(
            (messages(&store, "one", 199), messages(&store, "two", 1)),
            (String::new(), "ac".into())
        );
        store.forget_parcel(first.id).unwrap();
        assert_eq!(messages(&store, "one", 200), "c");
        assert_eq!(store.forget_other_hooks(&["two".to_owned()]).unwrap(), 1);
        assert_eq!(store.waiting_parcels().unwrap(), 2);
    }
}
