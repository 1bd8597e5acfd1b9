//! Everything a run needs, made ready in one place for the daemon and for `chandler train`.

use std::path::{Path, PathBuf};

use chandler_data::{DataError, Dataset, TextPipeline, split_held_out};
use chandler_kernels::{linear, linear_cross_entropy};
use chandler_model::{CausalLm, ModelConfig, Param};
use chandler_trainer::{BatchPlan, MomentsDtype, TrainSettings};
use chandler_vram::{EvalShape, ModelShape, Plan, TrainShape, plan};

use super::EngineError;
use super::evaluation::Evaluation;
use super::memory;
use super::settings::{data_options, generate_options, lora, train_settings};
use super::source::{load_model, stop_ids};
use crate::config::Config;

/// What is to be trained on what.
pub(crate) struct Request<'a> {
    pub(crate) config: &'a Config,
    /// The model that learns.
    pub(crate) model_folder: &'a Path,
    /// An adapter to go on with.
    pub(crate) adapter: Option<&'a Path>,
    /// The training files.
    pub(crate) files: &'a [PathBuf],
    /// Where tokens are kept.
    pub(crate) cache_folder: &'a Path,
}

/// A run that could begin.
pub(crate) struct Prepared {
    pub(crate) model: CausalLm,
    pub(crate) pipeline: TextPipeline,
    pub(crate) rows: Dataset,
    pub(crate) settings: TrainSettings,
    pub(crate) evaluation: Evaluation,
    pub(crate) plan: Plan,
    pub(crate) total_steps: u64,
}

/// Reads and checks model and data, and plans the memory.
pub(crate) fn prepare(request: &Request) -> Result<Prepared, EngineError> {
    let Request { config, model_folder, adapter, files, cache_folder } = *request;
    let pipeline = TextPipeline::open(model_folder)?;
    let shape = ModelConfig::read(model_folder)?;
    let options = data_options(config, Some(shape.vocab_size));
    let all = Dataset::open(files, &pipeline, &options, cache_folder, &mut |_| {})?;
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
    let model = load_trainable(config, model_folder, adapter)?;
    let settings = train_settings(config);
    let total_steps = BatchPlan::new(rows.len(), &settings)?.total_steps();
    let stops = stop_ids(model_folder, &model, &pipeline)?;
    let generate = generate_options(config, stops);
    let evaluation = Evaluation::new(config, &pipeline, &train, held_out, generate)?;
    let plan = plan_of(config, &model, &settings, Some(&rows), Some(&evaluation));
    Ok(Prepared { model, pipeline, rows, settings, evaluation, plan, total_steps })
}

/// Loads a model that is to be trained: with the adapter to go on with, or a fresh one where
/// `lora.r` asks for it.
pub(crate) fn load_trainable(
    config: &Config,
    folder: &Path,
    adapter: Option<&Path>,
) -> Result<CausalLm, EngineError> {
    let mut model = load_model(config, folder, adapter)?;
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

/// The memory that a run will use, against what the machine has.
pub(crate) fn plan_of(
    config: &Config,
    model: &CausalLm,
    settings: &TrainSettings,
    rows: Option<&Dataset>,
    evaluation: Option<&Evaluation>,
) -> Plan {
    let shape = model_shape(model);
    let longest = rows.map_or(config.data.max_length, |rows| {
        (0..rows.len()).map(|row| rows.row_length(row)).max().unwrap_or(0)
    });
    let train = train_shape(model, settings, longest * settings.per_device_train_batch_size);
    let evaluates = config.eval.eval_steps > 0 && config.eval.samples > 0;
    let eval = evaluates.then(|| {
        let questions = evaluation.map(|evaluation| &evaluation.questions);
        let longest = questions.map_or(config.data.max_length, |questions| {
            questions.iter().map(|q| q.prompt_ids.len()).max().unwrap_or(0)
        });
        let count = questions.map_or(config.eval.samples, Vec::len);
        EvalShape {
            batch: config.eval.batch_size.min(count.max(1)) as u64,
            tokens: (longest + config.eval.max_new_tokens) as u64,
        }
    });
    // The weights are there already.
    plan(&shape, &train, eval.as_ref(), memory::budget(config, model.params().bytes() as u64))
}

/// What training of `model` over micro-batches of `tokens` tokens holds.
pub(crate) fn train_shape(model: &CausalLm, settings: &TrainSettings, tokens: usize) -> TrainShape {
    let c = model.config();
    let (e, f) = (c.hidden_size, c.intermediate_size);
    let products = [[e, f], [f, e], [e, c.num_attention_heads * c.head_dim]]
        .map(|[i, o]| linear::workspace_bytes(tokens, i, o, model.dtype()));
    TrainShape {
        micro_batch_tokens: tokens as u64,
        kept_blocks: settings.kept_blocks_of(model, tokens) as u64,
        master_weights: settings.master_weights,
        moment_bytes_per_256: match settings.moments {
            MomentsDtype::F32 => 2 * 4 * 256,
            MomentsDtype::Blockwise8 => 2 * (256 + 4),
        },
        optimizer_in_backward: settings.optimizer_in_backward,
        loss_workspace: linear_cross_entropy::workspace_bytes(
            tokens,
            c.vocab_size,
            c.hidden_size,
            model.dtype(),
        ) as u64,
        op_workspace: products.into_iter().max().unwrap_or(0) as u64,
    }
}

/// The shape of a model that trains what it says it trains.
pub(crate) fn model_shape(model: &CausalLm) -> ModelShape {
    let c = model.config();
    let all = |params: &mut dyn Iterator<Item = &Param>| -> u64 {
        params.map(|param| param.value.elem_count() as u64).sum()
    };
    let of_block = |index: usize| {
        let ids = model.block_params(index).into_iter();
        all(&mut ids.map(|id| model.params().get(id)).filter(|param| param.trainable))
    };
    ModelShape {
        params: all(&mut model.params().iter().map(|(_, param)| param)),
        trainable_params: all(&mut model.params().trainable().map(|(_, param)| param)),
        trainable_block_params: (0..model.num_blocks()).map(of_block).max().unwrap_or(0),
        layers: c.layers.len() as u64,
        hidden: c.hidden_size as u64,
        intermediate: c.intermediate_size as u64,
        query_width: (c.num_attention_heads * c.head_dim) as u64,
        kv_width: (c.num_key_value_heads * c.head_dim) as u64,
        vocab: c.vocab_size as u64,
        element_bytes: model.dtype().size_in_bytes() as u64,
        post_norms: c.post_norms,
    }
}

impl Prepared {
    /// Refuses a run whose plan is beyond the memory that there is.
    pub(crate) fn check_memory(&self) -> Result<(), EngineError> {
        match (self.plan.fits, self.plan.budget) {
            (Some(false), Some(budget)) => Err(EngineError::DoesNotFit {
                needed: chandler_vram::Bytes(self.plan.peak),
                available: chandler_vram::Bytes(budget),
                table: self.plan.to_string(),
            }),
            _ => Ok(()),
        }
    }
}
