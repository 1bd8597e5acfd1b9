//! From gradients to moved weights: the global norm, clipping, AdamW.
//!
//! Usually that comes after the backward pass. With the optimizer in the backward pass it comes
//! after each block, and what is known then is each parameter's own norm.

use candle_core::Tensor;
use chandler_kernels::adamw::Clip;
use chandler_model::{CausalLm, Gradients, ModelError, ParamId, Pending};
use chandler_vram::{Category, Entry, Ledger, Shortage};

use crate::found::{Found, Norm, Scores};
use crate::layers::LayerSums;
use crate::optimizer::{AdamW, Factor, Rate, clip_coefficient, global_norm, norm_of};
use crate::segments::Follower;
use crate::{TrainError, TrainSettings};

/// The update of one step while its passes run.
pub(crate) struct Update<'a> {
    model: &'a CausalLm,
    optimizer: &'a AdamW,
    settings: &'a TrainSettings,
    ledger: &'a Ledger,
    rate: Rate,
    items: usize,
    scores: Scores,
    /// Squares of the norms of the gradients that were used already.
    squares: f64,
    /// What clips them where a GPU works out each one's norm: then all of them are here.
    clips: Vec<Clip>,
    /// Whether some weights have moved already.
    moved: bool,
    /// What each layer measures, where this step is one to look.
    layers: Option<LayerSums>,
    activations: Entry,
    held: Entry,
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
        let (squares, moved) = (0.0, false);
        let layers = settings.measures_layers(rate.step).then(|| LayerSums::new(model));
        Self {
            model,
            optimizer,
            settings,
            ledger,
            rate,
            items,
            scores: Scores::default(),
            squares,
            clips: vec![],
            moved,
            layers,
            activations,
            held,
        }
    }

    /// The passes to come are of the next micro-batch.
    pub(crate) fn begin_batch(&mut self) {
        self.scores.begin_batch();
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

    /// Moves what has not been moved yet. A GPU is not waited for, unless each layer is measured.
    pub(crate) fn finish(mut self, gradients: &Gradients) -> Result<Found, TrainError> {
        let left: Vec<_> = gradients.iter().collect();
        if let Some(clip) = self.clip_on_gpu(&left)? {
            self.step(|| left.iter().copied(), Factor::OnGpu(&clip))?;
            self.clips.push(clip);
        }
        if !self.clips.is_empty() {
            let clips = std::mem::take(&mut self.clips);
            return Ok(self.found(Norm::OnGpu(clips)));
        }
        let rest = global_norm(gradients)?;
        self.scores.wait()?;
        self.check_loss()?;
        let grad_norm = self.rate.finite("gradient norm", (self.squares + rest * rest).sqrt())?;
        if !self.settings.optimizer_in_backward {
            let clip = clip_coefficient(grad_norm, self.settings.max_grad_norm);
            self.step(|| gradients.iter(), Factor::Known(clip))?;
        }
        Ok(self.found(Norm::Known(grad_norm)))
    }

    fn found(self, norm: Norm) -> Found {
        let layers = self.layers.map_or_else(Vec::new, LayerSums::norms);
        Found { rate: self.rate, items: self.items, scores: self.scores, norm, layers }
    }

    /// What clips these gradients, where a GPU works it out and nobody looks at layers meanwhile.
    fn clip_on_gpu(&self, gradients: &[(ParamId, &Tensor)]) -> Result<Option<Clip>, TrainError> {
        if self.layers.is_some() {
            return Ok(None);
        }
        let gradients: Vec<&Tensor> = gradients.iter().map(|(_, gradient)| *gradient).collect();
        self.optimizer.clip(&gradients, &self.scores.losses(), self.settings.max_grad_norm)
    }

    /// Moves the parameters of these gradients, and looks at their layers where that is due. What
    /// could fail for lack of memory comes first, while no weight has moved.
    fn step<'g, G>(&mut self, gradients: impl Fn() -> G, clip: Factor<'g>) -> Result<(), TrainError>
    where
        'a: 'g,
        G: Iterator<Item = (ParamId, &'g Tensor)>,
    {
        let Self { model, optimizer, settings, rate, .. } = *self;
        if let Some(layers) = &mut self.layers {
            layers.add_gradients(gradients())?;
        }
        optimizer.step(model, gradients(), settings, rate, clip)?;
        if let Some(layers) = &mut self.layers {
            for (id, moved) in optimizer.moved(model, gradients(), settings, rate)? {
                layers.add_move(id, moved);
            }
        }
        Ok(())
    }

    fn check_loss(&self) -> Result<(), TrainError> {
        self.rate.finite("loss", self.scores.loss_sum() / self.items as f64).map(|_| ())
    }
}

impl Follower for Update<'_> {
    fn holds(&mut self, activations: usize, gradients: usize) {
        self.activations.set(activations as u64);
        self.held.set(gradients as u64);
    }

    fn scored(&mut self, score: Pending) -> Result<(), TrainError> {
        let is_known = score.is_known();
        self.scores.push(score);
        // Weights that move in this pass must not follow a loss that is NaN: a GPU sees to that itself,
        // unless each layer is measured.
        if is_known || self.settings.optimizer_in_backward && self.layers.is_some() {
            self.scores.wait()?;
            self.check_loss()?;
        }
        Ok(())
    }

    fn complete(&mut self, ids: &[ParamId], gradients: &mut Gradients) -> Result<(), TrainError> {
        if !self.settings.optimizer_in_backward {
            return Ok(());
        }
        for id in ids {
            let Some(gradient) = gradients.take(*id) else { continue };
            if let Some(clip) = self.clip_on_gpu(&[(*id, &gradient)])? {
                self.moved = true;
                self.step(|| std::iter::once((*id, &gradient)), Factor::OnGpu(&clip))?;
                self.clips.push(clip);
                continue;
            }
            let norm = self.rate.finite("gradient norm", norm_of(&gradient)?)?;
            let clip = clip_coefficient(norm, self.settings.max_grad_norm);
            self.moved = true;
            self.step(|| std::iter::once((*id, &gradient)), Factor::Known(clip))?;
            self.squares += norm * norm;
        }
        Ok(())
    }
}
