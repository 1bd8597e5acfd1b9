//! Everything a run needs, made ready in one place for the daemon and for `chandler train`.

use std::path::{Path, PathBuf};

use chandler_data::{DataError, Dataset, TextPipeline, split_held_out};
use chandler_kernels::rehearsal::Rehearsal;
use chandler_model::{CausalLm, ModelConfig, PREFILL_TOKENS, Param, ParamId};
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
    let longest = longest_rows(config, settings.per_device_train_batch_size, rows);
    let documents: Vec<usize> = longest.concat();
    let mut pool = Rehearsal::default();
    let train = train_shape(model, settings, &documents, &mut pool);
    let evaluates = config.eval.eval_steps > 0 && config.eval.samples > 0;
    let eval = evaluates.then(|| eval_shape(config, model, evaluation, &mut pool));
    // The weights are there already.
    let budget = memory::budget(config, model.params().bytes() as u64);
    plan(&model_shape(model), &train, eval.as_ref(), budget)
}

/// The documents of as many of the longest rows as a micro-batch has; without data, rows of one
/// document.
fn longest_rows(config: &Config, count: usize, rows: Option<&Dataset>) -> Vec<Vec<usize>> {
    let Some(rows) = rows else { return vec![vec![config.data.max_length]; count] };
    let mut by_length: Vec<usize> = (0..rows.len()).collect();
    by_length.sort_by_key(|row| std::cmp::Reverse(rows.row_length(*row)));
    let documents = |row: &usize| match rows.row(*row) {
        Ok(read) => read.seq_lengths.iter().map(|length| *length as usize).collect(),
        // The run itself says what is wrong with it.
        Err(_) => vec![rows.row_length(*row)],
    };
    by_length.iter().take(count).map(documents).collect()
}

/// What training of `model` over micro-batches of these documents holds; `pool` comes to hold its
/// buffers.
pub(crate) fn train_shape(
    model: &CausalLm,
    settings: &TrainSettings,
    documents: &[usize],
    pool: &mut Rehearsal,
) -> TrainShape {
    let tokens = documents.iter().sum();
    // What the first round leaves is what the others find.
    for _ in 0..2 {
        model.rehearse_step(pool, documents);
    }
    TrainShape {
        micro_batch_tokens: tokens as u64,
        micro_batches: settings.gradient_accumulation_steps as u64,
        kept_blocks: settings.kept_blocks_of(model, tokens) as u64,
        master_weights: settings.master_weights,
        moment_bytes_per_256: match settings.moments {
            MomentsDtype::F32 => 2 * 4 * 256,
            MomentsDtype::Blockwise8 => 2 * (256 + 4),
        },
        optimizer_in_backward: settings.optimizer_in_backward,
        workspace: pool.held_bytes() as u64,
    }
}

/// What an evaluation holds; `pool` is what training leaves, and comes to hold its buffers too.
fn eval_shape(
    config: &Config,
    model: &CausalLm,
    evaluation: Option<&Evaluation>,
    pool: &mut Rehearsal,
) -> EvalShape {
    let questions = evaluation.map(|evaluation| &evaluation.questions);
    let prompt = questions.map_or(config.data.max_length, |questions| {
        questions.iter().map(|q| q.prompt_ids.len()).max().unwrap_or(0)
    });
    let count = questions.map_or(config.eval.samples, Vec::len);
    let scored = evaluation
        .and_then(|evaluation| evaluation.held_out.as_ref())
        .map_or(0, |rows| (0..rows.len()).map(|row| rows.row_length(row)).max().unwrap_or(0));
    let (batch, new_tokens) =
        (config.eval.batch_size.min(count.max(1)), config.eval.max_new_tokens);
    answers_shape(model, batch, [prompt, new_tokens], scored, pool)
}

/// What `batch` answers to prompts hold, of so many tokens each, and scoring a row.
pub(crate) fn answers_shape(
    model: &CausalLm,
    batch: usize,
    [prompt, new_tokens]: [usize; 2],
    scored: usize,
    pool: &mut Rehearsal,
) -> EvalShape {
    if scored > 0 {
        model.rehearse_loss(pool, &[scored]);
    }
    model.rehearse_answers(pool, batch, [prompt, new_tokens]);
    EvalShape {
        batch: batch as u64,
        tokens: (prompt + new_tokens) as u64,
        prompt_tokens: prompt as u64,
        prefill_tokens: PREFILL_TOKENS as u64,
        scored_tokens: scored as u64,
        workspace: pool.held_bytes() as u64,
    }
}

/// The shape of a model that trains what it says it trains.
pub(crate) fn model_shape(model: &CausalLm) -> ModelShape {
    let c = model.config();
    let count = |params: &mut dyn Iterator<Item = &Param>| -> u64 {
        params.map(|param| param.value.elem_count() as u64).sum()
    };
    let trained = |ids: Vec<ParamId>| {
        count(&mut ids.into_iter().map(|id| model.params().get(id)).filter(|p| p.trainable))
    };
    let block = |half: fn(&CausalLm, usize) -> Vec<ParamId>| {
        (0..model.num_blocks()).map(|index| trained(half(model, index))).max().unwrap_or(0)
    };
    let heads = model.params_of_loss_alone();
    let matrices = heads.into_iter().filter(|id| model.params().get(*id).value.rank() == 2);
    let trainable = || model.params().trainable().map(|(_, param)| param);
    ModelShape {
        params: count(&mut model.params().iter().map(|(_, param)| param)),
        trainable_params: count(&mut trainable()),
        trainable_vector_params: count(&mut trainable().filter(|param| param.value.rank() < 2)),
        trainable_head_params: trained(matrices.collect()),
        trainable_attention_params: block(CausalLm::attention_params),
        trainable_feed_forward_params: block(CausalLm::feed_forward_params),
        layers: c.layers.len() as u64,
        hidden: c.hidden_size as u64,
        intermediate: c.intermediate_size as u64,
        query_width: (c.num_attention_heads * c.head_dim) as u64,
        kv_width: (c.num_key_value_heads * c.head_dim) as u64,
        head_dim: c.head_dim as u64,
        vocab: c.vocab_size as u64,
        element_bytes: model.dtype().size_in_bytes() as u64,
        post_norms: c.post_norms,
        qk_norms: c.qk_norm,
        sliding_angles: c.sliding_rope.is_some(),
        capped_logits: c.final_logit_softcap.is_some(),
        adapter_rank: model.adapter_rank() as u64,
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
