//! From gradients to moved weights: the global norm, clipping, AdamW.
//!
//! Usually that comes after the backward pass. With the optimizer in the backward pass it comes
//! after each block, and what is known then is each parameter's own norm.

use candle_core::Tensor;
use chandler_model::{CausalLm, Gradients, ModelError, ParamId, Pending, Score};
use chandler_vram::{Category, Entry, Ledger, Shortage};

use crate::layers::LayerSums;
use crate::optimizer::{AdamW, Rate, clip_coefficient, global_norm, norm_of};
use crate::segments::Follower;
use crate::{LayerNorms, TrainError, TrainSettings};

/// The update of one step while its passes run.
pub(crate) struct Update<'a> {
    model: &'a CausalLm,
    optimizer: &'a AdamW,
    settings: &'a TrainSettings,
    ledger: &'a Ledger,
    rate: Rate,
    items: usize,
    loss_sum: f64,
    /// Of each micro-batch.
    scores: Vec<Score>,
    /// Those which a GPU is still at, and of which micro-batch they are a part.
    pending: Vec<(usize, Pending)>,
    /// Squares of the norms of the gradients that were used already.
    squares: f64,
    /// Whether some weights have moved already.
    moved: bool,
    /// What each layer measures, where this step is one to look.
    layers: Option<LayerSums>,
    activations: Entry,
    held: Entry,
}

/// What a step has measured.
pub(crate) struct Measured {
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    /// Mean over the micro-batches.
    pub(crate) accuracy: f64,
    pub(crate) layers: Vec<LayerNorms>,
}

impl<'a> Update<'a> {
    /// `items` is what the loss of the global batch is divided by.
    pub(crate) fn new(
        model: &'a CausalLm,
        optimizer: &'a AdamW,
        settings: &'a TrainSettings,
        ledger: &'a Ledger,
        rate: Rate,
        items: usize,
    ) -> Self {
        let (activations, held) =
            (ledger.enter(Category::Activations, 0), ledger.enter(Category::Gradients, 0));
        let (loss_sum, squares, moved) = (0.0, 0.0, false);
        let layers = settings.measures_layers(rate.step).then(|| LayerSums::new(model));
        Self {
            model,
            optimizer,
            settings,
            ledger,
            rate,
            items,
            loss_sum,
            scores: vec![],
            pending: vec![],
            squares,
            moved,
            layers,
            activations,
            held,
        }
    }

    /// The passes to come are of the next micro-batch.
    pub(crate) fn begin_batch(&mut self) {
        self.scores.push(Score::default());
    }

    /// The error of a pass, in which memory that was lacking is told from everything else.
    pub(crate) fn failed(&self, error: TrainError) -> TrainError {
        match error {
            TrainError::Model(ModelError::OutOfMemory { bytes }) => {
                let wanted = bytes.map(|bytes| bytes as u64);
                let shortage = Box::new(Shortage::in_heap(wanted, self.ledger.snapshot()));
                TrainError::OutOfMemory { step: self.rate.step, shortage, moved: self.moved }
            }
            other => other,
        }
    }

    /// Moves what has not been moved yet.
    pub(crate) fn finish(mut self, gradients: &Gradients) -> Result<Measured, TrainError> {
        // The device has to be waited for here, and nowhere before.
        let rest = global_norm(gradients)?;
        for (batch, score) in std::mem::take(&mut self.pending) {
            self.add(batch, score.wait().map_err(ModelError::from)?);
        }
        let loss = self.loss()?;
        let grad_norm = self.rate.finite("gradient norm", (self.squares + rest * rest).sqrt())?;
        if !self.settings.optimizer_in_backward {
            let clip = clip_coefficient(grad_norm, self.settings.max_grad_norm);
            self.step(|| gradients.iter(), clip)?;
        }
        let accuracy = self.accuracy();
        let layers = self.layers.map_or_else(Vec::new, LayerSums::norms);
        Ok(Measured { loss, grad_norm, accuracy, layers })
    }

    fn add(&mut self, batch: usize, score: Score) {
        self.loss_sum += score.loss_sum;
        self.scores[batch].add(score);
    }

    fn accuracy(&self) -> f64 {
        let of_batch = |score: &Score| score.num_correct as f64 / score.num_targets.max(1) as f64;
        self.scores.iter().map(of_batch).sum::<f64>() / self.scores.len() as f64
    }

    /// Moves the parameters of these gradients, and looks at their layers where that is due. What
    /// could fail for lack of memory comes first, while no weight has moved.
    fn step<'g, G>(&mut self, gradients: impl Fn() -> G, clip: f64) -> Result<(), TrainError>
    where
        G: Iterator<Item = (ParamId, &'g Tensor)>,
    {
        let Self { model, optimizer, settings, rate, .. } = *self;
        if let Some(layers) = &mut self.layers {
            gradients().try_for_each(|(id, gradient)| layers.add_gradient(id, gradient))?;
        }
        optimizer.step(model, gradients(), settings, rate, clip)?;
        if let Some(layers) = &mut self.layers {
            for one in gradients() {
                layers.add_move(one.0, optimizer.moved(model, one, settings, rate)?);
            }
        }
        Ok(())
    }

    fn loss(&self) -> Result<f64, TrainError> {
        self.rate.finite("loss", self.loss_sum / self.items as f64)
    }
}

impl Follower for Update<'_> {
    fn holds(&mut self, activations: usize, gradients: usize) {
        self.activations.set(activations as u64);
        self.held.set(gradients as u64);
    }

    fn scored(&mut self, score: Pending) -> Result<(), TrainError> {
        let batch = self.scores.len() - 1;
        // Weights that move in this pass must not follow a loss that is NaN.
        if score.is_known() || self.settings.optimizer_in_backward {
            self.add(batch, score.wait().map_err(ModelError::from)?);
            return self.loss().map(|_| ());
        }
        self.pending.push((batch, score));
        Ok(())
    }

    fn complete(&mut self, ids: &[ParamId], gradients: &mut Gradients) -> Result<(), TrainError> {
        if !self.settings.optimizer_in_backward {
            return Ok(());
        }
        for id in ids {
            let Some(gradient) = gradients.take(*id) else { continue };
            let norm = self.rate.finite("gradient norm", norm_of(&gradient)?)?;
            let clip = clip_coefficient(norm, self.settings.max_grad_norm);
            self.moved = true;
            self.step(|| std::iter::once((*id, &gradient)), clip)?;
            self.squares += norm * norm;
        }
        Ok(())
    }
}
