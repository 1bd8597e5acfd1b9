//! What commands leave for a daemon that is not running.

use rusqlite::{OptionalExtension, params};

use super::Store;
use super::error::{Doing, StoreError};

const PAUSED: &str = "paused";

impl Store {
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
        self.connection
            .execute(
                "INSERT INTO settings (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                params![PAUSED, if paused { "true" } else { "false" }],
            )
            .doing("note that the daemon is paused")
            .map(drop)
    }
}
