//! Metrics of steps.

use std::collections::BTreeMap;

use chandler_trainer::LayerNorms;
use chandler_vram::Category;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::Store;
use super::error::{Doing, StoreError};

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepRow {
    /// The step, from 1.
    pub step: u64,
    /// Loss over the trained tokens of the global batch.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The learning rate used.
    pub lr: f64,
    /// Tokens seen up to and including this step.
    pub num_tokens: u64,
    /// Part of the trained tokens that were the most probable ones.
    pub mean_token_accuracy: Option<f64>,
    /// Tokens a second.
    pub tokens_per_s: Option<f64>,
    /// Most memory in use so far, in bytes.
    pub peak_bytes: Option<u64>,
    /// Most bytes of each category since the step before, evaluations between included.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub memory: BTreeMap<Category, u64>,
    /// What each layer measured, in the model's order; empty where the step was not one to look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerNorms>,
}

impl Store {
    /// Records a step; a step that is trained again after a crash replaces its row.
    pub fn record_step(&self, run_id: i64, row: &StepRow) -> Result<(), StoreError> {
        if row.layers.is_empty() {
            return self.record_metrics(run_id, row);
        }
        self.all_or_none(|| {
            self.record_metrics(run_id, row)?;
            self.record_layers(run_id, row.step, &row.layers)
        })
    }

    fn record_metrics(&self, run_id: i64, row: &StepRow) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO metrics (run_id, step, loss, grad_norm, lr, num_tokens,
                     mean_token_accuracy, tokens_per_s, peak_bytes, memory)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )
            .and_then(|mut statement| {
                statement.execute(params![
                    run_id,
                    row.step as i64,
                    row.loss,
                    row.grad_norm,
                    row.lr,
                    row.num_tokens as i64,
                    row.mean_token_accuracy,
                    row.tokens_per_s,
                    row.peak_bytes.map(|bytes| bytes as i64),
                    (!row.memory.is_empty()).then(|| serde_json::json!(row.memory).to_string()),
                ])
            })
            .doing("record a step")
            .map(drop)
    }

    /// The steps of a run, in order, without their layers.
    pub fn steps(&self, run_id: i64) -> Result<Vec<StepRow>, StoreError> {
        self.steps_after(run_id, 0, i64::MAX as usize)
    }

    /// The first `limit` steps of a run after `step`, in order, without their layers: see
    /// [`steps_with_layers`](Self::steps_with_layers).
    pub fn steps_after(
        &self,
        run_id: i64,
        step: u64,
        limit: usize,
    ) -> Result<Vec<StepRow>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT step, loss, grad_norm, lr, num_tokens, mean_token_accuracy, tokens_per_s,
                        peak_bytes, memory
                 FROM metrics WHERE run_id = ?1 AND step > ?2 ORDER BY step LIMIT ?3",
            )
            .doing("read steps")?;
        let rows = statement
            .query_map(params![run_id, step as i64, limit as i64], |row| {
                Ok(StepRow {
                    step: row.get::<_, i64>(0)? as u64,
                    loss: row.get(1)?,
                    grad_norm: row.get(2)?,
                    lr: row.get(3)?,
                    num_tokens: row.get::<_, i64>(4)? as u64,
                    mean_token_accuracy: row.get(5)?,
                    tokens_per_s: row.get(6)?,
                    peak_bytes: row.get::<_, Option<i64>>(7)?.map(|bytes| bytes as u64),
                    memory: row
                        .get::<_, Option<String>>(8)?
                        .and_then(|text| serde_json::from_str(&text).ok())
                        .unwrap_or_default(),
                    layers: vec![],
                })
            })
            .doing("read steps")?;
        rows.collect::<Result<_, _>>().doing("read steps")
    }

    /// The last step of a run.
    pub fn last_step(&self, run_id: i64) -> Result<Option<u64>, StoreError> {
        self.connection
            .query_row("SELECT max(step) FROM metrics WHERE run_id = ?1", [run_id], |row| {
                row.get::<_, Option<i64>>(0)
            })
            .doing("read the last step")
            .map(|step| step.map(|step| step as u64))
    }

    /// Tokens a second of the newest step of any run.
    pub fn newest_speed(&self) -> Result<Option<f64>, StoreError> {
        self.connection
            .query_row(
                "SELECT tokens_per_s FROM metrics WHERE tokens_per_s IS NOT NULL
                 ORDER BY run_id DESC, step DESC LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()
            .doing("read the newest speed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn steps_come_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        let mut row = StepRow {
            step: 2,
            loss: 0.1 + 0.2,
            grad_norm: 1.0,
            lr: 2e-5,
            num_tokens: 10,
            mean_token_accuracy: None,
            tokens_per_s: Some(5.0),
            peak_bytes: None,
            memory: [(Category::Weights, 7), (Category::KvCache, 1 << 40)].into_iter().collect(),
            layers: vec![],
        };
        store.record_step(run, &row).unwrap();
        row.loss = 0.25;
        store.record_step(run, &row).unwrap();
        let first = StepRow { step: 1, ..row.clone() };
        store.record_step(run, &first).unwrap();
        assert_eq!(store.steps(run).unwrap(), [first, row]);
    }
}
