//! Gated feed-forward activations (Shazeer 2020): `act(gate) · up`, SwiGLU and GeGLU.

mod composed;
mod cpu;
mod gate;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::cpu::fast_dtype;
#[cfg(feature = "cuda")]
use crate::cuda::{activation as gpu, on_gpu};
use crate::profile::{self, Op};

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
    let _timer = profile::over(Op::Gated, 0, &[gate, up, gate]);
    same_shape(gate, up)?;
    match fast_dtype(&[gate, up]) {
        Some(DType::BF16) => cpu::forward::<bf16>(gate, up, activation),
        Some(_) => cpu::forward::<f32>(gate, up, activation),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[gate, up]) => gpu::forward(gate, up, activation),
        None => composed::forward(gate, up, activation),
    }
}

/// Gradients of `gate` and `up` from `dy [N, F]`.
pub fn backward(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let _timer = profile::over(Op::Gated, 0, &[gate, up, dy, gate, up]);
    same_shape(gate, up)?;
    same_shape(gate, dy)?;
    let [d_gate, d_up] = match fast_dtype(&[gate, up, dy]) {
        Some(DType::BF16) => cpu::backward::<bf16>(gate, up, activation, dy)?,
        Some(_) => cpu::backward::<f32>(gate, up, activation, dy)?,
        #[cfg(feature = "cuda")]
        None if on_gpu(&[gate, up, dy]) => gpu::backward(gate, up, activation, dy)?,
        None => return composed::backward(gate, up, activation, dy),
    };
    Ok((d_gate, d_up))
}

/// [`forward`]'s output and [`backward`]'s gradients of `gate` and `up` at once, in this order.
///
/// A feed-forward layer that does not keep `gated = act(gate) · up` needs it again for the weight
/// gradient of its last product, after `dy` is there: one pass computes all three.
pub fn backward_with_output(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let _timer = profile::over(Op::Gated, 0, &[gate, up, dy, gate, gate, up]);
    same_shape(gate, up)?;
    same_shape(gate, dy)?;
    let [gated, d_gate, d_up] = match fast_dtype(&[gate, up, dy]) {
        Some(DType::BF16) => cpu::backward_with_output::<bf16>(gate, up, activation, dy)?,
        Some(_) => cpu::backward_with_output::<f32>(gate, up, activation, dy)?,
        #[cfg(feature = "cuda")]
        None if on_gpu(&[gate, up, dy]) => gpu::backward_with_output(gate, up, activation, dy)?,
        None => {
            let gated = composed::forward(gate, up, activation)?;
            let (d_gate, d_up) = composed::backward(gate, up, activation, dy)?;
            [gated, d_gate, d_up]
        }
    };
    Ok((gated, d_gate, d_up))
}

fn same_shape(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() != b.dims() {
        bail!("a gated activation of {:?} and {:?}", a.dims(), b.dims());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, check_fast};
    use proptest::prelude::*;

    const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::GeluErf];

    #[test]
    fn matches_the_composition() -> Result<()> {
        for activation in ALL {
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

    /// Everything that there is.
    fn all(x: &[Tensor], activation: Activation) -> Result<Vec<Tensor>> {
        let (d_gate, d_up) = backward(&x[0], &x[1], activation, &x[2])?;
        let (gated, d_gate_again, d_up_again) =
            backward_with_output(&x[0], &x[1], activation, &x[2])?;
        let y = forward(&x[0], &x[1], activation)?;
        check_fast::same(&gated, &y)?;
        check_fast::same(&d_gate, &d_gate_again)?;
        check_fast::same(&d_up, &d_up_again)?;
        Ok(vec![y, d_gate, d_up])
    }

    /// With gates in (−15, 15).
    fn kernels_agree(rows: usize, width: usize) -> Result<()> {
        let shape = [rows, width];
        let mut inputs = check::random(&[&shape, &shape, &shape], DType::F64)?;
        inputs[0] = (&inputs[0] * 15.0)?;
        for activation in ALL {
            check_fast::agrees_on(&inputs, |x| all(x, activation))?;
        }
        Ok(())
    }

    #[test]
    fn kernels_agree_on_the_shapes_of_models() -> Result<()> {
        kernels_agree(1, 1536)?;
        kernels_agree(67, 1536)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn kernels_agree_on_ragged_shapes(rows in 0usize..20, width in 1usize..200) {
            kernels_agree(rows, width).expect("agrees");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> Result<()> {
        let x = check::random(&[&[4, 6], &[6, 4]], DType::F32)?;
        assert!(forward(&x[0], &x[1], Activation::Silu).is_err());
        assert!(backward(&x[0], &x[0], Activation::Silu, &x[1]).is_err());
        assert!(backward_with_output(&x[0], &x[1], Activation::Silu, &x[0]).is_err());
        Ok(())
    }
}
