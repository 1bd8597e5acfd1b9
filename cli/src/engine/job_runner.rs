//! A job of the daemon: from a claimed file to a new model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use chandler_durable::{RealFs, require_space};
use chandler_trainer::{CHECKPOINT_PREFIX, Fit, Outcome, TrainError, Trainer};
use chandler_vram::{Ledger, Phase};
use serde_json::{Value, json};

use super::base_model::Questions;
use super::best::put_best;
use super::checkpoints::{
    GoneOn, bytes_of_checkpoints, checkpoint_bytes, leave_checkpoint, remove_old_checkpoints,
    resume_or_begin_anew,
};
use super::job_sink::JobSink;
use super::lineage::newest;
use super::lost_gpu::end_where_gpu_is_lost;
use super::origin::{self, Origin, check_origin};
use super::publish::{finish_exchange, write_merged_model};
use super::requeue::{is_requeued, keep_wrong, requeue};
use super::session::{Prepared, Request, prepare};
use super::snapshots::{make_snapshot, names_in, remove_if_there};
use super::source::{binding, cached_model_folder, check_named, identity, model_folder};
use super::watch::{Around, Heard, Watch};
use super::{EngineError, device, memory};
use crate::alerts::Alert;
use crate::config::Config;
use crate::daemon::{JobError, JobEstimate, JobOutcome, JobRunner, RunContext};
use crate::queue::{ClaimedJob, mark, report_of_model};
use crate::state_dir::StateDir;
use crate::store::Store;

/// Bytes of a checkpoint and a model for each trainable parameter: weights and two moments in the
/// one, the weights again in the other.
const DISK_BYTES_PER_PARAM: u64 = 16;

/// The runner for a state directory and a configuration, which enters what it holds into `ledger`.
/// The model of the state directory is in its place when this returns, if there ever was one; where it
/// is gone, or began from another model than the configured one, that is an error; so is a base
/// model that is needed and named as a folder which is not there.
pub fn runner(
    state: &StateDir,
    config: &Config,
    ledger: &Ledger,
    store: &Store,
) -> Result<Box<dyn JobRunner>, EngineError> {
    finish_exchange(&state.model())?;
    if newest(state, store, config)?.is_none() {
        check_named(config)?;
    }
    check_origin(state, config)?;
    Ok(Box::new(EngineRunner {
        state: state.clone(),
        config: config.clone(),
        ledger: ledger.clone(),
        ready: None,
        finished: None,
    }))
}

struct EngineRunner {
    state: StateDir,
    config: Config,
    ledger: Ledger,
    /// What `validate` made ready, for `run`.
    ready: Option<Ready>,
    /// The job whose model was put in its place last.
    finished: Option<i64>,
}

struct Ready {
    job_id: i64,
    base: PathBuf,
    prepared: Prepared,
}

impl EngineRunner {
    /// The newest model: that of the state directory once there is one.
    fn base(&self, context: &RunContext) -> Result<PathBuf, EngineError> {
        match newest(&self.state, context.store, &self.config)? {
            Some(newest) => Ok(newest),
            None => model_folder(&self.config, context.progress),
        }
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
        self.check_disk(job, &prepared)?;
        Ok(self.ready.insert(Ready { job_id: job.job.id, base, prepared }))
    }

    /// An error where there is no room for the checkpoints and the model of a run. Its own checkpoints, which
    /// make room for those to come, are no others'.
    fn check_disk(&self, job: &ClaimedJob, prepared: &Prepared) -> Result<(), EngineError> {
        let params = prepared.model.params();
        let trainable: usize = params.trainable().map(|(_, p)| p.value.elem_count()).sum();
        let all = (params.bytes() + trainable * 4) as u64;
        let kept = self.config.daemon.keep_checkpoints as u64 + 1;
        let reserve = (self.config.daemon.min_free_gib * f64::from(1 << 30)) as u64;
        let all_params: usize = params.iter().map(|(_, p)| p.value.elem_count()).sum();
        let snapshot =
            if self.config.daemon.keep_snapshots > 0 { 4 * all_params as u64 } else { 0 };
        let there = bytes_of_checkpoints(&self.state.checkpoints_of(job.job.id));
        let to_come = (trainable as u64 * DISK_BYTES_PER_PARAM * kept).saturating_sub(there);
        let needed = to_come + all + snapshot + reserve;
        Ok(require_space(&RealFs, self.state.root(), needed)?)
    }

    /// Puts to the base model what it was never asked, unless this job's first evaluation does.
    fn ask_base(
        &self,
        job: &ClaimedJob,
        ready: &Ready,
        context: &mut RunContext,
    ) -> Result<(), EngineError> {
        let is_begun = !names_in(&self.state.checkpoints_of(job.job.id)).is_empty();
        if self.is_base(&ready.base) && !is_begun {
            return Ok(());
        }
        let controls = context.controls;
        let Prepared { model, evaluation, tokenizer_sha256, .. } = &ready.prepared;
        let questions = Questions {
            config: &self.config,
            ledger: &self.ledger,
            evaluation,
            bound: binding(&self.config, model, tokenizer_sha256),
            stop: &|| {
                controls.beat();
                controls.stop().is_requested()
            },
            progress: context.progress,
        };
        questions.ask(context.store)
    }

    /// Whether a model's folder is that of the base model, and not of what was made of it.
    fn is_base(&self, folder: &Path) -> bool {
        folder != self.state.model()
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
        let base_id = identity(&base)?;
        let fit_key = fit_key(&self.config, &base);
        let fit = fit.and(context.store.fit(&fit_key)?.unwrap_or_default());
        let mut trainer = Trainer::new(model, &rows, settings, &self.ledger)?.within(fit);
        self.ledger.begin(Phase::Train);
        memory::measure_anew()?;
        let begun = resume_or_begin_anew(&mut trainer, &checkpoints, &base_id)?;
        let GoneOn { resumed_at, last_eval, best, trend } = begun;
        if resumed_at.is_none() {
            // Of an earlier attempt, which evaluated another model.
            keep_wrong(&checkpoints, &[])?;
        }
        let controls = context.controls.clone();
        let stop = move || {
            controls.beat();
            controls.stop().is_requested()
        };
        let room = || memory::room(&self.config);
        let room_for_copy = |step_bytes| memory::room_for_copy(&self.config, step_bytes);
        let progress = context.progress;
        let mut sink = JobSink {
            context,
            job_id: job.job.id,
            fit_key,
            keep_last: self.config.daemon.keep_checkpoints,
            begins_with_base: self.is_base(&base) && self.config.eval.compare_to_base,
            requeues: self.config.eval.requeue_wrong && !is_requeued(&job.job.file_name),
            checkpoints: checkpoints.clone(),
            removals: vec![],
        };
        let mut watch = Watch {
            evaluation: &evaluation,
            sink: &mut sink,
            ledger: &self.ledger,
            stop: &stop,
            room: &room,
            room_for_copy: &room_for_copy,
            on_pressure: self.config.memory.on_pressure,
            total_steps,
            config: &self.config.eval,
            save_steps: self.config.train.save_steps as u64,
            checkpoints,
            step_bytes: plan.peak.saturating_sub(plan.resident),
            checkpoint_bytes: checkpoint_bytes(&trainer),
            resumed_at,
            started: Instant::now(),
            heard: Heard::default(),
            last_eval,
            best,
            trend,
            metric_was_missed: false,
            base: base_id,
            around: Around::default(),
            progress,
        };
        if trainer.fit() != Fit::default() {
            watch
                .sink
                .memory(&format!("to fit into memory, {}", trainer.fit()))
                .map_err(TrainError::Observer)?;
        }
        let outcome = trainer.train(&mut watch).map_err(device::told_on_gpu)?;
        let extra = watch.extra();
        let (last_eval, best) = (watch.last_eval.take(), watch.best.clone());
        let (checkpoints, trend) = (watch.checkpoints, watch.trend);
        if outcome == Outcome::Stopped {
            let step = leave_checkpoint(&trainer, &checkpoints, resumed_at, extra)?;
            let newest = checkpoints.join(format!("{CHECKPOINT_PREFIX}{step}"));
            let (last, bests) = (self.config.daemon.keep_checkpoints, self.config.daemon.keep_best);
            drop(remove_old_checkpoints(&newest, last, bests, &self.config.eval, &best)?);
            return Ok(JobOutcome::Stopped { step });
        }
        let (steps, loss) = (trainer.steps_done(), trainer.last_metrics().map(|last| last.loss));
        let model_step = put_best(&mut trainer, &checkpoints, &self.config.eval, &best)?;
        if model_step == steps {
            let vocab_size = trainer.model().config().vocab_size;
            trend.verdict(vocab_size, self.config.train.learning_rate)?;
        }
        let report = json!({
            "steps": steps,
            "model_step": model_step,
            "loss": loss,
            "eval": last_eval,
            "memory": memory::beside_plan(&plan, &self.ledger),
            "model": self.state.model(),
        });
        self.publish(job, &mut trainer, &base, &report, context)?;
        Ok(JobOutcome::Finished { report })
    }

    /// Puts what a run made in the place of the model that it began from.
    fn publish(
        &self,
        job: &ClaimedJob,
        trainer: &mut Trainer,
        base: &Path,
        report: &Value,
        context: &RunContext,
    ) -> Result<(), EngineError> {
        context.still_ours()?;
        let mut mark = mark(&job.job, &job.sha256, report);
        mark[origin::KEY] = json!(self.origin(base, context)?);
        write_merged_model(trainer, &self.state.model(), base, mark, context.progress)?;
        requeue(&self.state, context.store, job.job.id)
    }

    /// What everything descends from. A model of an earlier version does not say it; then it is what the
    /// directory was bound to, if that is configured still.
    fn origin(&self, base: &Path, context: &RunContext) -> Result<Option<Origin>, EngineError> {
        if self.is_base(base) {
            return Ok(Origin::of(&self.config, Some(base)));
        }
        if let Some(known) = Origin::of_newest(&self.state)? {
            return Ok(Some(known));
        }
        let configured = self.config.model.path.as_ref().map(|path| &path.0);
        let bound = context.store.binding()?.map(|bound| bound.base_model);
        if bound.as_ref() != configured {
            return Ok(None);
        }
        let folder = cached_model_folder(&self.config).ok();
        Ok(Origin::of(&self.config, folder.as_deref()))
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
            ready => &ready.inspect_err(end_where_gpu_is_lost)?.prepared,
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
            self.finished = Some(job.job.id);
            return Ok(JobOutcome::Finished { report });
        }
        let ready = match self.ready.take() {
            Some(ready) if ready.job_id == job.job.id => ready,
            _ => {
                match self.make_ready(job, context) {
                    Err(error) if error.is_a_stop() => return Ok(JobOutcome::Stopped { step: 0 }),
                    ready => drop(ready.inspect_err(end_where_gpu_is_lost)?),
                }
                self.ready.take().ok_or(EngineError::NoModel)?
            }
        };
        let outcome =
            self.ask_base(job, &ready, context).and_then(|()| self.learn(job, ready, context));
        memory::give_back();
        if outcome.as_ref().is_err_and(EngineError::is_a_stop) {
            return Ok(JobOutcome::Stopped { step: 0 });
        }
        if let Some((what, step)) = outcome.as_ref().err().and_then(EngineError::not_finite)
            && context.config.alerts.enabled
        {
            context.alert(&Alert::not_finite(what, step))?;
        }
        if matches!(outcome, Ok(JobOutcome::Finished { .. })) {
            self.finished = Some(job.job.id);
        }
        Ok(outcome.inspect_err(end_where_gpu_is_lost)?)
    }

    fn discard(&mut self, job: &ClaimedJob) -> Result<(), JobError> {
        self.ready = None;
        remove_if_there(&self.state.checkpoints_of(job.job.id)).map_err(JobError::from)
    }

    fn rest(&mut self) {
        memory::rest();
    }

    /// Of checkpoints only those of the job that has just finished stay: whatever else is begun goes
    /// on from another model than there is now. A snapshot a day is made of the newest model.
    fn tidy(&mut self) -> Result<(), JobError> {
        if let Some(finished) = self.finished {
            let kept = self.state.checkpoints_of(finished);
            for name in names_in(&self.state.checkpoints()) {
                let folder = self.state.checkpoints().join(&name);
                if name.starts_with("job-") && folder != kept {
                    remove_if_there(&folder)?;
                }
            }
        }
        Ok(make_snapshot(&self.state, self.config.daemon.keep_snapshots)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoints_of_the_job_that_finished_stay_whatever_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        state.init("").unwrap();
        let mut config = Config::default();
        config.daemon.keep_snapshots = 0;
        for job in [2, 9, 10] {
            std::fs::create_dir_all(state.checkpoints_of(job).join("checkpoint-5")).unwrap();
        }
        let (ledger, ready, finished) = (Ledger::new(), None, Some(9));
        let mut runner = EngineRunner { state: state.clone(), config, ledger, ready, finished };
        runner.tidy().unwrap();
        assert_eq!(names_in(&state.checkpoints()), ["job-9"]);
    }
}
