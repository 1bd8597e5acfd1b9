//! Which evaluation was the best, when to stop for want of a better one, and the model of it.

use std::path::{Path, PathBuf};

use chandler_durable::{RealFs, quarantine};
use chandler_evaluator::Better;
use chandler_trainer::{TrainError, Trainer};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::checkpoints::checkpoint_facts;
use crate::config::EvalConfig;
use crate::daemon::CheckpointFacts;
use crate::store::EvalRow;

/// The best evaluation so far, and how long no clearly better one has come; kept in every
/// checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// `eval.metric_for_best_model`, as it was set; checkpoints did not always say.
    #[serde(default)]
    metric: String,
    /// Its value of that.
    value: Option<f64>,
    /// The step before which it was made.
    step: u64,
    /// What an evaluation must be better than by `eval.early_stopping_threshold` for patience to
    /// begin anew. Checkpoints without it had one value for both.
    #[serde(default)]
    mark: Option<f64>,
    /// Evaluations since.
    since: usize,
}

/// What a new evaluation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// It is the best so far.
    pub(crate) is_best: bool,
    /// No better one came for `eval.early_stopping_patience` evaluations.
    pub(crate) is_enough: bool,
}

impl Best {
    /// Takes an evaluation into account. One without the metric changes nothing, and one that was
    /// not due (`counts`) tries nobody's patience.
    pub(crate) fn see(&mut self, row: &EvalRow, config: &EvalConfig, counts: bool) -> Verdict {
        let metric = &config.metric_for_best_model;
        if self.metric != *metric {
            // What was the best by another metric says nothing of this one.
            let before =
                if self.metric.is_empty() { std::mem::take(self) } else { Self::default() };
            *self = Self { metric: metric.clone(), ..before };
        }
        let Some(value) = row.metric(metric) else {
            return Verdict { is_best: false, is_enough: self.is_enough(config) };
        };
        let better = Better::of_metric(metric);
        let beats = |other: Option<f64>, by: f64| match other {
            Some(other) => better.improves(value, other, by),
            None => !value.is_nan(),
        };
        if counts && beats(self.mark.or(self.value), config.early_stopping_threshold) {
            (self.mark, self.since) = (Some(value), 0);
        } else if counts {
            // What is only a little better becomes the best, and must not move the mark.
            self.mark = self.mark.or(self.value);
            self.since += 1;
        }
        let is_best = beats(self.value, 0.0);
        if is_best {
            (self.value, self.step) = (Some(value), row.step);
        }
        Verdict { is_best, is_enough: self.is_enough(config) }
    }

    /// Whether the run is to end here.
    pub(crate) fn is_enough(&self, config: &EvalConfig) -> bool {
        config.early_stopping_patience.is_some_and(|patience| self.since >= patience)
    }

    /// Its value, where it was made before the step after `step`.
    pub(crate) fn value_at(&self, step: u64) -> Option<f64> {
        self.value.filter(|_| self.step == step)
    }

    /// Whether there is none yet.
    pub(crate) fn is_none(&self) -> bool {
        self.value.is_none()
    }

    /// The step of it, where there is one.
    pub(crate) fn step(&self) -> Option<u64> {
        self.value.map(|_| self.step)
    }
}

/// Puts the weights of the best checkpoint in `folder` in place of the last ones, where
/// `eval.load_best_model_at_end` says so; the step that they are of. One that turns out to be broken
/// is put aside, and the next best one taken.
pub(crate) fn put_best(
    trainer: &mut Trainer,
    folder: &Path,
    config: &EvalConfig,
    best: &Best,
) -> Result<u64, EngineError> {
    let last = trainer.steps_done();
    if !config.load_best_model_at_end {
        return Ok(last);
    }
    let metric = &config.metric_for_best_model;
    for (value, fact) in from_the_best(folder, metric, best, last) {
        if fact.step != last
            && let Err(error) = trainer.resume(&fact.path)
        {
            put_aside(&fact.path, error)?;
            continue;
        }
        tracing::info!("the best model by {metric} ({value:.4}) is that of step {}", fact.step);
        return Ok(fact.step);
    }
    tracing::warn!("there is no checkpoint with a {metric}, so the model is that of step {last}");
    Ok(last)
}

/// The models that may be put in place, the best first: the checkpoints with a figure, and the model
/// as it stands after step `last`, for which no checkpoint has to be there. Of equal ones the newest
/// comes first, as in what is kept.
fn from_the_best(
    folder: &Path,
    metric: &str,
    best: &Best,
    last: u64,
) -> Vec<(f64, CheckpointFacts)> {
    let better = Better::of_metric(metric);
    let mut facts = checkpoint_facts(folder, metric, best);
    if !facts.iter().any(|fact| fact.step == last) {
        let (path, figure) = (PathBuf::new(), best.value_at(last));
        facts.push(CheckpointFacts { path, step: last, figure });
    }
    let valued = facts.into_iter().filter_map(|fact| Some((fact.figure?, fact)));
    let mut valued: Vec<_> = valued.filter(|(value, _)| !value.is_nan()).collect();
    valued.sort_by(|(a, left), (b, right)| better.compare(*b, *a).then(right.step.cmp(&left.step)));
    valued
}

/// Moves a checkpoint out of the way that cannot be used. Its files are looked at before the first
/// weight is overwritten, so the model is still the one that it was.
fn put_aside(path: &Path, error: TrainError) -> Result<(), EngineError> {
    match error {
        TrainError::BadCheckpoint { .. } => {
            let is = quarantine(&RealFs, path)?;
            tracing::warn!("{error}; it was moved to {}", is.display());
            Ok(())
        }
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(metric: &str) -> EvalConfig {
        EvalConfig {
            metric_for_best_model: metric.to_owned(),
            early_stopping_patience: Some(2),
            early_stopping_threshold: 0.1,
            ..EvalConfig::default()
        }
    }

    fn row(step: u64, value: f64) -> EvalRow {
        let (loss, exact_match) = (Some(value), Some(value));
        EvalRow { step, loss, exact_match, ..EvalRow::default() }
    }

    fn verdicts(metric: &str, values: &[f64]) -> Vec<(bool, bool)> {
        let (config, mut best) = (config(metric), Best::default());
        let rows = values.iter().enumerate().map(|(step, value)| row(step as u64, *value));
        rows.map(|row| best.see(&row, &config, true)).map(|v| (v.is_best, v.is_enough)).collect()
    }

    #[test]
    fn patience_ends_after_evaluations_that_are_no_better() {
        let found = verdicts("loss", &[2.0, 1.0, 0.95, 0.94, 0.5]);
        let expected = [(true, false), (true, false), (true, false), (true, true), (true, false)];
        assert_eq!(found, expected, "a little better is the best, and not better enough");
        let found = verdicts("exact_match", &[0.2, 0.25, 0.5, f64::NAN, 0.4]);
        let expected = [(true, false), (true, false), (true, false), (false, false), (false, true)];
        assert_eq!(found, expected);
    }

    #[test]
    fn without_the_metric_nothing_is_decided() {
        assert_eq!(verdicts("sums/exact_match", &[1.0, 1.0, 1.0]), [(false, false); 3]);
    }

    #[test]
    fn what_was_not_due_tries_nobodys_patience() {
        let (config, mut best) = (config("loss"), Best::default());
        best.see(&row(0, 1.0), &config, true);
        for step in 1..5 {
            let verdict = best.see(&row(step, 2.0), &config, false);
            assert_eq!((verdict.is_best, verdict.is_enough), (false, false));
        }
        assert!(best.see(&row(5, 0.99), &config, false).is_best);
        assert!(!best.see(&row(6, 0.98), &config, true).is_enough);
        assert!(best.see(&row(7, 0.97), &config, true).is_enough);
        assert_eq!((best.value_at(7), best.value_at(6)), (Some(0.97), None));
    }

    #[test]
    fn what_is_no_number_never_is_the_best() {
        assert_eq!(
            verdicts("loss", &[f64::NAN, f64::NAN, 1.0])[1..],
            [(false, true), (true, false)]
        );
    }

    #[test]
    fn the_state_of_earlier_checkpoints_is_read() {
        let text = r#"{"value": 1.0, "step": 3, "since": 1}"#;
        let mut best: Best = serde_json::from_str(text).unwrap();
        assert_eq!(best.value_at(3), Some(1.0));
        let verdict = best.see(&row(4, 0.95), &config("loss"), true);
        assert_eq!((verdict.is_best, verdict.is_enough), (true, true));
        let again: Best = serde_json::from_value(serde_json::json!(best)).unwrap();
        assert_eq!(again, best);
    }

    #[test]
    fn another_metric_begins_anew() {
        let mut best = Best::default();
        best.see(&row(0, 0.5), &config("loss"), true);
        let verdict = best.see(&row(1, 0.25), &config("exact_match"), true);
        assert!(verdict.is_best && !verdict.is_enough);
        assert_eq!((best.value_at(0), best.value_at(1)), (None, Some(0.25)));
    }

    #[test]
    fn the_best_comes_first_and_the_last_model_needs_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let put = |step: u64, loss: f64| {
            let place = folder.path().join(format!("checkpoint-{step}"));
            std::fs::create_dir(&place).unwrap();
            let eval = EvalRow { step, loss: Some(loss), ..EvalRow::default() };
            let manifest = serde_json::json!({ "extra": { "extra": { "eval": eval } } });
            chandler_durable::write(&place.join("manifest.json"), manifest.to_string().as_bytes())
                .unwrap();
        };
        put(0, 2.0);
        put(3, 1.5);
        put(6, 1.5);
        let mut best = Best::default();
        let order = |best: &Best, last: u64| -> Vec<u64> {
            let all = from_the_best(folder.path(), "loss", best, last);
            all.into_iter().map(|(_, fact)| fact.step).collect()
        };
        assert_eq!(order(&best, 9), [6, 3, 0]);
        best.see(&row(9, 1.0), &config("loss"), true);
        assert_eq!(order(&best, 9), [9, 6, 3, 0]);
        assert_eq!(order(&best, 6), [6, 3, 0]);
    }

    #[test]
    fn a_broken_checkpoint_is_put_aside_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-3");
        std::fs::create_dir(&path).unwrap();
        let reason = "weights.safetensors is missing".to_owned();
        put_aside(&path, TrainError::BadCheckpoint { path: path.clone(), reason }).unwrap();
        assert!(!path.exists() && folder.path().join("quarantine/checkpoint-3").exists());
        assert!(put_aside(&path, TrainError::NoRows).is_err());
    }
}
