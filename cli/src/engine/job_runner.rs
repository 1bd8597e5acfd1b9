//! A job of the daemon: from a claimed file to a new model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use chandler_durable::{
    Fs, RealFs, create_folder_all, is_there, newest_good, remove_folder, require_space, write_with,
};
use chandler_evaluator::Better;
use chandler_trainer::{
    BoxError, CHECKPOINT_PREFIX, Fit, Outcome, TrainError, Trainer, checkpoint_step,
};
use chandler_vram::{Ledger, Phase, counting};
use serde_json::{Value, json};

use super::best::{Best, put_best};
use super::eval_set::{HELD_OUT, PROMPTS, TRAINING};
use super::memory;
use super::requeue::{is_requeued, keep_wrong, requeue};
use super::scoring::{shown, with_gains};
use super::session::{Prepared, Request, prepare};
use super::source::{binding, model_folder};
use super::watch::{Around, Sink, Watch, Wish};
use super::{EngineError, write_merged_model};
use crate::alerts::Alert;
use crate::config::{Config, EvalConfig};
use crate::daemon::{
    CheckpointFacts, Controls, JobError, JobEstimate, JobOutcome, JobRunner, RunContext,
    checkpoints_to_remove, snapshot_chores,
};
use crate::heap;
use crate::logging::StepProgress;
use crate::queue::{ClaimedJob, mark, report_of_model};
use crate::state_dir::StateDir;
use crate::store::{EvalRow, EvalSample, ScoreRow, StepRow};

/// Bytes of a checkpoint and a model for each trainable parameter: weights and two moments in the
/// one, the weights again in the other.
const DISK_BYTES_PER_PARAM: u64 = 16;

/// The runner for a state directory and a configuration, which enters what it holds into `ledger`.
pub fn runner(state: &StateDir, config: &Config, ledger: &Ledger) -> Box<dyn JobRunner> {
    Box::new(EngineRunner {
        state: state.clone(),
        config: config.clone(),
        ledger: ledger.clone(),
        ready: None,
    })
}

struct EngineRunner {
    state: StateDir,
    config: Config,
    ledger: Ledger,
    /// What `validate` made ready, for `run`.
    ready: Option<Ready>,
}

struct Ready {
    job_id: i64,
    base: PathBuf,
    prepared: Prepared,
}

impl EngineRunner {
    /// The newest model: that of the state directory once there is one.
    fn base(&self, context: &RunContext) -> Result<PathBuf, EngineError> {
        let newest = self.state.model();
        if is_there(&newest.join("config.json"))? {
            return Ok(newest);
        }
        model_folder(&self.config, context.progress)
    }

    fn make_ready(
        &mut self,
        job: &ClaimedJob,
        context: &mut RunContext,
    ) -> Result<&Ready, EngineError> {
        self.ledger.begin(Phase::Load);
        let base = self.base(context)?;
        let prepared = prepare(&Request {
            config: &self.config,
            model_folder: &base,
            adapter: None,
            files: std::slice::from_ref(&job.job.path),
            sha256: Some(&job.sha256),
            cache_folder: &self.state.cache(),
            evals: Some(&self.state.evals()),
            stop: &|| {
                context.controls.beat();
                context.controls.stop().is_requested()
            },
            progress: context.progress,
        })?;
        let wanted = binding(&self.config, &prepared.model, &prepared.tokenizer_sha256);
        match context.store.binding()? {
            Some(bound) => bound.admit(&wanted, self.state.root())?,
            None => context.store.bind(&wanted)?,
        }
        tracing::info!("memory plan:\n{}", prepared.plan);
        prepared.check_memory(&self.config)?;
        self.check_disk(&prepared)?;
        Ok(self.ready.insert(Ready { job_id: job.job.id, base, prepared }))
    }

    fn check_disk(&self, prepared: &Prepared) -> Result<(), EngineError> {
        let params = prepared.model.params();
        let trainable: usize = params.trainable().map(|(_, p)| p.value.elem_count()).sum();
        let all = (params.bytes() + trainable * 4) as u64;
        let kept = self.config.daemon.keep_checkpoints as u64 + 1;
        let reserve = (self.config.daemon.min_free_gib * f64::from(1 << 30)) as u64;
        let needed = trainable as u64 * DISK_BYTES_PER_PARAM * kept + all + reserve;
        Ok(require_space(&RealFs, self.state.root(), needed)?)
    }

    fn learn(
        &mut self,
        job: &ClaimedJob,
        ready: Ready,
        context: &mut RunContext,
    ) -> Result<JobOutcome, EngineError> {
        let Ready { base, prepared, .. } = ready;
        let Prepared { model, rows, settings, evaluation, total_steps, fit, plan, .. } = prepared;
        let checkpoints = self.state.checkpoints_of(job.job.id);
        let fit_key = fit_key(&self.config, &base);
        let fit = fit.and(context.store.fit(&fit_key)?.unwrap_or_default());
        let mut trainer = Trainer::new(model, &rows, settings, &self.ledger)?.within(fit);
        self.ledger.begin(Phase::Train);
        counting::reset_high_water();
        let GoneOn { resumed_at, last_eval, best } = resume(&mut trainer, &checkpoints)?;
        let controls = context.controls.clone();
        let stop = move || {
            controls.beat();
            controls.stop().is_requested()
        };
        let room = || memory::room(&self.config);
        let progress = context.progress;
        let mut sink = JobSink {
            context,
            job_id: job.job.id,
            fit_key,
            keep_last: self.config.daemon.keep_checkpoints,
            requeues: self.config.eval.requeue_wrong && !is_requeued(&job.job.file_name),
            checkpoints: checkpoints.clone(),
        };
        let mut watch = Watch {
            evaluation: &evaluation,
            sink: &mut sink,
            ledger: &self.ledger,
            stop: &stop,
            room: &room,
            on_pressure: self.config.memory.on_pressure,
            total_steps,
            config: &self.config.eval,
            save_steps: self.config.train.save_steps as u64,
            checkpoints,
            step_bytes: plan.peak.saturating_sub(plan.resident),
            checkpoint_bytes: checkpoint_bytes(&trainer),
            resumed_at,
            started: Instant::now(),
            steps_here: 0,
            last_eval,
            best,
            around: Around::default(),
            progress,
        };
        if fit != Fit::default() {
            watch
                .sink
                .memory(&format!("to fit into memory, {fit}"))
                .map_err(TrainError::Observer)?;
        }
        let outcome = trainer.train(&mut watch)?;
        let extra = watch.extra();
        let last_eval = watch.last_eval.take();
        let (checkpoints, step) = (watch.checkpoints, trainer.steps_done());
        if outcome == Outcome::Stopped {
            if resumed_at != Some(step) && step > 0 {
                let path = checkpoints.join(format!("{CHECKPOINT_PREFIX}{step}"));
                if !is_there(&path)? {
                    trainer.write_checkpoint(&RealFs, &path, extra)?;
                }
            }
            return Ok(JobOutcome::Stopped { step });
        }
        let loss = trainer.last_metrics().map(|metrics| metrics.loss);
        let model_step = put_best(&mut trainer, &checkpoints, &self.config.eval)?;
        let report = json!({
            "steps": step,
            "model_step": model_step,
            "loss": loss,
            "eval": last_eval,
            "memory": memory::beside_plan(&plan, &self.ledger),
            "model": self.state.model(),
        });
        sink.context.still_ours()?;
        let mark = mark(&job.job, &job.sha256, &report);
        write_merged_model(&mut trainer, &self.state.model(), &base, mark, progress)?;
        requeue(&self.state, context.store, job.job.id)?;
        Ok(JobOutcome::Finished { report })
    }

    /// The report of a job whose model was already put in place when the process ended.
    fn already_learned(&self, job: &ClaimedJob) -> Result<Option<Value>, EngineError> {
        Ok(report_of_model(&self.state, &job.job, &job.sha256)?)
    }
}

/// What decides whether a run fits into memory as an earlier one did.
fn fit_key(config: &Config, base: &Path) -> String {
    let Config { model, data, train, lora, memory, .. } = config;
    let batch = [train.per_device_train_batch_size, data.max_length, lora.r];
    json!([base, model.dtype, batch, train.optim, train.optimizer_in_backward, memory.limit])
        .to_string()
}

/// What a checkpoint takes on the disk: the trained weights and two moments, in f32.
pub(crate) fn checkpoint_bytes(trainer: &Trainer) -> u64 {
    let trainable = trainer.model().params().trainable();
    trainable.map(|(_, param)| 12 * param.value.elem_count() as u64).sum()
}

/// Where a run begins.
#[derive(Debug, Default)]
pub(crate) struct GoneOn {
    /// The step that a checkpoint was written after; `None` for a new run.
    pub(crate) resumed_at: Option<u64>,
    /// The evaluation before that checkpoint.
    pub(crate) last_eval: Option<EvalRow>,
    /// The best until then.
    pub(crate) best: Best,
}

/// Goes on from the newest checkpoint that is whole, if there is one.
pub(crate) fn resume(trainer: &mut Trainer, folder: &Path) -> Result<GoneOn, EngineError> {
    let found = newest_good(&RealFs, folder, CHECKPOINT_PREFIX)?;
    for broken in &found.quarantined {
        let (was, is) = (broken.was.display(), broken.is.display());
        tracing::warn!("{was} is broken ({}) and was moved to {is}", broken.reason);
    }
    let Some((path, _)) = found.good else { return Ok(GoneOn::default()) };
    let resumed = trainer.resume(&path)?;
    if let Some(why) = resumed.rounds_differently {
        tracing::warn!("from here on the run is not the same bit for bit: {why}");
    }
    tracing::info!("goes on after step {} ({})", trainer.steps_done(), path.display());
    Ok(GoneOn {
        resumed_at: Some(trainer.steps_done()),
        last_eval: serde_json::from_value(resumed.extra["eval"].clone()).unwrap_or_default(),
        best: serde_json::from_value(resumed.extra["best"].clone()).unwrap_or_default(),
    })
}

impl JobRunner for EngineRunner {
    fn validate(
        &mut self,
        job: &ClaimedJob,
        context: &mut RunContext<'_>,
    ) -> Result<JobEstimate, JobError> {
        if self.already_learned(job)?.is_some() {
            return Ok(JobEstimate::default());
        }
        let speed = context.store.newest_speed()?;
        let prepared = match self.make_ready(job, context) {
            // Whoever asked for the end finds it asked for.
            Err(error) if error.is_a_stop() => return Ok(JobEstimate::default()),
            ready => &ready?.prepared,
        };
        let stats = prepared.rows.stats();
        let epochs = prepared.total_steps as f64
            * (prepared.settings.per_device_train_batch_size
                * prepared.settings.gradient_accumulation_steps) as f64
            / prepared.rows.len().max(1) as f64;
        let seconds = speed.filter(|speed| *speed > 0.0);
        Ok(JobEstimate {
            rows: prepared.rows.len() as u64,
            tokens: stats.tokens,
            steps: prepared.total_steps,
            seconds: seconds.map(|speed| stats.tokens as f64 * epochs / speed),
            plan: serde_json::to_value(&prepared.plan).ok(),
        })
    }

    fn run(
        &mut self,
        job: &ClaimedJob,
        context: &mut RunContext<'_>,
    ) -> Result<JobOutcome, JobError> {
        if let Some(report) = self.already_learned(job)? {
            requeue(&self.state, context.store, job.job.id)?;
            return Ok(JobOutcome::Finished { report });
        }
        let ready = match self.ready.take() {
            Some(ready) if ready.job_id == job.job.id => ready,
            _ => {
                match self.make_ready(job, context) {
                    Err(error) if error.is_a_stop() => return Ok(JobOutcome::Stopped { step: 0 }),
                    ready => drop(ready?),
                }
                self.ready.take().ok_or(EngineError::NoModel)?
            }
        };
        let outcome = self.learn(job, ready, context);
        heap::give_back();
        if let Err(EngineError::Train(TrainError::NotFinite { step, what, .. })) = &outcome
            && context.config.alerts.enabled
        {
            context.alert(&Alert::not_finite(what, *step))?;
        }
        Ok(outcome?)
    }

    fn discard(&mut self, job: &ClaimedJob) -> Result<(), JobError> {
        self.ready = None;
        remove_if_there(&self.state.checkpoints_of(job.job.id)).map_err(JobError::from)
    }

    /// Only the newest job's checkpoints stay; a snapshot a day is made of the newest model.
    fn tidy(&mut self) -> Result<(), JobError> {
        let mut jobs = folders(&self.state.checkpoints());
        jobs.retain(|name| name.starts_with("job-"));
        jobs.sort_by(|a, b| chandler_durable::natural_cmp(a, b));
        jobs.pop();
        for name in jobs {
            remove_if_there(&self.state.checkpoints().join(name))?;
        }
        let today = jiff::ZonedDateTime::now().date();
        let existing = folders(&self.state.snapshots());
        let chores = snapshot_chores(&existing, today, self.config.daemon.keep_snapshots);
        if let Some(name) = chores.make {
            let place = self.state.snapshots().join(name);
            remove_if_there(&place)?;
            copy_folder(&self.state.model(), &place)?;
        }
        for name in chores.remove {
            remove_if_there(&self.state.snapshots().join(name))?;
        }
        Ok(())
    }
}

fn folders(parent: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove_if_there(path: &Path) -> Result<(), EngineError> {
    if is_there(path)? { Ok(remove_folder(&RealFs, path)?) } else { Ok(()) }
}

/// Links every file where the file system can, since they are never changed in place.
fn copy_folder(from: &Path, to: &Path) -> Result<(), EngineError> {
    let next = to.with_extension("next");
    remove_if_there(&next)?;
    create_folder_all(&RealFs, &next)?;
    for name in folders(from) {
        let (source, target) = (from.join(&name), next.join(&name));
        if std::fs::hard_link(&source, &target).is_err() {
            write_with(&RealFs, &target, |file| {
                std::io::copy(&mut std::fs::File::open(&source)?, file)
            })?;
        }
    }
    RealFs
        .sync_folder(&next)
        .map_err(|source| EngineError::Write { path: next.clone(), source })?;
    Ok(chandler_durable::rename_durably(&RealFs, &next, to)?)
}

/// The database, the progress line and the controls of a job.
struct JobSink<'a, 'c> {
    context: &'a mut RunContext<'c>,
    job_id: i64,
    fit_key: String,
    keep_last: usize,
    /// Whether wrong answers become a training file.
    requeues: bool,
    checkpoints: PathBuf,
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
        self.context.evaluated(row, samples)?;
        // The job's own figures are looked at with the evaluation.
        for score in row.scores.iter().filter(|score| !is_own(&score.set)) {
            let name = format!("{}/{}", score.set, score.metric);
            let better = Better::of_metric(&score.metric);
            self.context.scored(row.step, &name, score.value, better)?;
        }
        Ok(())
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

    fn checkpoint(&mut self, step: u64, path: &Path) -> Result<(), BoxError> {
        tracing::info!(step, "checkpoint {}", path.display());
        let keep_best = self.context.config.daemon.keep_best;
        remove_old_checkpoints(path, self.keep_last, keep_best, &self.context.config.eval)
            .map_err(BoxError::from)
    }

    fn wish(&mut self) -> Wish {
        let controls: &Controls = self.context.controls;
        controls.beat();
        controls.wait_while_paused();
        Wish { stop: controls.stop().is_requested(), eval: controls.take_eval_request() }
    }
}

/// Removes the checkpoints beside `newest` that are neither among the newest nor among the best.
pub(crate) fn remove_old_checkpoints(
    newest: &Path,
    keep_last: usize,
    keep_best: usize,
    config: &EvalConfig,
) -> Result<(), EngineError> {
    let Some(folder) = newest.parent() else { return Ok(()) };
    let (facts, keep_best) = (
        checkpoint_facts(folder, &config.metric_for_best_model),
        keep_best.max(usize::from(config.load_best_model_at_end)),
    );
    let better = Better::of_metric(&config.metric_for_best_model);
    for old in checkpoints_to_remove(&facts, keep_last, keep_best, better) {
        remove_folder(&RealFs, &old)?;
    }
    Ok(())
}

/// What decides about the checkpoints of a folder, by this metric.
pub(crate) fn checkpoint_facts(folder: &Path, metric: &str) -> Vec<CheckpointFacts> {
    let fact = |name: String| {
        let path = folder.join(name);
        let step = checkpoint_step(&path)?;
        let manifest = std::fs::read_to_string(path.join("manifest.json")).ok()?;
        let manifest: Value = serde_json::from_str(&manifest).ok()?;
        let eval = manifest.pointer("/extra/extra/eval").cloned().unwrap_or_default();
        let eval: Option<EvalRow> = serde_json::from_value(eval).unwrap_or_default();
        // An earlier evaluation says nothing of this checkpoint.
        let figure = eval.filter(|eval| eval.step == step).and_then(|eval| eval.metric(metric));
        Some(CheckpointFacts { path, step, figure })
    };
    folders(folder).into_iter().filter_map(fact).collect()
}

/// Whether a set is the job's own.
fn is_own(set: &str) -> bool {
    [HELD_OUT, PROMPTS, TRAINING].contains(&set)
}

/// What the line of the job's own figures does not say.
fn is_news(score: &ScoreRow) -> bool {
    !is_own(&score.set)
        || !["loss", "perplexity", "token_accuracy"].contains(&score.metric.as_str())
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
