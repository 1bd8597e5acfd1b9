//! `chandler bench train`: optimizer steps on random tokens.

use std::time::Instant;

use chandler_data::Row;
use chandler_model::CausalLm;
use chandler_trainer::{MomentsDtype, Schedule, TrainSettings, Trainer};
use chandler_vram::{Bytes, Ledger, Plan, counting};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::flops::train_flops_per_token;
use super::process::{self, ProcessStat};
use super::report::{self, About, Measured};
use super::{ModelArgs, profiled, shape, token_ids};
use crate::config::Config;
use crate::engine::{EngineError, plan_of};
use crate::exit::Exit;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(in crate::commands) struct TrainArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a row
    #[arg(long, value_name = "T", default_value_t = 512, value_parser = at_least_two)]
    seq_len: usize,
    /// Rows of a step
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = super::at_least_one)]
    batch_size: usize,
    /// Steps that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = super::at_least_one)]
    steps: usize,
    /// Blocks whose activations are kept; the others are computed again [default: all]
    #[arg(long, value_name = "N", conflicts_with = "budget")]
    kept_blocks: Option<usize>,
    /// Keep as many blocks as fit into so much memory, such as 4GiB
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
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
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

pub(super) fn train(args: &TrainArgs) -> Result<Exit, Failure> {
    let model = args.model.build()?;
    let seconds_to_model = process::age().map(|age| age.as_secs_f64());
    counting::reset_high_water();
    let plan = args.plan(&model)?;
    let kept_blocks = plan.kept_blocks;
    let about_shape = shape::describe(&args.model.shape, &model);
    let tokens = args.batch_size * args.seq_len;
    let flops = tokens as f64 * train_flops_per_token(&model, args.seq_len);
    let rows = args.rows(model.config().vocab_size);
    let settings = args.settings(Some(kept_blocks));
    let mut trainer =
        Trainer::new(model, &rows, settings, &Ledger::new()).map_err(EngineError::Train)?;

    let mut losses = vec![trainer.step().map_err(EngineError::Train)?.loss];
    let seconds_to_first_step = process::age().map(|age| age.as_secs_f64());
    let before = ProcessStat::read();
    let mut seconds = Vec::with_capacity(args.steps);
    let ((), ops) = profiled(|| {
        for _ in 0..args.steps {
            let started = Instant::now();
            losses.push(trainer.step().map_err(EngineError::Train)?.loss);
            seconds.push(started.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    let measured = Measured { tokens, flops, seconds, ops, before, after: ProcessStat::read() };
    let about = About {
        command: "train",
        shape: about_shape,
        settings: json!({
            "dtype": args.model.dtype,
            "mode": args.model.mode,
            "seq_len": args.seq_len,
            "batch_size": args.batch_size,
            "steps": args.steps,
            "kept_blocks": kept_blocks,
            "master_weights": !args.no_master_weights,
            "moments": args.moments,
            "optimizer_in_backward": args.optimizer_in_backward,
            "budget_bytes": args.budget.map(|Bytes(bytes)| bytes),
        }),
        planned_peak_bytes: plan.peak_bytes,
        seconds_to_model,
        seconds_to_first_step,
        losses,
    };
    report::print(about, &measured, &args.model, args.json)?;
    Ok(Exit::Ok)
}

/// The blocks to keep, and what the plan says of them.
struct Kept {
    kept_blocks: usize,
    peak_bytes: u64,
}

impl TrainArgs {
    /// As many kept blocks as were asked for, or as fit.
    fn plan(&self, model: &CausalLm) -> Result<Kept, Failure> {
        let all = model.num_blocks();
        let kept = |kept_blocks| {
            let plan = self.plan_with(model, kept_blocks);
            Kept { kept_blocks, peak_bytes: plan.train_peak }
        };
        let Some(Bytes(budget)) = self.budget else {
            return Ok(kept(self.kept_blocks.unwrap_or(all).min(all)));
        };
        let fitting = (0..=all).rev().map(kept).find(|kept| kept.peak_bytes <= budget);
        fitting.ok_or_else(|| {
            let least = Bytes(kept(0).peak_bytes);
            let error = anyhow::anyhow!(
                "even with no kept block, the run needs {least} of {}",
                Bytes(budget)
            );
            let hint = "lower --batch-size or --seq-len, or take --mode lora".to_owned();
            Failure::new(Exit::DoesNotFit, error, Some(hint))
        })
    }

    fn plan_with(&self, model: &CausalLm, kept_blocks: usize) -> Plan {
        let mut config = Config::default();
        config.data.max_length = self.seq_len;
        config.eval.eval_steps = 0;
        plan_of(&config, model, &self.settings(Some(kept_blocks)), None, None)
    }

    fn settings(&self, kept_blocks: Option<usize>) -> TrainSettings {
        TrainSettings {
            learning_rate: 1e-4,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            lr_scheduler_type: Schedule::Constant,
            max_steps: Some(self.steps as u64 + 1),
            per_device_train_batch_size: self.batch_size,
            shuffle: false,
            kept_blocks,
            master_weights: !self.no_master_weights,
            moments: match self.moments {
                Moments::F32 => MomentsDtype::F32,
                Moments::Blockwise8 => MomentsDtype::Blockwise8,
            },
            optimizer_in_backward: self.optimizer_in_backward,
            ..TrainSettings::default()
        }
    }

    fn rows(&self, vocab_size: usize) -> Vec<Row> {
        let row = |number: usize| {
            let input_ids = token_ids(vocab_size, number as u64, self.seq_len);
            let labels = input_ids.iter().map(|id| i64::from(*id)).collect();
            Row { input_ids, labels, seq_lengths: vec![self.seq_len as u32], examples: 1 }
        };
        (0..BATCHES * self.batch_size).map(row).collect()
    }
}
