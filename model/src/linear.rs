//! A linear layer, with its adapter where it has one.

use candle_core::{Result, Tensor};
use chandler_kernels::{accumulation_dtype, linear};

use crate::params::{Gradients, ParamId, Params};

/// `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: ParamId,
    pub(crate) bias: Option<ParamId>,
    pub(crate) adapter: Option<LowRank>,
}

/// A LoRA adapter (Hu et al. 2021): `A [r, I]`, `B [O, r]`, factor `s`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LowRank {
    pub(crate) a: ParamId,
    pub(crate) b: ParamId,
    pub(crate) scale: f64,
}

impl Linear {
    pub(crate) fn forward(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.map(|id| params.value(id));
        let y = linear::forward(x, params.value(self.weight), bias)?;
        let Some(adapter) = self.adapter else { return Ok(y) };
        let narrow = linear::forward(x, params.value(adapter.a), None)?;
        y + (linear::forward(&narrow, params.value(adapter.b), None)? * adapter.scale)?
    }

    /// Adds the gradients of the trainable parameters and returns that of the input.
    pub(crate) fn backward(
        &self,
        params: &Params,
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        if params.trains(self.weight) {
            gradients.add(self.weight, linear::backward_weight(x, dy)?)?;
        }
        if let Some(bias) = self.bias.filter(|bias| params.trains(*bias)) {
            gradients.add(bias, linear::backward_bias(dy)?)?;
        }
        let dx = linear::backward_input(params.value(self.weight), dy)?;
        let Some(adapter) = self.adapter else { return Ok(dx) };
        let dy = (dy * adapter.scale)?;
        let d_narrow = linear::backward_input(params.value(adapter.b), &dy)?;
        if params.trains(adapter.b) {
            let narrow = linear::forward(x, params.value(adapter.a), None)?;
            gradients.add(adapter.b, linear::backward_weight(&narrow, &dy)?)?;
        }
        if params.trains(adapter.a) {
            gradients.add(adapter.a, linear::backward_weight(x, &d_narrow)?)?;
        }
        dx + linear::backward_input(params.value(adapter.a), &d_narrow)?
    }

    /// `W + s·B·A`, in the dtype of `W`.
    pub(crate) fn merged(&self, params: &Params) -> Result<Tensor> {
        let weight = params.value(self.weight);
        let Some(adapter) = self.adapter else { return Ok(weight.clone()) };
        let wide = accumulation_dtype(weight.dtype());
        let b = params.value(adapter.b).to_dtype(wide)?;
        let a = params.value(adapter.a).to_dtype(wide)?;
        (weight.to_dtype(wide)? + (b.matmul(&a)? * adapter.scale)?)?.to_dtype(weight.dtype())
    }
}
