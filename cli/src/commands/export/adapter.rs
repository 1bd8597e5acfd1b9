//! `chandler export adapter`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use chandler_durable::RealFs;
use chandler_model::{AdapterBase, LoraConfig, write_adapter};
use chandler_trainer::{checkpoint_step, checkpoint_weights};
use clap::Args;
use serde_json::{Value, json};

use super::{App, check_new};
use crate::config;
use crate::engine::{EngineError, base_name, in_new_folder, lora};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging;
use crate::output;
use crate::store::{JobState, RunState, Store, StoreError};

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
    base: AdapterBase,
}

pub(super) fn export(app: &App, args: &AdapterArgs) -> Result<Exit, Failure> {
    let configured = app.config(vec![])?.config;
    logging::init(&configured.log, &app.terminal, None)?;
    check_new(&args.output)?;
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
    let Some(rank) = rank else {
        let what = format!("{place} is of a run that trained all weights");
        return Err(usage(what, "`chandler export model DIR` writes its model"));
    };
    let Some(lora) = origin.config else {
        let what =
            format!("{place} has an adapter of rank {rank}, and lora.r is 0 in the configuration");
        return Err(usage(
            what,
            "a run with --adapter goes on with the scale of that adapter: set lora.r and \
             lora.lora_alpha as its adapter_config.json has them",
        ));
    };
    if lora.r != rank {
        let what = format!("{place} has rank {rank}, and lora.r is {}", lora.r);
        return Err(usage(
            what,
            "set lora.r, lora.lora_alpha and lora.use_rslora as the run had them",
        ));
    }
    in_new_folder(&args.output, |place| {
        Ok(write_adapter(&RealFs, place, &lora, &origin.base, &matrices, DType::F32)?)
    })?;
    let step = checkpoint_step(&origin.checkpoint);
    if args.json {
        output::print_json_line(&json!({
            "folder": args.output,
            "base": origin.base.name,
            "revision": origin.base.revision,
            "step": step,
            "r": rank,
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
    let given = args.base.as_deref().map(|base| base_name(base, None));
    let revision = configured.model.revision.as_deref();
    let path = configured.model.path.as_ref().map(|path| base_name(&path.0, revision));
    let base = given.or(path).ok_or_else(|| {
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
    let run = store.last_run_of(job)?.map(|run| run.id);
    let config = run.map(|run| store.run_config(run)).transpose()?.flatten();
    let revision = config.as_ref().and_then(|config| config.pointer("/model/revision")?.as_str());
    let is_first = !was_learned_before(&store, run.unwrap_or(i64::MAX))?;
    let bound = store.binding()?.filter(|_| is_first);
    let bound = bound.map(|binding| base_name(&binding.base_model, revision));
    let given = args.base.as_deref().map(|base| base_name(base, None));
    let base = given.or(bound).ok_or_else(|| {
        usage(
            format!("job {job} went on from what the jobs before it had learned"),
            "name the model that it began with, such as a snapshot, with --base; `chandler export \
             model DIR` writes the model with everything merged",
        )
    })?;
    let lora = config.and_then(lora_of);
    Ok(Origin { checkpoint, config: lora, base })
}

/// Whether the model had learned from a file before this run, which then began with what that left:
/// each run learns on from the model of the one before it, also where it is a job's second.
fn was_learned_before(store: &Store, run: i64) -> Result<bool, StoreError> {
    let runs = store.run_summaries(i64::MAX, i64::MAX as usize, None)?;
    let ended: Vec<_> = runs.iter().filter(|run| run.state == RunState::Done).collect();
    // A process that dies once its model is in place leaves a job that is done, and no run that is.
    let jobs = store.settled_jobs(i64::MAX as usize)?.into_iter();
    let jobs = jobs.filter(|job| job.state == JobState::Done).map(|job| job.id);
    let without_run: Vec<_> =
        jobs.filter(|job| !ended.iter().any(|run| run.job_id == Some(*job))).collect();
    let learned = runs.iter().filter(|other| other.id < run).any(|other| {
        other.state == RunState::Done || other.job_id.is_some_and(|job| without_run.contains(&job))
    });
    Ok(learned)
}

/// The adapter's settings of a run; its other sections may be of another version.
fn lora_of(mut config: Value) -> Option<LoraConfig> {
    let lora_section = serde_json::from_value(config.get_mut("lora")?.take()).ok()?;
    lora(&config::Config { lora: lora_section, ..config::Config::default() })
}

/// `12` of `…/job-12/checkpoint-300`.
fn job_of(checkpoint: &Path) -> Option<i64> {
    checkpoint.parent()?.file_name()?.to_str()?.strip_prefix("job-")?.parse().ok()
}

fn usage(what: String, hint: &str) -> Failure {
    Failure::new(Exit::Usage, anyhow::anyhow!(what), Some(hint.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn only_the_first_run_that_learned_began_with_the_original_base() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = |state| {
            let id = store.begin_run(None, 1, &Config::default()).unwrap();
            store.end_run(id, state, None).unwrap();
            id
        };
        let (failed, first) = (run(RunState::Failed), run(RunState::Done));
        let (again, next) = (run(RunState::Done), run(RunState::Failed));
        let learned = |id| was_learned_before(&store, id).unwrap();
        assert_eq!([failed, first, again, next].map(learned), [false, false, true, true]);
    }

    #[test]
    fn the_adapter_of_a_run_is_read_from_a_configuration_of_another_version() {
        let config = json!({ "lora": { "r": 4 }, "model": { "attn": "auto" } });
        assert_eq!(lora_of(config).unwrap().r, 4);
        assert!(lora_of(json!({ "lora": { "r": 0 } })).is_none());
    }
}
