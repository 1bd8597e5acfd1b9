//! Which evaluation was the best, when to stop for want of a better one, and the model of it.

use std::path::Path;

use chandler_evaluator::Better;
use chandler_trainer::Trainer;
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::job_runner::checkpoint_facts;
use crate::config::EvalConfig;
use crate::store::EvalRow;

/// The best evaluation so far, kept in every checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// Its value of `eval.metric_for_best_model`.
    value: Option<f64>,
    /// The step before which it was made.
    step: u64,
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
    /// Takes an evaluation into account. One without the metric changes nothing.
    pub(crate) fn see(&mut self, row: &EvalRow, config: &EvalConfig) -> Verdict {
        let metric = &config.metric_for_best_model;
        let Some(value) = row.metric(metric) else {
            return Verdict { is_best: false, is_enough: self.is_enough(config) };
        };
        let better = Better::of_metric(metric);
        let threshold = config.early_stopping_threshold;
        let is_best = self.value.is_none_or(|best| better.improves(value, best, threshold));
        if is_best {
            *self = Self { value: Some(value), step: row.step, since: 0 };
        } else {
            self.since += 1;
        }
        Verdict { is_best, is_enough: self.is_enough(config) }
    }

    /// Whether the run is to end here.
    pub(crate) fn is_enough(&self, config: &EvalConfig) -> bool {
        config.early_stopping_patience.is_some_and(|patience| self.since >= patience)
    }
}

/// Puts the weights of the best checkpoint in `folder` in place of the last ones, where
/// `eval.load_best_model_at_end` says so; the step that they are of.
pub(crate) fn put_best(
    trainer: &mut Trainer,
    folder: &Path,
    config: &EvalConfig,
) -> Result<u64, EngineError> {
    let last = trainer.steps_done();
    if !config.load_best_model_at_end {
        return Ok(last);
    }
    let metric = &config.metric_for_best_model;
    let better = Better::of_metric(metric);
    let facts = checkpoint_facts(folder, metric).into_iter();
    let valued = facts.filter_map(|fact| Some((fact.figure?, fact)));
    // Of equal ones the newest, as in what is kept.
    let best = valued
        .max_by(|(a, left), (b, right)| better.compare(*a, *b).then(left.step.cmp(&right.step)));
    let Some((value, fact)) = best else {
        tracing::warn!(
            "no checkpoint has been evaluated by {metric}, so the model is that of step {last}"
        );
        return Ok(last);
    };
    tracing::info!("the best model by {metric} ({value:.4}) is that of step {}", fact.step);
    if fact.step != last {
        trainer.resume(&fact.path)?;
    }
    Ok(fact.step)
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
        rows.map(|row| best.see(&row, &config)).map(|v| (v.is_best, v.is_enough)).collect()
    }

    #[test]
    fn patience_ends_after_evaluations_that_are_no_better() {
        let found = verdicts("loss", &[2.0, 1.0, 0.95, 0.94, 0.5]);
        let expected = [(true, false), (true, false), (false, false), (false, true), (true, false)];
        assert_eq!(found, expected);
        let found = verdicts("exact_match", &[0.2, 0.25, 0.5, f64::NAN, 0.4]);
        let expected =
            [(true, false), (false, false), (true, false), (false, false), (false, true)];
        assert_eq!(found, expected);
    }

    #[test]
    fn without_the_metric_nothing_is_decided() {
        assert_eq!(verdicts("sums/exact_match", &[1.0, 1.0, 1.0]), [(false, false); 3]);
    }
}
