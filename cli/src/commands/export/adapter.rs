//! `chandler export adapter`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use chandler_durable::{RealFs, create_folder_all};
use chandler_model::{LoraConfig, write_adapter};
use chandler_trainer::{checkpoint_step, checkpoint_weights};
use clap::Args;
use serde_json::{Value, json};

use super::App;
use crate::config;
use crate::engine::{EngineError, lora};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging;
use crate::output;
use crate::store::{JobState, Store};

#[derive(Debug, Args)]
pub(super) struct AdapterArgs {
    /// The new folder
    #[arg(value_name = "DIR")]
    output: PathBuf,
    /// The checkpoint of a run with lora.r above 0 [default: the newest of the state directory]
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// The model that the adapter was trained on [default: the configured one, for the first job]
    #[arg(long, value_name = "DIR|ID")]
    base: Option<String>,
    /// Say as JSON what was written
    #[arg(long)]
    json: bool,
}

/// Where an adapter comes from.
struct Origin {
    checkpoint: PathBuf,
    /// Rank, scale and layers that the run was configured with.
    config: Option<LoraConfig>,
    base: String,
}

pub(super) fn export(app: &App, args: &AdapterArgs) -> Result<Exit, Failure> {
    let configured = app.config(vec![])?.config;
    logging::init(&configured.log, &app.terminal, None)?;
    if args.output.join("adapter_config.json").exists() {
        let what = format!("{} already holds an adapter", args.output.display());
        return Err(usage(what, "name a new folder"));
    }
    let origin = match &args.checkpoint {
        Some(checkpoint) => outside(app, args, checkpoint, &configured)?,
        None => newest(app, args)?,
    };
    let weights = checkpoint_weights(&origin.checkpoint).map_err(EngineError::from)?;
    let matrices: Vec<(&str, &Tensor)> = weights
        .iter()
        .filter(|(name, _)| name.contains(".lora_"))
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let rank = matrices.iter().find(|(name, _)| name.contains(".lora_A")).map(|(_, a)| a.dims()[0]);
    let place = origin.checkpoint.display();
    let (Some(rank), Some(lora)) = (rank, origin.config) else {
        let what = format!("{place} is of a run that trained all weights");
        return Err(usage(what, "`chandler export model DIR` writes its model"));
    };
    if lora.r != rank {
        let what = format!("{place} has rank {rank}, and lora.r is {}", lora.r);
        return Err(usage(
            what,
            "set lora.r, lora.lora_alpha and lora.use_rslora as the run had them",
        ));
    }
    create_folder_all(&RealFs, &args.output).map_err(EngineError::from)?;
    write_adapter(&RealFs, &args.output, &lora, &origin.base, &matrices, DType::F32)
        .map_err(EngineError::from)?;
    let step = checkpoint_step(&origin.checkpoint);
    if args.json {
        output::print_json_line(&json!({
            "folder": args.output, "base": origin.base, "step": step, "r": rank,
        }))?;
    } else {
        let step = step.map_or_else(String::new, |step| format!(" after step {step}"));
        output::print(&format!("{}: the adapter{step}\n", args.output.display()))?;
    }
    Ok(Exit::Ok)
}

/// A checkpoint that was named; the configuration at hand says with what it was made.
fn outside(
    app: &App,
    args: &AdapterArgs,
    checkpoint: &Path,
    configured: &config::Config,
) -> Result<Origin, Failure> {
    if let (Some(job), Ok(state)) = (job_of(checkpoint), app.state()) {
        let ours = state.checkpoints_of(job).canonicalize();
        let parent =
            checkpoint.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned()));
        if parent.is_some() && parent == ours.ok() {
            return of_job(app, args, checkpoint.to_owned(), job);
        }
    }
    let path = configured.model.path.as_ref().map(|path| path.0.clone());
    let base = args.base.clone().or(path).ok_or_else(|| {
        usage("the adapter's base model is not known".to_owned(), "name it with --base")
    })?;
    Ok(Origin { checkpoint: checkpoint.to_owned(), config: lora(configured), base })
}

/// The newest checkpoint of the newest job that has any.
fn newest(app: &App, args: &AdapterArgs) -> Result<Origin, Failure> {
    let state = app.state()?;
    let folders = |parent: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let checkpoints = folders(&state.checkpoints()).into_iter().flat_map(|job| folders(&job));
    let found = checkpoints
        .filter_map(|path| Some((job_of(&path)?, checkpoint_step(&path)?, path)))
        .max_by_key(|(job, step, _)| (*job, *step));
    let Some((job, _, checkpoint)) = found else {
        let what = format!("{} has no checkpoint", state.root().display());
        return Err(usage(what, "name one with --checkpoint"));
    };
    of_job(app, args, checkpoint, job)
}

/// A checkpoint of the daemon: the database knows with what it was made.
fn of_job(app: &App, args: &AdapterArgs, checkpoint: PathBuf, job: i64) -> Result<Origin, Failure> {
    let store = Store::open(&app.state()?.database())?;
    let run = store.last_run_of(job)?;
    let config = run.map(|run| store.run_config(run.id)).transpose()?.flatten();
    let config: Option<config::Config> = config.and_then(as_config);
    // Each job learns on from the model that the one before it left.
    let done = store.settled_jobs(i64::MAX as usize)?;
    let is_first = !done.iter().any(|other| other.state == JobState::Done && other.id != job);
    let bound = store.binding()?.filter(|_| is_first).map(|binding| binding.base_model);
    let base = args.base.clone().or(bound).ok_or_else(|| {
        usage(
            format!("job {job} went on from what the jobs before it had learned"),
            "name the model that it began with, such as a snapshot, with --base; `chandler export \
             model DIR` writes the model with everything merged",
        )
    })?;
    Ok(Origin { checkpoint, config: config.as_ref().and_then(lora), base })
}

/// The configuration of a run, where this version still understands it.
fn as_config(value: Value) -> Option<config::Config> {
    serde_json::from_value(value).ok()
}

/// `12` of `…/job-12/checkpoint-300`.
fn job_of(checkpoint: &Path) -> Option<i64> {
    checkpoint.parent()?.file_name()?.to_str()?.strip_prefix("job-")?.parse().ok()
}

fn usage(what: String, hint: &str) -> Failure {
    Failure::new(Exit::Usage, anyhow::anyhow!(what), Some(hint.to_owned()))
}
