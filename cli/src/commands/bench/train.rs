//! `chandler bench train`: optimizer steps on random tokens.

use std::path::{Path, PathBuf};
use std::time::Instant;

use chandler_data::Row;
use chandler_model::CausalLm;
use chandler_trainer::{
    BoxError, Control, MomentsDtype, Observer, Schedule, StepMetrics, TrainSettings, Trainer,
};
use chandler_vram::{Bytes, Choice, Ledger, choose, counting, plan};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::flops::train_flops_per_token;
use super::process::{self, ProcessStat};
use super::report::{self, About, Measured};
use super::{ModelArgs, profiled, shape, token_ids};
use crate::engine::{EngineError, buffers, model_shape, train_shape};
use crate::exit::Exit;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(in crate::commands) struct TrainArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Steps that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = super::at_least_one)]
    steps: usize,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

/// What a step is made of.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Tokens of a row
    #[arg(long, value_name = "T", default_value_t = 512, value_parser = at_least_two)]
    seq_len: usize,
    /// Rows of a step
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = super::at_least_one)]
    batch_size: usize,
    /// Blocks whose activations are kept; the others are computed again [default: all]
    #[arg(long, value_name = "N", conflicts_with = "budget")]
    kept_blocks: Option<usize>,
    /// Keep as many blocks as fit into so much memory, such as 4GiB; where not even none does, take
    /// smaller micro-batches, and more of them
    #[arg(long, value_name = "SIZE")]
    budget: Option<Bytes>,
    /// Keep no f32 weights beside bf16 ones: stochastic rounding, gradients in bf16
    #[arg(long)]
    no_master_weights: bool,
    /// The type of AdamW's moments
    #[arg(long, value_enum, default_value_t = Moments::F32)]
    moments: Moments,
    /// Move each block's weights as soon as its gradients are there
    #[arg(long)]
    optimizer_in_backward: bool,
}

/// As `train.moments` of the configuration.
#[derive(Debug, Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Moments {
    F32,
    Blockwise8,
}

fn at_least_two(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count >= 2 => Ok(count),
        _ => Err("a row of fewer than 2 tokens has nothing to predict".to_owned()),
    }
}

/// Batches of different tokens, as many as are gone through before they come again.
const BATCHES: usize = 8;
/// Of a row: a token's id and its label.
const TOKEN_BYTES: usize = 4 + 8;

pub(super) fn train(args: &TrainArgs) -> Result<Exit, Failure> {
    let TrainArgs { run, steps, json: as_json } = args;
    let model = run.model.build()?;
    let seconds_to_model = process::age().map(|age| age.as_secs_f64());
    counting::reset_high_water();
    let (choice, planned_peak_bytes) = run.plan(&model)?;
    let about_shape = shape::describe(&run.model.shape, &model);
    let tokens = run.batch_size * run.seq_len;
    let flops = tokens as f64 * train_flops_per_token(&model, run.seq_len);
    let rows = run.rows(model.config().vocab_size);
    let max_steps = Some(*steps as u64 + 1);
    let settings = TrainSettings { max_steps, ..run.settings(&choice) };
    let mut trainer =
        Trainer::new(model, &rows, settings, &Ledger::new()).map_err(EngineError::Train)?;

    let first = trainer.step().map_err(EngineError::Train)?.loss;
    let seconds_to_first_step = process::age().map(|age| age.as_secs_f64());
    let before = ProcessStat::read();
    let (Timed { seconds, losses, .. }, ops) = profiled(|| {
        let mut timed = Timed { last: Instant::now(), seconds: vec![], losses: vec![first] };
        trainer.train(&mut timed).map_err(EngineError::Train)?;
        Ok(timed)
    })?;
    let measured = Measured { tokens, flops, seconds, ops, before, after: ProcessStat::read() };
    let about = About {
        command: "train",
        shape: about_shape,
        settings: json!({
            "dtype": run.model.dtype,
            "mode": run.model.mode,
            "seq_len": run.seq_len,
            "batch_size": run.batch_size,
            "steps": steps,
            "kept_blocks": choice.kept_blocks,
            "micro_batches": choice.micro_batches,
            "master_weights": !run.no_master_weights,
            "moments": run.moments,
            "optimizer_in_backward": run.optimizer_in_backward,
            "budget_bytes": run.budget.map(|Bytes(bytes)| bytes),
        }),
        planned_peak_bytes,
        seconds_to_model,
        seconds_to_first_step,
        losses,
    };
    report::print(about, &measured, &run.model, *as_json)?;
    Ok(Exit::Ok)
}

/// What each step of a run took, from the end of the one before.
struct Timed {
    last: Instant,
    seconds: Vec<f64>,
    losses: Vec<f64>,
}

impl Observer for Timed {
    fn at_boundary(&mut self, _: u64, _: &CausalLm) -> Result<Control, BoxError> {
        Ok(Control::Continue)
    }

    fn metrics_may_be_late(&self, _: u64) -> bool {
        true
    }

    fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError> {
        let now = Instant::now();
        self.seconds.push((now - self.last).as_secs_f64());
        self.last = now;
        self.losses.push(metrics.loss);
        Ok(())
    }

    fn checkpoint_path(&mut self, _: u64) -> Result<Option<PathBuf>, BoxError> {
        Ok(None)
    }

    fn checkpoint_written(&mut self, _: u64, _: &Path) -> Result<(), BoxError> {
        Ok(())
    }
}

impl RunArgs {
    /// As many kept blocks as were asked for, or the way that the budget allows, and the peak that
    /// the plan says it has.
    pub(super) fn plan(&self, model: &CausalLm) -> Result<(Choice, u64), Failure> {
        let all = model.num_blocks();
        let whole = Choice {
            kept_blocks: self.kept_blocks.unwrap_or(all).min(all) as u64,
            micro_batch_rows: self.batch_size as u64,
            micro_batches: 1,
        };
        // Beside the step's own rows, those of all steps are there.
        let rows = (BATCHES * self.batch_size * self.seq_len * TOKEN_BYTES) as u64;
        let shape = model_shape(model);
        let mut peak = |choice: &Choice| {
            let documents = vec![self.seq_len; choice.micro_batch_rows as usize];
            let settings = self.settings(choice);
            let mut pool = buffers(!model.device().is_cpu());
            let train = train_shape(model, &settings, &documents, &mut pool);
            plan(&shape, &train, None, None).train_peak + rows
        };
        let Some(Bytes(budget)) = self.budget else { return Ok((whole, peak(&whole))) };
        let row_tokens = (!self.optimizer_in_backward).then_some(self.seq_len as u64);
        choose(whole, row_tokens, budget, &mut peak).map_err(|(_, least)| {
            let error = anyhow::anyhow!(
                "even with no kept block and the smallest micro-batch, the run needs {} of {}",
                Bytes(least),
                Bytes(budget)
            );
            let hint = "lower --batch-size or --seq-len, or take --mode lora".to_owned();
            Failure::new(Exit::DoesNotFit, error, Some(hint))
        })
    }

    /// How many steps there are is for the caller to say.
    pub(super) fn settings(&self, choice: &Choice) -> TrainSettings {
        TrainSettings {
            learning_rate: 1e-4,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            lr_scheduler_type: Schedule::Constant,
            per_device_train_batch_size: choice.micro_batch_rows as usize,
            gradient_accumulation_steps: choice.micro_batches as usize,
            shuffle: false,
            kept_blocks: Some(choice.kept_blocks as usize),
            master_weights: !self.no_master_weights,
            moments: match self.moments {
                Moments::F32 => MomentsDtype::F32,
                Moments::Blockwise8 => MomentsDtype::Blockwise8,
            },
            optimizer_in_backward: self.optimizer_in_backward,
            ..TrainSettings::default()
        }
    }

    pub(super) fn rows(&self, vocab_size: usize) -> Vec<Row> {
        let row = |number: usize| {
            let input_ids = token_ids(vocab_size, number as u64, self.seq_len);
            let labels = input_ids.iter().map(|id| i64::from(*id)).collect();
            Row { input_ids, labels, seq_lengths: vec![self.seq_len as u32], examples: 1 }
        };
        (0..BATCHES * self.batch_size).map(row).collect()
    }
}
