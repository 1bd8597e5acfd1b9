//! What a run is told, under the names that transformers' `TrainingArguments` use.

use serde::{Deserialize, Serialize};

use crate::Schedule;

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
        }
    }
}

impl TrainSettings {
    /// Steps of warm-up in a run of `total_steps`.
    pub fn warmup_of(&self, total_steps: u64) -> u64 {
        if self.warmup_steps > 0 {
            self.warmup_steps
        } else {
            (self.warmup_ratio * total_steps as f64).ceil() as u64
        }
    }
}
