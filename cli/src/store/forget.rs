//! What is deleted when it is old: rows of runs that are over, and events.
//!
//! Jobs and runs themselves stay, and so do evaluations with their scores: later runs are compared
//! with them.

use rusqlite::params;

use super::Store;
use super::error::{Doing, StoreError};

/// The tables that grow with steps and answers.
const TABLES: [&str; 4] = ["metrics", "curves", "layers", "answers"];

/// How much was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Runs whose steps and answers went.
    pub runs: usize,
    /// Events that went.
    pub events: usize,
}

impl Store {
    /// Deletes the steps and answers of runs that ended before a moment, unless their job may go on,
    /// and the events from before it that no webhook has yet to be told. A run at a time: whoever
    /// else writes need not wait long.
    pub fn forget_before(&self, moment: jiff::Timestamp) -> Result<Forgotten, StoreError> {
        let moment = moment.to_string();
        let mut forgotten = Forgotten::default();
        for run in self.runs_to_forget(&moment)? {
            self.all_or_none(|| {
                for table in TABLES {
                    self.connection
                        .execute(&format!("DELETE FROM {table} WHERE run_id = ?1"), [run])
                        .doing("delete what is old")?;
                }
                Ok::<_, StoreError>(())
            })?;
            forgotten.runs += 1;
        }
        // Events are in the order of their numbers: from the first newer one on, all stay.
        forgotten.events = self
            .connection
            .execute(
                "DELETE FROM events
                 WHERE id < coalesce((SELECT id FROM events WHERE at >= ?1 ORDER BY id LIMIT 1),
                                     (SELECT max(id) + 1 FROM events))
                   AND id NOT IN (SELECT event_id FROM outbox)",
                params![moment],
            )
            .doing("delete what is old")?;
        Ok(forgotten)
    }

    fn runs_to_forget(&self, moment: &str) -> Result<Vec<i64>, StoreError> {
        let list = || {
            let mut statement = self.connection.prepare(
                "SELECT id FROM runs
                 WHERE finished_at < ?1
                   AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = runs.job_id
                                   AND jobs.state IN ('queued', 'running'))
                   AND (EXISTS (SELECT 1 FROM metrics WHERE run_id = runs.id)
                        OR EXISTS (SELECT 1 FROM answers WHERE run_id = runs.id))",
            )?;
            let runs = statement.query_map([moment], |row| row.get(0))?;
            runs.collect::<Result<Vec<i64>, rusqlite::Error>>()
        };
        list().doing("look for what is old")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chandler_trainer::LayerNorms;

    use super::*;
    use crate::config::Config;
    use crate::priority::Priority;
    use crate::store::{JobState, NewJob, RunState, StepRow};

    #[test]
    fn what_is_over_and_old_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let job = |name: &str| {
            let (path, priority) = (folder.path().join(name), Priority::Normal);
            let new = NewJob { file_name: name, path: &path, size_bytes: 1, priority };
            store.enqueue(&new).unwrap().id
        };
        let run = |job: i64, finished: &str| {
            let run = store.begin_run(Some(job), 1, &Config::default()).unwrap();
            let layers = vec![LayerNorms {
                layer: "norm".into(),
                grad_norm: 1.0,
                update_norm: None,
                weight_norm: None,
            }];
            for step in 1..=40 {
                let row = StepRow { step, layers: layers.clone(), ..StepRow::default() };
                store.record_step(run, &row).unwrap();
            }
            store.end_run(run, RunState::Done, None).unwrap();
            let change = "UPDATE runs SET finished_at = ?2 WHERE id = ?1";
            store.connection.execute(change, params![run, finished]).unwrap();
            run
        };
        let (over, waits) = (job("over"), job("waits"));
        store.settle(over, JobState::Done, Path::new("/done/x"), &serde_json::json!({})).unwrap();
        let old = run(over, "2026-01-01T00:00:00Z");
        let new = run(over, "2026-03-01T00:00:00Z");
        let goes_on = run(waits, "2026-01-01T00:00:00Z");
        for at in ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-03-01T00:00:00Z"] {
            store.record_event("done", None, None, at, None).unwrap();
            let change = "UPDATE events SET at = ?1 WHERE message = ?1";
            store.connection.execute(change, [at]).unwrap();
        }
        let moment = "2026-02-01T00:00:00Z".parse().unwrap();
        let forgotten = store.forget_before(moment).unwrap();
        assert_eq!(forgotten, Forgotten { runs: 1, events: 2 });
        let steps = |run| store.steps(run).unwrap().len();
        assert_eq!([steps(old), steps(new), steps(goes_on)], [0, 40, 40]);
        let left = |table: &str| -> i64 {
            let count = format!("SELECT count(*) FROM {table}");
            store.connection.query_row(&count, [], |row| row.get(0)).unwrap()
        };
        let counts = ["curves", "layers", "runs", "events"].map(left);
        assert_eq!(counts, [2, 80, 3, 1]);
        assert_eq!(store.forget_before(moment).unwrap(), Forgotten::default());
    }
}
