//! Everything a run needs, made ready in one place for the daemon and for `chandler train`.

use std::path::{Path, PathBuf};

use chandler_data::{DataError, DataOptions, Dataset, split_held_out};
use chandler_model::{CausalLm, ModelConfig};
use chandler_trainer::{BatchPlan, Fit, TrainSettings};
use chandler_vram::{Bytes, Plan};

use super::EngineError;
use super::eval_set::{EvalSet, read_sets};
use super::evaluation::Evaluation;
use super::planning::{Planning, fitting};
use super::reading::{Reader, Text, questions_from};
use super::settings::{data_options, lora, train_settings};
use super::source::{load_model, stop_ids};
use crate::config::{Config, OnPressure};
use crate::logging::Progress;
use crate::worker::HeldOut;

/// What is to be trained on what.
pub(crate) struct Request<'a> {
    pub(crate) config: &'a Config,
    /// The model that learns.
    pub(crate) model_folder: &'a Path,
    /// An adapter to go on with.
    pub(crate) adapter: Option<&'a Path>,
    /// The training files.
    pub(crate) files: &'a [PathBuf],
    /// What the only file must have, where it was hashed before.
    pub(crate) sha256: Option<&'a str>,
    /// Where tokens are kept.
    pub(crate) cache_folder: &'a Path,
    /// Where eval sets lie, if anywhere.
    pub(crate) evals: Option<&'a Path>,
    /// Whether the run is no longer wanted.
    pub(crate) stop: &'a dyn Fn() -> bool,
    pub(crate) progress: &'a Progress,
}

/// A run that could begin.
pub(crate) struct Prepared {
    pub(crate) model: CausalLm,
    pub(crate) tokenizer_sha256: String,
    pub(crate) rows: Dataset,
    pub(crate) settings: TrainSettings,
    pub(crate) evaluation: Evaluation,
    /// How its steps are cut so that they fit.
    pub(crate) fit: Fit,
    pub(crate) plan: Plan,
    pub(crate) total_steps: u64,
}

/// Reads and checks model and data, and plans the memory.
pub(crate) fn prepare(request: &Request) -> Result<Prepared, EngineError> {
    let Request { config, model_folder, .. } = *request;
    let options = data_options(config, Some(ModelConfig::read(model_folder)?.vocab_size));
    let Text { rows: all, tokenizer, questions, questions_are_trained } = read(request, &options)?;
    report_data(&all, config);
    let (train, held_out) = split_held_out(all.len(), config.data.eval_split, config.data.seed);
    let held_out = (!held_out.is_empty()).then(|| all.select(&held_out));
    let train = all.select(&train);
    let rows = match options.packing {
        Some(packing) => train.packed(packing, options.max_length),
        None => train.clone(),
    };
    if rows.is_empty() {
        let (records, max_length) = (all.stats().records as usize, options.max_length);
        return Err(DataError::NothingToLearn { records, max_length }.into());
    }
    let model = load_trainable(request)?;
    let settings = train_settings(config);
    let total_steps = BatchPlan::new(rows.len(), &settings)?.total_steps();
    let tokenizer_sha256 = tokenizer.sha256().to_owned();
    let tokenizer = tokenizer.wait()?;
    let stops = stop_ids(model_folder, &model, &tokenizer)?;
    let of_file = all.cache_file().file_stem().unwrap_or_default().to_string_lossy();
    let own =
        EvalSet::own(config, questions, questions_are_trained, held_out, stops.clone(), &of_file)?;
    let mut sets = vec![own];
    if let Some(folder) = request.evals.filter(|_| config.eval.eval_steps > 0) {
        let reader = reader(request, &options);
        sets.extend(read_sets(folder, config, &reader, request.cache_folder, &stops)?);
    }
    let evaluation = Evaluation { sets, tokenizer, progress: request.progress.clone() };
    let planning = Planning::new(config, &model, Some(&rows), Some(&evaluation));
    let (fit, plan) = fitting(&planning, &settings);
    Ok(Prepared { model, tokenizer_sha256, rows, settings, evaluation, fit, plan, total_steps })
}

fn reader<'a>(request: &Request<'a>, options: &DataOptions) -> Reader<'a> {
    let Request { config, model_folder, stop, progress, .. } = *request;
    let vocab_size = options.vocab_size;
    Reader { vocab_size, stop, ..Reader::new(config, model_folder, progress) }
}

/// Has the files read, and the questions of the evaluations with them.
fn read(request: &Request, options: &DataOptions) -> Result<Text, EngineError> {
    let Request { config, files, sha256, cache_folder, .. } = *request;
    let reader = reader(request, options);
    let (share, seed) = (config.data.eval_split, config.data.seed);
    let questions = questions_from(config, HeldOut::Share { share, seed });
    reader.tokenize(files, sha256, options, cache_folder, Some(questions))
}

/// Loads a model that is to be trained: with the adapter to go on with, or a fresh one where
/// `lora.r` asks for it.
fn load_trainable(request: &Request) -> Result<CausalLm, EngineError> {
    let Request { config, model_folder, adapter, progress, .. } = *request;
    let mut model = load_model(config, model_folder, adapter, progress)?;
    if let (None, Some(lora)) = (adapter, lora(config)) {
        model.add_lora(lora, config.train.seed)?;
    }
    Ok(model)
}

fn report_data(all: &Dataset, config: &Config) {
    let stats = all.stats();
    tracing::info!(
        "{} records, {} tokens ({} trained); length p50 {} p90 {} p95 {} p99 {} max {}; {} cut at {}",
        stats.records,
        stats.tokens,
        stats.trained_tokens,
        stats.p50,
        stats.p90,
        stats.p95,
        stats.p99,
        stats.max,
        stats.cut,
        config.data.max_length,
    );
    if stats.untrained > 0 {
        tracing::warn!(
            "{} records are left out: the cut at data.max_length = {} leaves none of their tokens \
             to train",
            stats.untrained,
            config.data.max_length
        );
    }
    for bad in all.bad_lines() {
        tracing::warn!("left out: {bad}");
    }
}

impl Prepared {
    /// Refuses a run for which there is too little memory however its steps are cut. An evaluation
    /// that does not fit is cut when it comes, unless `memory.on_pressure` is `stop`.
    pub(crate) fn check_memory(&self, config: &Config) -> Result<(), EngineError> {
        let Some(available) = self.plan.budget else { return Ok(()) };
        let stops = config.memory.on_pressure == OnPressure::Stop;
        let needed = if stops { self.plan.peak } else { self.plan.train_peak };
        if needed <= available {
            return Ok(());
        }
        Err(EngineError::DoesNotFit {
            needed: Bytes(needed),
            available: Bytes(available),
            lacking: Bytes(needed - available),
            table: self.plan.to_string(),
        })
    }
}
