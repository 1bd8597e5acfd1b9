//! The same from candle's own ops: for f64, f16 and devices without a kernel here, and the oracle
//! of the kernels' tests.

use candle_core::{Result, Tensor};

use super::Activation;
use crate::accumulation_dtype;

pub(super) fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let dtype = gate.dtype();
    let wide = gate.to_dtype(accumulation_dtype(dtype))?;
    let activated = match activation {
        Activation::Silu => wide.silu()?,
        Activation::GeluTanh => wide.gelu()?,
        Activation::GeluErf => wide.gelu_erf()?,
    };
    (activated * up.to_dtype(wide.dtype())?)?.to_dtype(dtype)
}

pub(super) fn backward(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let dtype = gate.dtype();
    let wide = gate.to_dtype(accumulation_dtype(dtype))?;
    let (up, dy) = (up.to_dtype(wide.dtype())?, dy.to_dtype(wide.dtype())?);
    let (value, slope) = match activation {
        Activation::Silu => silu(&wide)?,
        Activation::GeluTanh => gelu_tanh(&wide)?,
        Activation::GeluErf => gelu_erf(&wide)?,
    };
    let d_gate = (&dy * up)?.mul(&slope)?.to_dtype(dtype)?;
    let d_up = (dy * value)?.to_dtype(dtype)?;
    Ok((d_gate, d_up))
}

/// `x·σ(x)` and its derivative `σ(x)·(1 + x·(1 − σ(x)))`.
fn silu(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigmoid = (x.neg()?.exp()? + 1.0)?.recip()?;
    let value = (x * &sigmoid)?;
    let slope = (&sigmoid + (&value * (1.0 - &sigmoid)?)?)?;
    Ok((value, slope))
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// `0.5·x·(1 + tanh(u))`, `u = √(2/π)·(x + 0.044715·x³)`, and its derivative.
fn gelu_tanh(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let square = x.sqr()?;
    let inner = ((x * ((&square * CUBIC)? + 1.0)?)? * SQRT_2_OVER_PI)?;
    let tanh = inner.tanh()?;
    let half = ((&tanh + 1.0)? * 0.5)?;
    let d_inner = ((square * (3.0 * CUBIC))? + 1.0)?.affine(SQRT_2_OVER_PI, 0.0)?;
    let curve = ((1.0 - tanh.sqr()?)? * d_inner)?;
    let slope = (&half + (x * curve)?.affine(0.5, 0.0)?)?;
    Ok(((x * half)?, slope))
}

/// `x·Φ(x)` and its derivative `Φ(x) + x·φ(x)`, Φ and φ the standard normal's.
fn gelu_erf(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let cdf = ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?.affine(0.5, 0.0)?;
    let density = ((x.sqr()? * -0.5)?.exp()? * (SQRT_2_OVER_PI * 0.5))?;
    let slope = (&cdf + (x * density)?)?;
    Ok(((x * cdf)?, slope))
}
