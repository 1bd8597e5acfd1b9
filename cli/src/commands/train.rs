//! `chandler train`: one run without a daemon.

use std::path::{Path, PathBuf};
use std::time::Instant;

use chandler_durable::Removal;
use chandler_trainer::{BoxError, Fit, Outcome, Trainer};
use chandler_vram::{Ledger, Phase};
use clap::Args;
use serde_json::{Value, json};

use super::App;
use super::metrics_file::MetricsFile;
use super::output_folder::{self, Earlier};
use crate::alerts::{Alert, RunAlerts};
use crate::config::Config;
use crate::daemon::Controls;
use crate::engine::{
    Around, Best, EngineError, GoneOn, Heard, Prepared, Request, Sink, Trend, Watch, Wish,
    base_name, checkpoint_bytes, clear_checkpoints, identity, leave_checkpoint, log_evaluation,
    measure_memory_anew, memory_beside_plan, memory_room, memory_room_for_copy, model_folder,
    prepare, put_best, remove_old_checkpoints, resume, told_on_gpu, write_output,
};
use crate::exit::Exit;
use crate::export::EventFile;
use crate::failure::Failure;
use crate::logging::{self, Progress, StepProgress};
use crate::signals;
use crate::store::{EvalRow, EvalSample, StepRow};

#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// The training files
    #[arg(long, required = true, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Where the model (or the adapter) and the checkpoints go
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Write one JSON object for each step to this file
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Go on training this peft adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Folder with eval sets (NAME.jsonl, and NAME.toml for how it is asked)
    #[arg(long, value_name = "DIR")]
    evals: Option<PathBuf>,
    /// Go on from the newest checkpoint in the output folder, if there is one
    #[arg(long)]
    resume: bool,
    /// Delete the checkpoints of an earlier run in the output folder, and write over its model
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
}

impl TrainArgs {
    fn earlier(&self) -> Earlier {
        match (self.resume, self.overwrite) {
            (true, _) => Earlier::GoneOnWith,
            (_, true) => Earlier::Overwritten,
            _ => Earlier::Refused,
        }
    }

    /// Refuses to write over what is of use, before anything is fetched, and once more when it is known
    /// where the model lies.
    fn check_output(&self, model: Option<&Path>) -> Result<(), Failure> {
        let inputs: Vec<&Path> = model.into_iter().chain(self.adapter.as_deref()).collect();
        output_folder::check(&self.output, &inputs, self.earlier())
    }
}

pub(super) fn train(app: &App, args: &TrainArgs) -> Result<Exit, Failure> {
    let config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    if let Some(metrics) = &args.metrics {
        MetricsFile::check(metrics)?;
    }
    let progress = Progress::new(&app.terminal);
    args.check_output(config.model.path.as_ref().map(|path| Path::new(&path.0)))?;
    let base = model_folder(&config, &progress)?;
    args.check_output(Some(&base))?;
    let _lock = output_folder::hold(&args.output)?;
    let prepared = prepare(&Request {
        config: &config,
        model_folder: &base,
        adapter: args.adapter.as_deref(),
        files: &args.data,
        sha256: None,
        cache_folder: &args.output.join("cache"),
        evals: args.evals.as_deref(),
        stop: &|| false,
        progress: &progress,
    })?;
    tracing::info!("memory plan:\n{}", prepared.plan);
    prepared.check_memory(&config)?;
    let Prepared { model, rows, settings, evaluation, total_steps, fit, plan, .. } = prepared;
    let ledger = Ledger::new();
    let trainer = Trainer::new(model, &rows, settings, &ledger).map_err(EngineError::from)?;
    let mut trainer = trainer.within(fit);
    ledger.begin(Phase::Train);
    measure_memory_anew()?;
    let base_id = identity(&base)?;
    let GoneOn { resumed_at, last_eval, best, trend } = if args.resume {
        resume(&mut trainer, &args.output, &base_id)?
    } else {
        clear_checkpoints(&args.output)?;
        GoneOn::default()
    };
    if trainer.fit() != Fit::default() {
        tracing::warn!("to fit into memory, {}", trainer.fit());
    }
    let metrics = args.metrics.as_deref();
    let metrics = metrics.map(|path| MetricsFile::open(path, trainer.steps_done())).transpose()?;
    let controls = Controls::default();
    signals::stop_on_signals(&controls)?;
    let stop = || controls.stop().is_requested();
    let room = || memory_room(&config);
    let room_for_copy = |step_bytes| memory_room_for_copy(&config, step_bytes);
    let mut alerts = RunAlerts::new(&config.alerts);
    // What the checkpoint knows of how well it was doing.
    if let Some(row) = &last_eval {
        alerts.evaluation(row);
    }
    let mut sink = FileSink {
        metrics,
        alerts,
        config: &config,
        progress: &progress,
        controls: &controls,
        keep: config.train.save_total_limit,
        removals: vec![],
        events: EventFile::wanted(&config, events_folder(&args.output)),
    };
    let mut watch = Watch {
        evaluation: &evaluation,
        sink: &mut sink,
        ledger: &ledger,
        stop: &stop,
        room: &room,
        room_for_copy: &room_for_copy,
        on_pressure: config.memory.on_pressure,
        total_steps,
        config: &config.eval,
        save_steps: config.train.save_steps as u64,
        checkpoints: args.output.clone(),
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
        progress: &progress,
    };
    let name = args.data[0].file_name().map_or_else(String::new, |n| n.to_string_lossy().into());
    progress.begin(&name, total_steps);
    let outcome = trainer.train(&mut watch).map_err(told_on_gpu);
    progress.end();
    let (extra, last_eval, best) = (watch.extra(), watch.last_eval.take(), watch.best.clone());
    let known = (last_eval.as_ref(), &best, watch.trend);
    memory_beside_plan(&plan, &ledger);
    let outcome = outcome.map_err(EngineError::from)?;
    if outcome == Outcome::Stopped {
        return stopped(app, &trainer, resumed_at, args, extra);
    }
    finished(app, &mut trainer, args, &base, &config, known)
}

fn stopped(
    app: &App,
    trainer: &Trainer,
    resumed_at: Option<u64>,
    args: &TrainArgs,
    extra: Value,
) -> Result<Exit, Failure> {
    let step = leave_checkpoint(trainer, &args.output, resumed_at, extra)?;
    app.print(
        &format!("stopped after step {step}; --resume goes on from there\n"),
        &json!({ "outcome": "stopped", "steps": step, "folder": args.output }),
    )?;
    Ok(Exit::Ok)
}

fn finished(
    app: &App,
    trainer: &mut Trainer,
    args: &TrainArgs,
    base: &Path,
    config: &Config,
    (last_eval, best, trend): (Option<&EvalRow>, &Best, Trend),
) -> Result<Exit, Failure> {
    let (step, place) = (trainer.steps_done(), args.output.display());
    let loss = trainer.last_metrics().map(|metrics| metrics.loss);
    let last = loss.map_or_else(String::new, |loss| format!(", last loss {loss:.4}"));
    let best = put_best(trainer, &args.output, &config.eval, best)?;
    let vocab_size = trainer.model().config().vocab_size;
    if best == step
        && let Err(diverged) = trend.verdict(vocab_size, config.train.learning_rate)
    {
        tracing::warn!("{diverged}");
    }
    let progress = Progress::new(&app.terminal);
    let model = config.model.path.as_ref().map_or("", |path| &path.0);
    let name = base_name(model, config.model.revision.as_deref());
    write_output(trainer, &args.output, base, &name, &progress)?;
    progress.end();
    let what = if trainer.model().lora().is_some() { "adapter" } else { "model" };
    let of = if best == step { String::new() } else { format!(" of step {best}") };
    app.print(
        &format!("{step} steps{last}; the {what}{of} is in {place}\n"),
        &json!({
            "outcome": "finished",
            "steps": step,
            "model_step": best,
            "loss": loss,
            "what": what,
            "folder": args.output,
            "eval": last_eval,
        }),
    )?;
    Ok(Exit::Ok)
}

struct FileSink<'a> {
    metrics: Option<MetricsFile>,
    alerts: RunAlerts,
    config: &'a Config,
    progress: &'a Progress,
    controls: &'a Controls,
    /// Checkpoints that stay; `None` keeps all.
    keep: Option<usize>,
    /// Of old checkpoints.
    removals: Vec<Removal>,
    events: Option<EventFile>,
}

/// Each start has a folder of event files for itself.
fn events_folder(output: &Path) -> PathBuf {
    output.join("runs").join(jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string())
}

fn tell(alerts: &[Alert]) {
    for alert in alerts {
        tracing::warn!(step = alert.step, "{alert}");
    }
}

impl Sink for FileSink<'_> {
    fn step(&mut self, row: &StepRow, progress: &StepProgress) -> Result<(), BoxError> {
        self.progress.step(progress);
        tell(&self.alerts.step(row));
        if let Some(events) = &mut self.events {
            events.step(row);
        }
        match &mut self.metrics {
            Some(metrics) => metrics.push(row),
            None => Ok(()),
        }
    }

    fn evaluating(&mut self, _now: bool) {}

    fn evaluated(&mut self, row: &EvalRow, samples: &[EvalSample]) -> Result<(), BoxError> {
        log_evaluation(self.config, row, samples);
        tell(&self.alerts.evaluation(row));
        if let Some(events) = &mut self.events {
            events.evaluated(row, samples);
        }
        Ok(())
    }

    fn trouble(&mut self, message: &str) -> Result<(), BoxError> {
        tracing::error!("{message}");
        Ok(())
    }

    fn memory(&mut self, message: &str) -> Result<(), BoxError> {
        tracing::warn!("{message}");
        Ok(())
    }

    fn fitted(&mut self, _fit: Fit) -> Result<(), BoxError> {
        Ok(())
    }

    fn checkpoint(&mut self, step: u64, path: &Path, best: &Best) -> Result<(), BoxError> {
        tracing::info!(step, "checkpoint {}", path.display());
        if let Some(keep) = self.keep {
            self.removals = remove_old_checkpoints(path, keep, 0, &self.config.eval, best)?;
        }
        Ok(())
    }

    fn is_awaited(&self) -> bool {
        false
    }

    fn wish(&mut self, _may_evaluate: bool) -> Wish {
        Wish { stop: self.controls.stop().is_requested(), eval: false }
    }
}
