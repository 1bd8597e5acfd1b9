//! Where the results of a job go: the database, the terminal and the log.

use std::path::{Path, PathBuf};

use chandler_durable::Removal;
use chandler_trainer::{BoxError, Fit};

use super::best::Best;
use super::checkpoints::remove_old_checkpoints;
use super::requeue::keep_wrong;
use super::scoring::{shown, with_gains};
use super::sink::{Sink, Wish};
use super::{EngineError, base_model};
use crate::config::Config;
use crate::daemon::{Controls, RunContext};
use crate::logging::StepProgress;
use crate::store::{EvalRow, EvalSample, ScoreRow, StepRow};

/// The database, the progress line and the controls of a job.
pub(super) struct JobSink<'a, 'c> {
    pub(super) context: &'a mut RunContext<'c>,
    pub(super) job_id: i64,
    /// What runs that fit into memory in the same way have in common.
    pub(super) fit_key: String,
    pub(super) keep_last: usize,
    /// Whether the model at step 0 is the one that everything descends from.
    pub(super) begins_with_base: bool,
    /// Whether wrong answers become a training file.
    pub(super) requeues: bool,
    pub(super) checkpoints: PathBuf,
    /// Of old checkpoints.
    pub(super) removals: Vec<Removal>,
}

impl Sink for JobSink<'_, '_> {
    fn step(&mut self, row: &StepRow, progress: &StepProgress) -> Result<(), BoxError> {
        self.context.still_ours().map_err(EngineError::from)?;
        Ok(self.context.step(row, progress)?)
    }

    fn evaluating(&mut self, now: bool) {
        self.context.controls.set_phase(if now { "evaluating" } else { "training" });
    }

    fn evaluated(&mut self, row: &EvalRow, samples: &[EvalSample]) -> Result<(), BoxError> {
        let row = &with_gains(row, samples, self.context.store, self.context.run_id)?;
        log_evaluation(self.context.config, row, samples);
        if self.begins_with_base && row.step == 0 {
            base_model::keep(self.context.store, row, samples)?;
        }
        Ok(self.context.evaluated(row, samples)?)
    }

    fn wrong(&mut self, records: &[String]) -> Result<(), BoxError> {
        if self.requeues {
            keep_wrong(&self.checkpoints, records)?;
        }
        Ok(())
    }

    fn memory(&mut self, message: &str) -> Result<(), BoxError> {
        tracing::warn!("{message}");
        let (job, run) = (Some(self.job_id), Some(self.context.run_id));
        Ok(self.context.store.record_event("memory", job, run, message, None)?)
    }

    fn trouble(&mut self, message: &str) -> Result<(), BoxError> {
        tracing::error!("{message}");
        let (job, run) = (Some(self.job_id), Some(self.context.run_id));
        Ok(self.context.store.record_event("trouble", job, run, message, None)?)
    }

    fn fitted(&mut self, fit: Fit) -> Result<(), BoxError> {
        Ok(self.context.store.set_fit(&self.fit_key, fit)?)
    }

    fn checkpoint(&mut self, step: u64, path: &Path, best: &Best) -> Result<(), BoxError> {
        tracing::info!(step, "checkpoint {}", path.display());
        let config = self.context.config;
        let (last, bests) = (self.keep_last, config.daemon.keep_best);
        self.removals = remove_old_checkpoints(path, last, bests, &config.eval, best)?;
        Ok(())
    }

    fn is_awaited(&self) -> bool {
        let controls = self.context.controls;
        controls.is_paused() || controls.has_eval_request()
    }

    fn wish(&mut self, may_evaluate: bool) -> Wish {
        let controls: &Controls = self.context.controls;
        controls.beat();
        controls.wait_while_paused();
        let eval = may_evaluate && controls.take_eval_request();
        Wish { stop: controls.stop().is_requested(), eval }
    }
}

/// What the line of the job's own figures does not say.
fn is_news(score: &ScoreRow) -> bool {
    !score.is_own() || !["loss", "perplexity", "token_accuracy"].contains(&score.metric.as_str())
}

/// One line for the figures and, where the log may hold text, one for each of the first answers.
pub(crate) fn log_evaluation(config: &Config, row: &EvalRow, samples: &[EvalSample]) {
    let figure = |name: &str, value: Option<f64>| {
        value.map_or_else(String::new, |value| format!("  {name} {value:.4}"))
    };
    tracing::info!(
        step = row.step,
        "eval at step {}{}{}{}{}",
        row.step,
        figure("loss", row.loss),
        figure("perplexity", row.perplexity),
        figure("token accuracy", row.token_accuracy),
        figure("exact match", row.exact_match),
    );
    for score in row.scores.iter().filter(|score| is_news(score)) {
        tracing::info!(step = row.step, "  {}", shown(score));
    }
    if !config.log.samples {
        return;
    }
    for sample in samples.iter().take(3) {
        let last = sample.prompt.lines().rev().find(|line| line.len() > 12);
        tracing::info!("  {:?} -> {:?}", last.unwrap_or(&sample.prompt), sample.text);
    }
}
