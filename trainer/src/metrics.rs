//! What is known of a step when it is done.

use serde::Serialize;

use crate::LayerNorms;

/// One optimizer step, with the names that TRL's trainer logs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// Cross entropy summed over the global batch, divided by its labels.
    pub loss: f64,
    /// L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate that was used.
    pub lr: f64,
    /// Tokens trained on since the run began, this step's included.
    pub num_tokens: u64,
    /// Share of the trained tokens that the model would have named, averaged over micro-batches.
    pub mean_token_accuracy: f64,
    /// Passes over the data, this step's included.
    pub epoch: f64,
    /// Tokens of this step by its duration.
    pub tokens_per_s: f64,
    /// What each layer measured, in the model's order; empty where the step was not one to look,
    /// see [`TrainSettings::layer_norms_steps`](crate::TrainSettings::layer_norms_steps).
    pub layers: Vec<LayerNorms>,
}
