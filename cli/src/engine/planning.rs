//! From a model, its settings and its data to the shapes that a memory plan is made of.

use candle_core::DType;
use chandler_data::Dataset;
use chandler_kernels::rehearsal::Rehearsal;
use chandler_model::{CausalLm, PREFILL_TOKENS, Param, ParamId};
use chandler_trainer::{Fit, MomentsDtype, TrainSettings};
use chandler_vram::{Choice, EvalShape, ModelShape, Passing, Plan, TrainShape, choose, plan};

use super::device::wanted;
use super::eval_set::EvalSet;
use super::evaluation::Evaluation;
use super::memory;
use crate::config::Config;

/// What plans of a run have in common, whatever way its steps are cut.
pub(crate) struct Planning<'a> {
    config: &'a Config,
    pub(crate) model: &'a CausalLm,
    shape: ModelShape,
    evaluation: Option<&'a Evaluation>,
    /// The documents of the longest rows, the longest first.
    longest: Vec<Vec<usize>>,
    /// Bytes that the run may use; `None` if unknown.
    pub(crate) budget: Option<u64>,
    /// Whether it is to be on a GPU.
    pub(crate) on_gpu: bool,
    /// What the driver takes of the budget; nothing where the device is open and it has it already.
    pub(crate) context: u64,
}

impl<'a> Planning<'a> {
    /// Plans for the longest of `rows`, or for rows of `data.max_length` tokens, within what the
    /// machine and the configuration leave.
    pub(crate) fn new(
        config: &'a Config,
        model: &'a CausalLm,
        rows: Option<&Dataset>,
        evaluation: Option<&'a Evaluation>,
    ) -> Self {
        let longest = longest_rows(config, config.train.per_device_train_batch_size, rows);
        // The weights are there already.
        let budget = memory::budget(config, model.params().bytes() as u64);
        let on_gpu = wanted(config).is_some();
        let shape = model_shape(model);
        Self { config, model, shape, evaluation, longest, budget, on_gpu, context: 0 }
    }

    /// The plan of micro-batches of so many rows, with so many kept blocks at most.
    pub(crate) fn plan(&self, settings: &TrainSettings, choice: &Choice) -> Plan {
        let rows = choice.micro_batch_rows as usize;
        // Beyond the rows that there are, the same ones again.
        let documents: Vec<usize> =
            self.longest.iter().cycle().take(rows).flatten().copied().collect();
        let settings = TrainSettings {
            gradient_accumulation_steps: choice.micro_batches as usize,
            kept_blocks: Some(choice.kept_blocks as usize),
            ..settings.clone()
        };
        let mut pool = memory::buffers(self.on_gpu);
        let train = train_shape(self.model, &settings, &documents, &mut pool);
        let is_asked = |set: &EvalSet| set.writes_answers() || set.longest_row() > 0;
        let asks = self.evaluation.map_or(self.config.eval.samples > 0, |evaluation| {
            evaluation.sets.iter().any(is_asked)
        });
        let evaluates = self.config.eval.eval_steps > 0 && asks;
        let eval =
            evaluates.then(|| eval_shape(self.config, self.model, self.evaluation, &mut pool));
        let mut plan = plan(&self.shape, &train, eval.as_ref(), self.budget);
        if self.on_gpu {
            plan.checkpoint = 0;
        }
        if self.context > 0 { plan.with_context(self.context) } else { plan }
    }

    /// Tokens of a row, of the longest ones.
    fn row_tokens(&self) -> u64 {
        let tokens: usize = self.longest.iter().flatten().sum();
        (tokens / self.longest.len().max(1)) as u64
    }

    /// A global batch as the settings cut it.
    pub(crate) fn whole(&self, settings: &TrainSettings) -> Choice {
        let blocks = self.model.num_blocks();
        Choice {
            kept_blocks: settings.kept_blocks.unwrap_or(blocks).min(blocks) as u64,
            micro_batch_rows: settings.per_device_train_batch_size as u64,
            micro_batches: settings.gradient_accumulation_steps as u64,
        }
    }
}

/// How the steps of a run have to be cut to fit into its budget, and the plan of that; where
/// nothing fits, the plan of what needs the least.
pub(crate) fn fitting(planning: &Planning, settings: &TrainSettings) -> (Fit, Plan) {
    let whole = planning.whole(settings);
    let as_set = planning.plan(settings, &whole);
    let Some(budget) = planning.budget.filter(|budget| as_set.train_peak > *budget) else {
        return (Fit::default(), as_set);
    };
    let mut peak = |choice: &Choice| planning.plan(settings, choice).train_peak;
    // The optimizer in the backward pass goes with one micro-batch a step.
    let row_tokens = (!settings.optimizer_in_backward).then_some(planning.row_tokens());
    match choose(whole, row_tokens, budget, &mut peak) {
        Err((least, _)) => (Fit::default(), planning.plan(settings, &least)),
        Ok((choice, _)) => {
            let cut = |now: u64, before: u64| (now < before).then_some(now as usize);
            let fit = Fit {
                rows: cut(choice.micro_batch_rows, whole.micro_batch_rows),
                kept_blocks: cut(choice.kept_blocks, whole.kept_blocks),
            };
            (fit, planning.plan(settings, &choice))
        }
    }
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
    let gradient = if settings.master_weights { DType::F32 } else { model.dtype() };
    // What the first round leaves is what the others find.
    for _ in 0..2 {
        model.rehearse_step(pool, documents, gradient);
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
        passing: passing(pool),
    }
}

/// What an evaluation holds, by the largest of its sets; `pool` is what training leaves, and comes
/// to hold its buffers too.
fn eval_shape(
    config: &Config,
    model: &CausalLm,
    evaluation: Option<&Evaluation>,
    pool: &mut Rehearsal,
) -> EvalShape {
    let Some(evaluation) = evaluation else {
        let eval = &config.eval;
        let batch = eval.batch_size.min(eval.samples.max(1));
        let tokens = [config.data.max_length, eval.max_new_tokens];
        return answers_shape(model, batch, tokens, 0, pool);
    };
    let scored = evaluation.sets.iter().map(EvalSet::longest_row).max().unwrap_or(0);
    let writing = evaluation.sets.iter().filter(|set| set.writes_answers());
    let largest = writing.max_by_key(|set| set.bytes_needed(model, &set.options));
    let (batch, tokens) = largest.map_or((1, [1, 1]), |set| {
        let batch = set.options.batch_size.min(set.prompts().max(1));
        (batch, [set.longest_prompt(), set.options.max_new_tokens])
    });
    answers_shape(model, batch, tokens, scored, pool)
}

/// What `batch` answers to prompts hold, of so many tokens each, and scoring a row.
pub(crate) fn answers_shape(
    model: &CausalLm,
    batch: usize,
    [prompt, new_tokens]: [usize; 2],
    scored: usize,
    pool: &mut Rehearsal,
) -> EvalShape {
    // As in training, twice.
    for _ in 0..2 {
        if scored > 0 {
            model.rehearse_loss(pool, &[scored]);
        }
        model.rehearse_answers(pool, batch, [prompt, new_tokens]);
    }
    EvalShape {
        batch: batch as u64,
        tokens: (prompt + new_tokens) as u64,
        prompt_tokens: prompt as u64,
        prefill_tokens: PREFILL_TOKENS as u64,
        scored_tokens: scored as u64,
        workspace: pool.held_bytes() as u64,
        passing: passing(pool),
    }
}

/// What the ops that were rehearsed take while they work.
fn passing(pool: &mut Rehearsal) -> Passing {
    let most = pool.take_passing();
    Passing {
        norm: most.norm as u64,
        attention_forward: most.attention_forward as u64,
        attention_backward: most.attention_backward as u64,
        decode: most.decode as u64,
        loss: most.loss as u64,
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
