//! What a step finds out about itself: at once on the CPU; on a GPU only when it has come so far.

use candle_core::Tensor;
use chandler_kernels::adamw::Clip;
use chandler_model::{ModelError, Pending, Score};

use crate::optimizer::Rate;
use crate::{LayerNorms, TrainError};

/// The scores of a step's passes.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    loss_sum: f64,
    /// Of each micro-batch.
    of_batch: Vec<Score>,
    /// Those which a GPU is still at, and of which micro-batch they are a part.
    pending: Vec<(usize, Pending)>,
}

impl Scores {
    /// The passes to come are of the next micro-batch.
    pub(crate) fn begin_batch(&mut self) {
        self.of_batch.push(Score::default());
    }

    pub(crate) fn push(&mut self, score: Pending) {
        self.pending.push((self.of_batch.len() - 1, score));
    }

    /// Takes in what is pending, in its order.
    pub(crate) fn wait(&mut self) -> Result<(), TrainError> {
        for (batch, score) in std::mem::take(&mut self.pending) {
            let score = score.wait().map_err(ModelError::from)?;
            self.loss_sum += score.loss_sum;
            self.of_batch[batch].add(score);
        }
        Ok(())
    }

    /// Whether nobody has to be waited for.
    pub(crate) fn are_known(&self) -> bool {
        self.pending.iter().all(|(_, score)| score.is_known())
    }

    /// The losses that a GPU is at.
    pub(crate) fn losses(&self) -> Vec<&Tensor> {
        self.pending.iter().filter_map(|(_, score)| score.loss_on_gpu()).collect()
    }

    /// The sum so far.
    pub(crate) fn loss_sum(&self) -> f64 {
        self.loss_sum
    }

    fn accuracy(&self) -> f64 {
        let of_batch = |score: &Score| score.num_correct as f64 / score.num_targets.max(1) as f64;
        self.of_batch.iter().map(of_batch).sum::<f64>() / self.of_batch.len() as f64
    }
}

/// The norm of a step's gradients.
#[derive(Debug)]
pub(crate) enum Norm {
    Known(f64),
    /// Of all gradients, or of each one for itself.
    OnGpu(Vec<Clip>),
}

impl Norm {
    /// Once the device has come so far.
    fn wait(&self) -> Result<f64, TrainError> {
        match self {
            Norm::Known(norm) => Ok(*norm),
            Norm::OnGpu(clips) => {
                let square = |clip: &Clip| Ok(clip.norm().map_err(ModelError::from)?.powi(2));
                let squares: Result<f64, TrainError> = clips.iter().map(square).sum();
                Ok(squares?.sqrt())
            }
        }
    }
}

/// What a step that was handed over finds.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) rate: Rate,
    /// What the loss of the global batch is divided by.
    pub(crate) items: usize,
    pub(crate) scores: Scores,
    pub(crate) norm: Norm,
    pub(crate) layers: Vec<LayerNorms>,
}

/// What a step has measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    /// Mean over the micro-batches.
    pub(crate) accuracy: f64,
    pub(crate) layers: Vec<LayerNorms>,
}

impl Found {
    /// Whether nobody has to be waited for.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self.norm, Norm::Known(_)) && self.scores.are_known()
    }

    /// All of it, once the device has come so far. An error where a number is none; then nothing has
    /// moved since.
    pub(crate) fn wait(mut self) -> Result<Measured, TrainError> {
        self.scores.wait()?;
        let loss = self.rate.finite("loss", self.scores.loss_sum() / self.items as f64)?;
        let grad_norm = self.rate.finite("gradient norm", self.norm.wait()?)?;
        let accuracy = self.scores.accuracy();
        Ok(Measured { loss, grad_norm, accuracy, layers: self.layers })
    }
}
