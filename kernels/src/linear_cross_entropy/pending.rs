//! A score that may still be on its way.

use candle_core::{Result, Tensor};

use super::Score;
#[cfg(feature = "cuda")]
use super::gpu;

/// What a pass has found. A GPU has been asked for it, and is asked for more before it is done: who
/// wants to know waits for all of that.
#[derive(Debug)]
pub struct Pending(State);

#[derive(Debug)]
enum State {
    Known(Score),
    #[cfg(feature = "cuda")]
    OnGpu {
        losses: Tensor,
        hits: Tensor,
    },
}

impl Pending {
    pub(super) fn known(score: Score) -> Self {
        Self(State::Known(score))
    }

    /// Losses `[N]` in f32, and u32 `[N]` that are 1 where the target is the most likely.
    #[cfg(feature = "cuda")]
    pub(super) fn on_gpu(losses: Tensor, hits: Tensor) -> Self {
        Self(State::OnGpu { losses, hits })
    }

    /// Whether nobody has to be waited for.
    pub fn is_known(&self) -> bool {
        matches!(self.0, State::Known(_))
    }

    /// The loss of each trained token, f32 `[N]`, where a GPU is still at them.
    pub fn losses(&self) -> Option<&Tensor> {
        match &self.0 {
            State::Known(_) => None,
            #[cfg(feature = "cuda")]
            State::OnGpu { losses, .. } => Some(losses),
        }
    }

    /// The score, once the device has come so far.
    pub fn wait(self) -> Result<Score> {
        match self.0 {
            State::Known(score) => Ok(score),
            #[cfg(feature = "cuda")]
            State::OnGpu { losses, hits } => Ok(gpu::found(&losses, &hits)?.score()),
        }
    }
}
