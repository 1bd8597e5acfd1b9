//! Clipping without waiting: on a GPU the norm of the gradients and the factor that they are clipped by
//! stay on the device, which the steps behind them read there.

use candle_core::{DType, Device, Result, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::later::Later;
/// The GPU's side, or what a build without it has in its place.
#[cfg(feature = "cuda")]
use crate::cuda::norm as gpu;
use crate::memory;
#[cfg(not(feature = "cuda"))]
use crate::no_cuda as gpu;
use crate::profile::{self, Op};

/// Remembers on a GPU that a run has met a number that is none: no later step of it moves a weight, though
/// the host hands some over before it hears of it.
#[derive(Debug)]
pub struct Halt(
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU reads it"))] Tensor,
);

impl Halt {
    /// For a run that goes well so far; `None` on a device where the host looks before each step.
    pub fn new(device: &Device) -> Result<Option<Self>> {
        device.is_cuda().then(|| Ok(Self(memory::zeros(1, DType::U32, device)?))).transpose()
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn flag(&self) -> &Tensor {
        &self.0
    }
}

/// The norm of a step's gradients and the factor that clips them, which a GPU is working out.
#[derive(Debug)]
pub struct Clip {
    /// On its way to the host.
    #[cfg(feature = "cuda")]
    pub(crate) norm: Later,
    /// f32 `[1]`; NaN where nothing may move.
    #[cfg(feature = "cuda")]
    pub(crate) scale: Tensor,
    /// Without a GPU there is none.
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
}

impl Clip {
    /// PyTorch's coefficient for `gradients` of any norm above `max_norm`; 1 where that is 0. Where the
    /// norm, or a loss (the first of each of `losses`, f64) is no number, nothing moves from this step
    /// on. `None` where these are not tensors that the kernels of a GPU take.
    pub fn new(
        gradients: &[&Tensor],
        losses: &[&Tensor],
        max_norm: f64,
        halt: &Halt,
    ) -> Result<Option<Self>> {
        let _timer = profile::over(Op::Optimizer, 0, gradients);
        gpu::clip(gradients, losses, max_norm, halt)
    }

    /// The norm before clipping, once the device has come so far.
    pub fn norm(&self) -> Result<f64> {
        #[cfg(feature = "cuda")]
        return Ok(self.norm.wait()?.into_iter().sum());
        #[cfg(not(feature = "cuda"))]
        match self.never {}
    }
}
