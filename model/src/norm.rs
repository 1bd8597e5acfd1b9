//! An RMS norm and its weight.

use candle_core::{Result, Tensor};
use chandler_kernels::{rms_norm, rope};

use crate::params::{Gradients, ParamId, Params};
use crate::rope::Angles;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) weight: ParamId,
    pub(crate) params: rms_norm::Params,
}

impl Norm {
    pub(crate) fn forward(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        rms_norm::forward(x, params.value(self.weight), self.params)
    }

    /// `x + added`, and its norm.
    pub(crate) fn forward_add(
        &self,
        params: &Params,
        x: &Tensor,
        added: &Tensor,
    ) -> Result<[Tensor; 2]> {
        rms_norm::forward_add(x, added, params.value(self.weight), self.params)
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
        self.add_weight_gradient(dw, gradients)?;
        Ok(dx)
    }

    /// The same, with `residual` added to the gradient of the input: the other way that the
    /// gradient takes around the norm.
    pub(crate) fn backward_add(
        &self,
        params: &Params,
        x: &Tensor,
        dy: &Tensor,
        residual: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (weight, trains) = (params.value(self.weight), params.trains(self.weight));
        let (dx, dw) = rms_norm::backward_add(x, weight, self.params, dy, residual, trains)?;
        self.add_weight_gradient(dw, gradients)?;
        Ok(dx)
    }

    /// Over the heads of `raw [N, H, D]`, and then turned.
    pub(crate) fn forward_turned(
        &self,
        params: &Params,
        raw: &Tensor,
        angles: &Angles,
    ) -> Result<Tensor> {
        let weight = params.value(self.weight);
        rope::forward_normed(raw, weight, self.params, &angles.cos, &angles.sin)
    }

    /// Adds the weight's gradient, where it is trained, and returns that of `raw`.
    pub(crate) fn backward_turned(
        &self,
        params: &Params,
        raw: &Tensor,
        angles: &Angles,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (weight, trains) = (params.value(self.weight), params.trains(self.weight));
        let (cos, sin) = (&angles.cos, &angles.sin);
        let (dx, dw) = rope::backward_normed(raw, weight, self.params, cos, sin, dy, trains)?;
        self.add_weight_gradient(dw, gradients)?;
        Ok(dx)
    }

    fn add_weight_gradient(&self, dw: Option<Tensor>, gradients: &mut Gradients) -> Result<()> {
        dw.map_or(Ok(()), |dw| gradients.add(self.weight, dw))
    }
}
