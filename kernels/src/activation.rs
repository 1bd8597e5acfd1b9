//! Gated feed-forward activations (Shazeer 2020): `act(gate) · up`, SwiGLU and GeGLU.

use candle_core::{Result, Tensor};

use crate::accumulation_dtype;

/// The gate's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU (`gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU by the error function (`gelu`).
    GeluErf,
}

/// `gate`, `up` `[N, F]` → `act(gate) · up`.
pub fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let dtype = gate.dtype();
    let wide = gate.to_dtype(accumulation_dtype(dtype))?;
    let activated = match activation {
        Activation::Silu => wide.silu()?,
        Activation::GeluTanh => wide.gelu()?,
        Activation::GeluErf => wide.gelu_erf()?,
    };
    (activated * up.to_dtype(wide.dtype())?)?.to_dtype(dtype)
}

/// Gradients of `gate` and `up` from `dy [N, F]`.
pub fn backward(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn matches_the_composition() -> Result<()> {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
            check::pair(
                &[&[5, 6], &[5, 6]],
                |x| {
                    let gate = match activation {
                        Activation::Silu => x[0].silu()?,
                        Activation::GeluTanh => {
                            let inner = ((x[0].powf(3.0)? * 0.044_715)? + &x[0])?;
                            let tanh = (inner * (2.0 / std::f64::consts::PI).sqrt())?.tanh()?;
                            ((&x[0] * 0.5)? * (tanh + 1.0)?)?
                        }
                        Activation::GeluErf => {
                            let erf = (&x[0] / 2f64.sqrt())?.erf()?;
                            ((&x[0] * 0.5)? * (erf + 1.0)?)?
                        }
                    };
                    gate * &x[1]
                },
                |x| forward(&x[0], &x[1], activation),
                |x, dy| backward(&x[0], &x[1], activation, dy).map(|(a, b)| vec![a, b]),
            )?;
        }
        Ok(())
    }
}
