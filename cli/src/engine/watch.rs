//! What happens between the steps of a run: evaluations, checkpoints, records, and wishes from
//! outside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chandler_durable::{Fs, RealFs, create_folder_all, require_space};
use chandler_evaluator::{EvalError, GenerateOptions};
use chandler_model::CausalLm;
use chandler_trainer::{
    BoxError, CHECKPOINT_PREFIX, Control, Fit, Observer, StepMetrics, TrainError,
};
use chandler_vram::{HostMeter, Ledger, Phase, Shortage};

use super::EngineError;
use super::best::{Best, Verdict};
use super::eval_set::EvalSet;
use super::evaluation::{Due, Evaluated, Evaluation, Evaluator};
use super::guard::{Decision, decide};
use super::saving::ToldFs;
use super::sink::Sink;
use super::trend::Trend;
use super::{device, memory};
use crate::config::{EvalConfig, OnPressure};
use crate::daemon::is_full;
use crate::failure::in_one_line;
use crate::logging::{Progress, StepProgress};
use crate::store::{EvalRow, StepRow};

/// The observer of a run.
pub(crate) struct Watch<'a> {
    pub(crate) evaluation: &'a Evaluation,
    pub(crate) sink: &'a mut dyn Sink,
    pub(crate) ledger: &'a Ledger,
    /// Ends an evaluation that is going on.
    pub(crate) stop: &'a dyn Fn() -> bool,
    /// Bytes that may still be allocated, as far as that is known.
    pub(crate) room: &'a dyn Fn() -> Option<u64>,
    /// Bytes in which a checkpoint may be copied beside a step that takes so many.
    pub(crate) room_for_copy: &'a dyn Fn(u64) -> Option<u64>,
    pub(crate) on_pressure: OnPressure,
    pub(crate) total_steps: u64,
    pub(crate) config: &'a EvalConfig,
    /// 0: a checkpoint at the end alone.
    pub(crate) save_steps: u64,
    pub(crate) checkpoints: PathBuf,
    /// What a step or an evaluation takes beyond what the run holds between steps.
    pub(crate) step_bytes: u64,
    /// What one takes on the disk.
    pub(crate) checkpoint_bytes: u64,
    /// The step that this process began after, which has its checkpoint.
    pub(crate) resumed_at: Option<u64>,
    pub(crate) started: Instant,
    pub(crate) heard: Heard,
    /// The newest evaluation, which may have been made before the run was resumed.
    pub(crate) last_eval: Option<EvalRow>,
    /// The best evaluation, likewise.
    pub(crate) best: Best,
    /// The losses, likewise.
    pub(crate) trend: Trend,
    /// Whether it was said that `eval.metric_for_best_model` does not come.
    pub(crate) metric_was_missed: bool,
    /// What tells the model that the run began from, for whoever goes on from its checkpoints.
    pub(crate) base: String,
    pub(crate) around: Around,
    pub(crate) progress: &'a Progress,
}

/// Which steps this process has heard of.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    steps: u64,
    /// The last one, or the one that the process began after.
    last: Option<u64>,
}

impl Heard {
    fn of(&mut self, step: u64) {
        self.steps += 1;
        self.last = Some(step);
    }

    /// Whether there is nothing left to hear at the boundary after `step`: what a GPU has found in that
    /// step may still be on its way.
    fn all_until(&mut self, step: u64) -> bool {
        *self.last.get_or_insert(step) == step
    }
}

/// What was last seen of the memory that others leave.
#[derive(Debug, Default)]
pub(crate) struct Around {
    looked: Option<Instant>,
    is_short: bool,
}

/// How often the meters are read between steps.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl<'a> Watch<'a> {
    /// Reacts where others have taken what `memory.reserve` was to leave: once each time it happens.
    fn look_around(&mut self) -> Result<(), BoxError> {
        if self.around.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.around.looked = Some(Instant::now());
        let was_short = self.around.is_short;
        self.around.is_short = (self.room)() == Some(0);
        if !self.around.is_short || was_short {
            return Ok(());
        }
        let words = "no memory is left beyond memory.limit and memory.reserve";
        if self.on_pressure == OnPressure::Stop {
            return Err(EngineError::Pressure(words.to_owned()).into());
        }
        memory::give_back();
        self.sink.memory(&format!("{words}; what lay idle was given back"))
    }

    fn eval_steps(&self) -> u64 {
        self.config.eval_steps as u64
    }

    fn eval_is_due(&self, step: u64) -> bool {
        self.eval_steps() > 0
            && self.last_eval.as_ref().is_none_or(|row| row.step != step)
            && (step.is_multiple_of(self.eval_steps()) || step == self.total_steps)
    }

    fn save_is_due(&self, step: u64) -> bool {
        let regular = self.save_steps > 0 && step.is_multiple_of(self.save_steps);
        step > 0 && self.resumed_at != Some(step) && (regular || step == self.total_steps)
    }

    /// Whether a set is asked in the evaluation at this step.
    fn set_is_due(&self, set: &EvalSet, step: u64) -> bool {
        let number = step.checked_div(self.eval_steps()).unwrap_or(0);
        set.every <= 1 || step == self.total_steps || number.is_multiple_of(set.every)
    }

    /// The sets that are due, and how much of each there is room for.
    fn due(&mut self, step: u64, model: &CausalLm) -> Result<Vec<Due<'a>>, BoxError> {
        let evaluation: &'a Evaluation = self.evaluation;
        let mut due = vec![];
        for set in &evaluation.sets {
            if !self.set_is_due(set, step) {
                continue;
            }
            let needed = |options: &GenerateOptions| set.bytes_needed(model, options);
            let mut room = (self.room)();
            if room.is_some_and(|room| needed(&set.options) > room) {
                // Buffers that lie idle count as used.
                memory::give_back();
                room = (self.room)();
            }
            let decision = decide(self.on_pressure, &set.options, set.prompts(), needed, room);
            let name = &set.name;
            due.push(match decision {
                Decision::Evaluate(options, None) => (set, Some(options)),
                Decision::Evaluate(options, Some(words)) => {
                    self.sink.memory(&format!("{name}: {words}"))?;
                    (set, Some(options))
                }
                Decision::Postpone(words) => {
                    self.sink.memory(&format!("{name}: {words}"))?;
                    (set, None)
                }
                Decision::Stop(words) => return Err(EngineError::Pressure(words).into()),
            });
        }
        Ok(due)
    }

    /// What the evaluation means for the run; `None` where a stop cut it short. One that somebody
    /// asked for and that was not due does not count as one without a better figure.
    fn evaluate(
        &mut self,
        step: u64,
        model: &CausalLm,
        is_due: bool,
    ) -> Result<Option<Verdict>, BoxError> {
        let (tokenizer, ledger, stop) = (&self.evaluation.tokenizer, self.ledger, self.stop);
        let due = self.due(step, model)?;
        let progress = &self.evaluation.progress;
        let evaluator = Evaluator { step, model, tokenizer, ledger, stop, progress };
        self.sink.evaluating(true);
        self.ledger.begin(Phase::Eval);
        let result = evaluator.run(&due);
        self.ledger.begin(Phase::Train);
        self.sink.evaluating(false);
        let Evaluated { row, samples, shortages, troubles, wrong } = match result {
            Err(EngineError::Eval(EvalError::Stopped)) => return Ok(None),
            result => result?,
        };
        for shortage in shortages {
            self.sink.memory(&shortage)?;
        }
        for trouble in troubles {
            self.sink.trouble(&trouble)?;
        }
        let verdict = self.best.see(&row, self.config, is_due);
        let is_last = verdict.is_enough || step == self.total_steps;
        if is_last && let Some(error) = not_finite(&row, &self.best, self.config) {
            return Err(EngineError::from(error).into());
        }
        self.sink.evaluated(&row, &samples)?;
        self.miss_metric(&row)?;
        if is_last {
            self.sink.wrong(&wrong)?;
        }
        self.last_eval = Some(row);
        Ok(Some(verdict))
    }

    /// Says once where what decides about the run does not come of its evaluations.
    fn miss_metric(&mut self, row: &EvalRow) -> Result<(), BoxError> {
        let config = self.config;
        let decides = config.load_best_model_at_end || config.early_stopping_patience.is_some();
        let is_missing = self.best.is_none() && row.metric(&config.metric_for_best_model).is_none();
        if !decides || !is_missing || self.metric_was_missed {
            return Ok(());
        }
        self.metric_was_missed = true;
        self.sink.trouble(&format!(
            "eval at step {} has no {}, by which eval.metric_for_best_model goes: until one has it, \
             no model is the best and no job ends early",
            row.step, config.metric_for_best_model
        ))
    }

    /// What a checkpoint remembers.
    pub(crate) fn extra(&self) -> serde_json::Value {
        serde_json::json!({
            "eval": self.last_eval,
            "best": self.best,
            "trend": self.trend,
            "base": self.base,
        })
    }
}

/// Why the model of the last evaluation must not become anybody's: its own loss is no number, and no
/// better model will be put in its place.
fn not_finite(row: &EvalRow, best: &Best, config: &EvalConfig) -> Option<TrainError> {
    let value = row.loss.filter(|loss| !loss.is_finite())?;
    let is_replaced = best.step().is_some_and(|step| step != row.step);
    let (step, what) = (row.step, "loss of the last evaluation");
    let kept = !(config.load_best_model_at_end && is_replaced);
    kept.then_some(TrainError::NotFinite { step, what, value })
}

impl Observer for Watch<'_> {
    fn at_boundary(&mut self, step: u64, model: &CausalLm) -> Result<Control, BoxError> {
        self.look_around()?;
        // An evaluation that somebody asks for is told after what its step has found.
        let wish = self.sink.wish(self.heard.all_until(step));
        if wish.stop && step < self.total_steps {
            return Ok(Control::Stop);
        }
        let (mut is_best, is_due) = (false, self.eval_is_due(step));
        if wish.eval || is_due {
            let verdict = self.evaluate(step, model, is_due)?;
            let Some(verdict) = verdict else { return Ok(Control::Stop) };
            // That may be the model that the run began from, at step 0.
            is_best = verdict.is_best && self.config.load_best_model_at_end;
        }
        let is_enough = self.best.is_enough(self.config) && step < self.total_steps;
        let saves = self.save_is_due(step) || (is_best && self.resumed_at != Some(step));
        Ok(match (is_enough, saves) {
            (true, _) => {
                tracing::info!(step, "no better evaluation: the job ends here");
                Control::Finish
            }
            (false, true) => Control::Checkpoint,
            (false, false) => Control::Continue,
        })
    }

    fn metrics_may_be_late(&self, step: u64) -> bool {
        !self.eval_is_due(step) && !self.save_is_due(step) && !self.sink.is_awaited()
    }

    fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError> {
        self.heard.of(metrics.step);
        self.trend.see(metrics.loss);
        let host = HostMeter::new().read_host();
        let row = StepRow {
            step: metrics.step,
            loss: metrics.loss,
            grad_norm: metrics.grad_norm,
            lr: metrics.lr,
            num_tokens: metrics.num_tokens,
            mean_token_accuracy: Some(metrics.mean_token_accuracy),
            tokens_per_s: Some(metrics.tokens_per_s),
            peak_bytes: host.peak_rss,
            memory: self.ledger.take_recent(),
            layers: metrics.layers.clone(),
        };
        let per_step = self.started.elapsed().as_secs_f64() / self.heard.steps as f64;
        let left = self.total_steps.saturating_sub(metrics.step) as f64;
        let progress = StepProgress {
            step: metrics.step,
            total_steps: self.total_steps,
            loss: metrics.loss,
            lr: metrics.lr,
            tokens_per_s: Some(metrics.tokens_per_s),
            eta_s: Some(per_step * left),
            memory_bytes: host.rss,
        };
        self.sink.step(&row, &progress)
    }

    fn tightened(&mut self, step: u64, fit: Fit, why: &Shortage) -> Result<(), BoxError> {
        let why = device::seen_on_gpu(why);
        let rounded = match fit.rows {
            Some(_) => " (the same sums, rounded in another order)",
            None => "",
        };
        self.sink.memory(&format!("step {}: {why}; from now on {fit}{rounded}", step + 1))?;
        self.sink.fitted(fit)
    }

    fn checkpoint_path(&mut self, step: u64) -> Result<Option<PathBuf>, BoxError> {
        create_folder_all(&RealFs, &self.checkpoints).map_err(EngineError::from)?;
        require_space(&RealFs, &self.checkpoints, self.checkpoint_bytes)
            .map_err(EngineError::from)?;
        Ok(Some(self.checkpoints.join(format!("{CHECKPOINT_PREFIX}{step}"))))
    }

    /// Taken only where it is known that the run's next peak fits beside it.
    fn has_room_for_copy(&mut self, bytes: u64) -> bool {
        (self.room_for_copy)(self.step_bytes).is_some_and(|room| room >= bytes)
    }

    fn file_system(&self, bytes: u64) -> Box<dyn Fs> {
        Box::new(ToldFs::new(self.progress, "checkpoint", bytes))
    }

    fn checkpoint_written(&mut self, step: u64, path: &Path) -> Result<(), BoxError> {
        self.sink.checkpoint(step, path, &self.best)
    }

    /// A disk that failed once may take the next one; a full one is waited for.
    fn checkpoint_failed(&mut self, step: u64, error: TrainError) -> Result<(), TrainError> {
        if is_full(&error)
            || matches!(&error, TrainError::Durable(error) if error.is_out_of_space())
        {
            return Err(error);
        }
        let words =
            format!("step {step}: no checkpoint, training goes on: {}", in_one_line(&error));
        self.sink.trouble(&words).map_err(TrainError::Observer)
    }

    fn checkpoint_extra(&mut self) -> serde_json::Value {
        self.extra()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_began_after_is_nothing_to_hear_of() {
        let mut heard = Heard::default();
        assert!(heard.all_until(40), "the process begins after it");
        assert!(!heard.all_until(41));
        heard.of(41);
        assert!(heard.all_until(41) && !heard.all_until(42));
        assert_eq!(heard.steps, 1);
    }

    #[test]
    fn a_model_without_a_loss_that_is_a_number_is_nobodys() {
        let config =
            |load_best_model_at_end| EvalConfig { load_best_model_at_end, ..EvalConfig::default() };
        let row = |step, loss| EvalRow { step, loss: Some(loss), ..EvalRow::default() };
        let mut best = Best::default();
        let fails = |row: &EvalRow, best: &Best, loads: bool| {
            let error = not_finite(row, best, &config(loads));
            assert!(error.is_none_or(|error| error.hint().is_some()));
            not_finite(row, best, &config(loads)).is_some()
        };
        assert!(!fails(&row(4, 1.0), &best, false) && !fails(&EvalRow::default(), &best, false));
        for loss in [f64::NAN, f64::INFINITY] {
            assert!(fails(&row(4, loss), &best, false) && fails(&row(4, loss), &best, true));
        }
        best.see(&row(2, 1.0), &config(true), true);
        assert!(fails(&row(4, f64::NAN), &best, false));
        assert!(!fails(&row(4, f64::NAN), &best, true), "the model of step 2 takes its place");
    }
}
