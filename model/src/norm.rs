//! An RMS norm and its weight.

use candle_core::{Result, Tensor};
use chandler_kernels::rms_norm;

use crate::params::{Gradients, ParamId, Params};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) weight: ParamId,
    pub(crate) params: rms_norm::Params,
}

impl Norm {
    pub(crate) fn forward(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        rms_norm::forward(x, params.value(self.weight), self.params)
    }

    /// Adds the weight's gradient, where it is trained, and returns that of the input.
    pub(crate) fn backward(
        &self,
        params: &Params,
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let trains = params.trains(self.weight);
        let (dx, dw) = rms_norm::backward(x, params.value(self.weight), self.params, dy, trains)?;
        if let Some(dw) = dw {
            gradients.add(self.weight, dw)?;
        }
        Ok(dx)
    }
}
