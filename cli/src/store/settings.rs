//! What commands leave for a daemon that is not running.

use rusqlite::{OptionalExtension, params};

use chandler_trainer::Fit;

use super::Store;
use super::error::{Doing, StoreError};

const PAUSED: &str = "paused";
const FIT: &str = "fit";

impl Store {
    /// How steps were cut to fit into memory when a run like this one (the same `key`) last ran out
    /// of it.
    pub fn fit(&self, key: &str) -> Result<Option<Fit>, StoreError> {
        let value: Option<String> = self
            .connection
            .query_row("SELECT value FROM settings WHERE name = ?1", [FIT], |row| row.get(0))
            .optional()
            .doing("read how steps fit into memory")?;
        let known: Option<(String, Fit)> = value.and_then(|text| serde_json::from_str(&text).ok());
        Ok(known.filter(|(of, _)| of == key).map(|(_, fit)| fit))
    }

    /// Notes how steps are cut to fit into memory.
    pub fn set_fit(&self, key: &str, fit: Fit) -> Result<(), StoreError> {
        self.set(FIT, &serde_json::json!([key, fit]).to_string())
            .doing("note how steps fit into memory")
    }

    /// Whether the daemon is to take no steps until told to resume.
    pub fn is_paused(&self) -> Result<bool, StoreError> {
        let value: Option<String> = self
            .connection
            .query_row("SELECT value FROM settings WHERE name = ?1", [PAUSED], |row| row.get(0))
            .optional()
            .doing("read whether the daemon is paused")?;
        Ok(value.as_deref() == Some("true"))
    }

    /// Notes that the daemon is to pause, or to go on; this outlives the daemon.
    pub fn set_paused(&self, paused: bool) -> Result<(), StoreError> {
        self.set(PAUSED, if paused { "true" } else { "false" })
            .doing("note that the daemon is paused")
    }

    fn set(&self, name: &str, value: &str) -> rusqlite::Result<()> {
        let sql = "INSERT INTO settings (name, value) VALUES (?1, ?2)
                   ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.connection.execute(sql, params![name, value]).map(drop)
    }
}
