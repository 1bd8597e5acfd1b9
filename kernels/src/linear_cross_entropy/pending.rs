//! A score that may still be on its way.

use candle_core::{Result, Tensor};

use super::Score;
#[cfg(feature = "cuda")]
use crate::cuda::later::Later;

/// What a pass has found. A GPU has been asked for it, and is asked for more before it is done: who
/// wants to know waits for what was handed over before the pass, and for nothing that came after it.
#[derive(Debug)]
pub struct Pending(State);

#[derive(Debug)]
enum State {
    Known(Score),
    #[cfg(feature = "cuda")]
    OnGpu {
        /// f64 `[2]`: the loss, and how many hits.
        found: Tensor,
        on_its_way: Later,
        num_targets: usize,
    },
}

impl Pending {
    pub(super) fn known(score: Score) -> Self {
        Self(State::Known(score))
    }

    /// The sum of the losses and how many targets are the most likely, f64 `[2]`, of so many.
    #[cfg(feature = "cuda")]
    pub(super) fn on_gpu(found: Tensor, num_targets: usize) -> Result<Self> {
        let on_its_way = Later::of(&found)?;
        Ok(Self(State::OnGpu { found, on_its_way, num_targets }))
    }

    /// Whether nobody has to be waited for.
    pub fn is_known(&self) -> bool {
        matches!(self.0, State::Known(_))
    }

    /// Where a GPU is still at it, the loss: the first of some f64.
    pub fn loss_on_gpu(&self) -> Option<&Tensor> {
        match &self.0 {
            State::Known(_) => None,
            #[cfg(feature = "cuda")]
            State::OnGpu { found, .. } => Some(found),
        }
    }

    /// The score, once the device has come so far.
    pub fn wait(self) -> Result<Score> {
        match self.0 {
            State::Known(score) => Ok(score),
            #[cfg(feature = "cuda")]
            State::OnGpu { on_its_way, num_targets, .. } => {
                let found = on_its_way.wait()?;
                let (loss_sum, num_correct) = (found[0], found[1] as usize);
                Ok(Score { loss_sum, num_targets, num_correct })
            }
        }
    }
}
