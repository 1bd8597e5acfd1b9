//! The course of a run in as few points as a chart has, whatever its length.

use std::collections::BTreeMap;

use chandler_vram::Category;
use rusqlite::{Row, params};

use super::Store;
use super::error::{Doing, StoreError};

/// What a curve has for each bucket of steps, in the order of [`Bucket::series`].
pub const SERIES: [&str; 5] = ["loss", "grad_norm", "lr", "mean_token_accuracy", "tokens_per_s"];

/// Widths of the buckets that the database keeps, the widest first; see the schema.
const KEPT_WIDTHS: [u64; 2] = [1024, 32];

/// The smallest, mean and largest value in a bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The smallest.
    pub min: f64,
    /// The mean over the steps.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

/// Some steps in a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// The first of its steps.
    pub first_step: u64,
    /// The last of them.
    pub last_step: u64,
    /// How many there are.
    pub count: u64,
    /// Tokens seen up to and including the last.
    pub num_tokens: u64,
    /// Most memory in use, in bytes.
    pub peak_bytes: Option<u64>,
    /// One of each of [`SERIES`], where it is known.
    pub series: [Option<Span>; SERIES.len()],
    /// Most bytes of each category.
    pub memory: BTreeMap<Category, u64>,
}

/// A stretch of a run in buckets of equal width.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Steps in a bucket, but for the last one, which has those that there are.
    pub bucket_steps: u64,
    /// The buckets, in order.
    pub buckets: Vec<Bucket>,
}

impl Store {
    /// The steps `from..=to` of a run in at most `points` buckets whose extremes are those of their
    /// steps. Buckets have a power of two of steps and begin at a multiple of it, so that a first
    /// one may begin before `from`, and a last one end after `to`.
    pub fn curve(
        &self,
        run_id: i64,
        from: u64,
        to: u64,
        points: usize,
    ) -> Result<Curve, StoreError> {
        let (from, to) = (from.clamp(1, i64::MAX as u64), to.min(i64::MAX as u64));
        let Some((low, high)) = self.steps_within(run_id, from, to)? else {
            return Ok(Curve { bucket_steps: 1, buckets: Vec::new() });
        };
        let width = width_for(low, high, points.max(1) as u64);
        let first = (low - 1) / width * width + 1;
        let last = high.div_ceil(width) * width;
        let mut curve = Curve { bucket_steps: width, buckets: Vec::new() };
        let mut next = first;
        for kept in KEPT_WIDTHS.into_iter().filter(|kept| *kept <= width) {
            for bucket in self.kept_buckets(run_id, kept, next, last)? {
                next = (bucket.last_step - 1) / kept * kept + kept + 1;
                curve.add(bucket);
            }
        }
        for bucket in self.single_steps(run_id, next, last)? {
            curve.add(bucket);
        }
        Ok(curve)
    }

    /// The first and the last step that there are in `from..=to`.
    fn steps_within(
        &self,
        run_id: i64,
        from: u64,
        to: u64,
    ) -> Result<Option<(u64, u64)>, StoreError> {
        // Two queries: of one with both, SQLite makes a scan.
        let end = |which: &str| {
            let sql = format!(
                "SELECT {which}(step) FROM metrics WHERE run_id = ?1 AND step BETWEEN ?2 AND ?3"
            );
            self.connection
                .query_row(&sql, params![run_id, from as i64, to as i64], |row| {
                    row.get::<_, Option<i64>>(0)
                })
                .doing("read how long a run is")
        };
        Ok(end("min")?.zip(end("max")?).map(|(low, high)| (low as u64, high as u64)))
    }

    fn kept_buckets(
        &self,
        run_id: i64,
        width: u64,
        from: u64,
        to: u64,
    ) -> Result<Vec<Bucket>, StoreError> {
        self.buckets(
            "SELECT first_step, last_step, count, num_tokens, peak_bytes,
                    loss_min, loss_mean, loss_max, grad_norm_min, grad_norm_mean, grad_norm_max,
                    lr_min, lr_mean, lr_max, accuracy_min, accuracy_mean, accuracy_max,
                    speed_min, speed_mean, speed_max, memory
             FROM curves WHERE run_id = ?1 AND width = ?2 AND bucket >= ?3 AND bucket < ?4
             ORDER BY bucket",
            params![run_id, width as i64, ((from - 1).div_ceil(width)) as i64, (to / width) as i64],
        )
    }

    fn single_steps(&self, run_id: i64, from: u64, to: u64) -> Result<Vec<Bucket>, StoreError> {
        self.buckets(
            "SELECT step, step, 1, num_tokens, peak_bytes, loss, loss, loss,
                    grad_norm, grad_norm, grad_norm, lr, lr, lr,
                    mean_token_accuracy, mean_token_accuracy, mean_token_accuracy,
                    tokens_per_s, tokens_per_s, tokens_per_s, memory
             FROM metrics WHERE run_id = ?1 AND step BETWEEN ?2 AND ?3 ORDER BY step",
            params![run_id, from as i64, to as i64],
        )
    }

    fn buckets(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<Bucket>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql).doing("read a curve")?;
        let rows = statement.query_map(values, Bucket::from_row).doing("read a curve")?;
        rows.collect::<Result<_, _>>().doing("read a curve")
    }
}

/// The smallest power of two that makes no more than `points` buckets of `low..=high`.
pub(super) fn width_for(low: u64, high: u64, points: u64) -> u64 {
    let mut width = 1;
    while (high - 1) / width - (low - 1) / width + 1 > points {
        width *= 2;
    }
    width
}

impl Bucket {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let whole = |column: usize| row.get::<_, i64>(column).map(|value| value as u64);
        let mut series = [None; SERIES.len()];
        for (turn, span) in series.iter_mut().enumerate() {
            let column = 5 + 3 * turn;
            let value = |offset: usize| row.get::<_, Option<f64>>(column + offset);
            *span = match (value(0)?, value(1)?, value(2)?) {
                (Some(min), Some(mean), Some(max)) => Some(Span { min, mean, max }),
                _ => None,
            };
        }
        Ok(Self {
            first_step: whole(0)?,
            last_step: whole(1)?,
            count: whole(2)?,
            num_tokens: whole(3)?,
            peak_bytes: row.get::<_, Option<i64>>(4)?.map(|bytes| bytes as u64),
            series,
            memory: row
                .get::<_, Option<String>>(20)?
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
        })
    }

    /// Takes in the steps that come next.
    fn merge(&mut self, next: Self) {
        let (ours, theirs) = (self.count as f64, next.count as f64);
        for (span, next) in self.series.iter_mut().zip(next.series) {
            *span = match (*span, next) {
                (Some(span), Some(next)) => Some(Span {
                    min: span.min.min(next.min),
                    mean: (span.mean * ours + next.mean * theirs) / (ours + theirs),
                    max: span.max.max(next.max),
                }),
                (span, next) => span.or(next),
            };
        }
        self.count += next.count;
        self.last_step = next.last_step;
        self.num_tokens = next.num_tokens;
        self.peak_bytes = self.peak_bytes.max(next.peak_bytes);
        for (category, bytes) in next.memory {
            let most = self.memory.entry(category).or_default();
            *most = bytes.max(*most);
        }
    }
}

impl Curve {
    /// Puts a bucket that is no wider than ours where it belongs; they come in order.
    fn add(&mut self, bucket: Bucket) {
        let place = |bucket: &Bucket| (bucket.last_step - 1) / self.bucket_steps;
        match self.buckets.last_mut() {
            Some(last) if place(last) == place(&bucket) => last.merge(bucket),
            _ => self.buckets.push(bucket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::StepRow;

    /// A value that goes up and down, with one spike.
    fn loss(step: u64) -> f64 {
        if step == 1777 { 99.0 } else { 2.0 + (step * 7919 % 1000) as f64 / 1000.0 }
    }

    fn row(step: u64) -> StepRow {
        StepRow {
            step,
            loss: loss(step),
            grad_norm: 1.0,
            lr: 1e-4 / step as f64,
            num_tokens: step * 100,
            mean_token_accuracy: (step > 100).then_some(0.5),
            tokens_per_s: Some(step as f64),
            peak_bytes: Some(step),
            memory: [(Category::Weights, 5), (Category::KvCache, step % 300)].into(),
            layers: vec![],
        }
    }

    fn store_with(steps: u64) -> (tempfile::TempDir, Store, i64) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        store.connection.execute_batch("BEGIN").unwrap();
        for step in 1..=steps {
            store.record_step(run, &row(step)).unwrap();
        }
        store.connection.execute_batch("COMMIT").unwrap();
        (folder, store, run)
    }

    /// What the buckets must be, from the steps one by one.
    fn check(curve: &Curve, steps: std::ops::RangeInclusive<u64>) {
        let width = curve.bucket_steps;
        let mut next = *steps.start();
        for bucket in &curve.buckets {
            let last = (next.div_ceil(width) * width).min(*steps.end());
            assert_eq!((bucket.first_step, bucket.last_step), (next, last), "width {width}");
            let losses: Vec<f64> = (next..=last).map(loss).collect();
            let span = bucket.series[0].unwrap();
            assert_eq!(span.min, losses.iter().copied().fold(f64::INFINITY, f64::min));
            assert_eq!(span.max, losses.iter().copied().fold(0.0, f64::max));
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            assert!((span.mean - mean).abs() < 1e-9, "{} and {mean}", span.mean);
            assert_eq!(bucket.num_tokens, last * 100);
            assert_eq!((bucket.count, bucket.peak_bytes), (last + 1 - next, Some(last)));
            let cache = (next..=last).map(|step| step % 300).max();
            assert_eq!(bucket.memory.get(&Category::KvCache).copied(), cache);
            assert_eq!(bucket.series[3].is_some(), last > 100);
            next = last + 1;
        }
        assert_eq!(next, *steps.end() + 1);
    }

    #[test]
    fn every_width_has_the_extremes_of_its_steps() {
        let (_folder, store, run) = store_with(5000);
        for (points, width) in [(9999, 1), (2500, 2), (200, 32), (100, 64), (5, 1024), (1, 8192)] {
            let curve = store.curve(run, 1, u64::MAX, points).unwrap();
            assert_eq!(curve.bucket_steps, width, "{points} points");
            assert!(curve.buckets.len() <= points);
            check(&curve, 1..=5000);
        }
        let part = store.curve(run, 3000, 3999, 50).unwrap();
        assert_eq!(part.bucket_steps, 32);
        check(&part, 2977..=4000);
        assert!(store.curve(run, 5001, u64::MAX, 10).unwrap().buckets.is_empty());
        assert!(store.curve(run + 1, 0, u64::MAX, 10).unwrap().buckets.is_empty());
    }

    #[test]
    fn steps_of_an_older_database_get_their_buckets() {
        let (folder, store, run) = store_with(2100);
        let count = |store: &Store| -> i64 {
            store.connection.query_row("SELECT count(*) FROM curves", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(count(&store), 65 + 2);
        store
            .connection
            .execute_batch(
                "DROP TABLE base_scores; DROP TABLE base_answers; DROP TABLE layers;
                 DROP INDEX jobs_by_end; ALTER TABLE jobs DROP COLUMN runs_before;
                 DROP INDEX jobs_by_path; DROP INDEX events_by_kind; DROP INDEX runs_going_on;
                 DROP TABLE outbox; DROP TABLE scores; DROP TABLE answers;
                 CREATE TABLE eval_samples (run_id, step, position, prompt, reference, text,
                     new_tokens, exact_match);
                 DROP TRIGGER curves_grow; DROP TABLE curves;
                 PRAGMA user_version = 2",
            )
            .unwrap();
        drop(store);
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        assert_eq!(count(&store), 65 + 2);
        check(&store.curve(run, 1, u64::MAX, 3).unwrap(), 1..=2100);
    }
}
