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

impl LowRank {
    /// `s·(x·Aᵀ)`, `[N, r]`: the scale where it is cheapest.
    fn narrow(self, params: &Params, x: &Tensor) -> Result<Tensor> {
        linear::forward(x, params.value(self.a), None)? * self.scale
    }
}

/// Where the layers that read one input leave its gradient.
#[derive(Debug)]
pub(crate) enum InputGradient {
    /// Nobody asks for it.
    Unwanted,
    /// Their sum so far.
    Sum(Option<Tensor>),
}

impl InputGradient {
    /// Asked for, or not.
    pub(crate) fn wanted(wanted: bool) -> Self {
        if wanted { Self::Sum(None) } else { Self::Unwanted }
    }

    fn add(&mut self, weight: &Tensor, dy: &Tensor) -> Result<()> {
        match self {
            Self::Unwanted => Ok(()),
            Self::Sum(Some(dx)) => linear::add_backward_input(dx, weight, dy),
            Self::Sum(first) => {
                *first = Some(linear::backward_input(weight, dy)?);
                Ok(())
            }
        }
    }

    /// The sum, where it was asked for.
    pub(crate) fn take(self) -> Option<Tensor> {
        match self {
            Self::Unwanted => None,
            Self::Sum(sum) => sum,
        }
    }
}

impl Linear {
    pub(crate) fn forward(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.map(|id| params.value(id));
        let y = linear::forward(x, params.value(self.weight), bias)?;
        if let Some(adapter) = self.adapter {
            let narrow = adapter.narrow(params, x)?;
            linear::add_forward(&y, &narrow, params.value(adapter.b))?;
        }
        Ok(y)
    }

    /// Adds the gradients of the trainable parameters, and that of the input to `dx`.
    pub(crate) fn backward(
        &self,
        params: &Params,
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut Gradients,
        dx: &mut InputGradient,
    ) -> Result<()> {
        let d_narrow = self.narrow_gradient(params, dy)?;
        self.input_gradient(params, dy, d_narrow.as_ref(), dx)?;
        self.parameter_gradients(params, x, dy, d_narrow.as_ref(), gradients)
    }

    /// The gradient of the adapter's `x·Aᵀ`, `[N, r]`, where there is an adapter.
    pub(crate) fn narrow_gradient(&self, params: &Params, dy: &Tensor) -> Result<Option<Tensor>> {
        let of =
            |adapter: LowRank| linear::backward_input(params.value(adapter.b), dy)? * adapter.scale;
        self.adapter.map(of).transpose()
    }

    /// Adds the gradient of the input to `dx`, which does not need the input itself.
    pub(crate) fn input_gradient(
        &self,
        params: &Params,
        dy: &Tensor,
        d_narrow: Option<&Tensor>,
        dx: &mut InputGradient,
    ) -> Result<()> {
        dx.add(params.value(self.weight), dy)?;
        match (self.adapter, d_narrow) {
            (Some(adapter), Some(d_narrow)) => dx.add(params.value(adapter.a), d_narrow),
            _ => Ok(()),
        }
    }

    /// Adds the gradients of the trainable parameters. A frozen weight costs nothing.
    pub(crate) fn parameter_gradients(
        &self,
        params: &Params,
        x: &Tensor,
        dy: &Tensor,
        d_narrow: Option<&Tensor>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        if params.trains(self.weight) {
            gradients.add_product(self.weight, x, dy)?;
        }
        if let Some(bias) = self.bias.filter(|bias| params.trains(*bias)) {
            gradients.add(bias, linear::backward_bias(dy)?)?;
        }
        let (Some(adapter), Some(d_narrow)) = (self.adapter, d_narrow) else { return Ok(()) };
        if params.trains(adapter.b) {
            gradients.add_product(adapter.b, &adapter.narrow(params, x)?, dy)?;
        }
        if params.trains(adapter.a) {
            gradients.add_product(adapter.a, x, d_narrow)?;
        }
        Ok(())
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
