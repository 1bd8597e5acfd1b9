//! What a run is told, under the names that transformers' `TrainingArguments` use.

use candle_core::DType;
use chandler_model::CausalLm;
use chandler_vram::most_that_fits;
use serde::{Deserialize, Serialize};

use crate::{Schedule, TrainError};

/// The hyperparameters of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of AdamW's first moment.
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment.
    pub adam_beta2: f64,
    /// AdamW's ε.
    pub adam_epsilon: f64,
    /// Decoupled weight decay of everything but biases and norms.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global L2 norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// How the learning rate moves.
    pub lr_scheduler_type: Schedule,
    /// Steps over which the learning rate rises from 0. Overrides `warmup_ratio` if above 0.
    pub warmup_steps: u64,
    /// The same as a share of all steps, rounded up.
    pub warmup_ratio: f64,
    /// Optimizer steps in all; overrides `num_train_epochs`.
    pub max_steps: Option<u64>,
    /// Passes over the data; a fraction ends within a pass.
    pub num_train_epochs: f64,
    /// Rows of a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Micro-batches whose gradients add up to one optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Seed of the row order.
    pub seed: u64,
    /// Rows in a new random order each epoch; otherwise in the order of the data.
    pub shuffle: bool,
    /// Blocks, counted from the last, whose activations are kept from forward to backward pass;
    /// the others are computed again. `None` keeps all.
    pub kept_blocks: Option<usize>,
    /// Bytes that activations between the passes may take: blocks beyond it are computed again,
    /// however many `kept_blocks` allows.
    pub activation_budget: Option<u64>,
    /// How the optimizer keeps its moments.
    pub moments: MomentsDtype,
    /// Where the model computes in a narrower type: keep f32 weights beside it. Without them the
    /// weights are rounded stochastically, gradients of matrices are in the model's type too, and
    /// nothing of a matrix is kept in f32.
    pub master_weights: bool,
    /// Move each block's weights as soon as its gradients are there, and drop them: gradients never
    /// exist all at once, clipping is by parameter, and there is one micro-batch a step.
    pub optimizer_in_backward: bool,
    /// Steps between those that measure every layer, of which step 1 is the first; `None` or 0
    /// measures none. What is computed stays the same to the bit.
    pub layer_norms_steps: Option<u64>,
}

/// The type of AdamW's moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MomentsDtype {
    /// 8 bytes a parameter.
    #[default]
    F32,
    /// 8 bits with a scale for each block of 256, matrices only (Dettmers et al. 2022).
    Blockwise8,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            learning_rate: 2e-5,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            lr_scheduler_type: Schedule::Linear,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            max_steps: None,
            num_train_epochs: 3.0,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            seed: 42,
            shuffle: true,
            kept_blocks: None,
            activation_budget: None,
            moments: MomentsDtype::F32,
            master_weights: true,
            optimizer_in_backward: false,
            layer_norms_steps: None,
        }
    }
}

impl TrainSettings {
    /// Refuses what cannot be had together.
    pub(crate) fn check(&self, model: &CausalLm) -> Result<(), TrainError> {
        let bad = |key, value: &dyn std::fmt::Display, reason| {
            Err(TrainError::BadSetting { key, value: value.to_string(), reason })
        };
        let accumulates = self.gradient_accumulation_steps > 1;
        if self.optimizer_in_backward && accumulates {
            let reason = "the optimizer in the backward pass goes with one micro-batch a step";
            let steps = self.gradient_accumulation_steps;
            return bad("gradient_accumulation_steps", &steps, reason);
        }
        if !self.master_weights && model.dtype() != DType::BF16 {
            let reason = "weights are rounded stochastically to bf16 alone";
            return bad("master_weights", &self.master_weights, reason);
        }
        Ok(())
    }

    /// Blocks whose activations are kept for a micro-batch of `tokens` tokens.
    ///
    /// Within a budget: as many as fit beside the inputs of the others and one recomputed block.
    pub fn kept_blocks_of(&self, model: &CausalLm, tokens: usize) -> usize {
        let blocks = model.num_blocks();
        let most = self.kept_blocks.unwrap_or(blocks).min(blocks);
        let Some(budget) = self.activation_budget else { return most };
        let fits = |kept: usize| {
            let kept_bytes: usize =
                (blocks - kept..blocks).map(|index| model.saved_block_bytes(index, tokens)).sum();
            let inputs = (blocks - kept) * model.boundary_bytes(tokens);
            let recomputed = if kept < blocks { model.saved_block_bytes(0, tokens) } else { 0 };
            (kept_bytes + inputs).max(inputs + recomputed) as u64 <= budget
        };
        most_that_fits(most as u64, |kept| fits(kept as usize)) as usize
    }

    /// Whether `step`, from 1, measures every layer.
    pub(crate) fn measures_layers(&self, step: u64) -> bool {
        let every = self.layer_norms_steps.filter(|every| *every > 0);
        every.is_some_and(|every| step == 1 || step.is_multiple_of(every))
    }

    /// Steps of warm-up in a run of `total_steps`.
    pub fn warmup_of(&self, total_steps: u64) -> u64 {
        if self.warmup_steps > 0 {
            self.warmup_steps
        } else {
            (self.warmup_ratio * total_steps as f64).ceil() as u64
        }
    }
}
