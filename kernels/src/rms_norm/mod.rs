//! Root-mean-square layer normalisation over the last dimension (Zhang and Sennrich 2019, eq. 4).

mod composed;
mod cpu;
mod sums;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::cpu::fast_dtype;
#[cfg(feature = "cuda")]
use crate::cuda::{on_gpu, rms_norm as gpu};
use crate::gpu_sizes;
use crate::profile::{self, Op};
use crate::rehearsal::Rehearsal;

pub(crate) use cpu::{Chunks, factor, input_gradient, scale, weight_gradient};
pub(crate) use sums::{Row, backward_sums, inv_rms, specialised};

/// What distinguishes one family's RMS norm from another's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Added to the mean square before the root.
    pub eps: f64,
    /// Gemma stores the weight as its distance from one: the factor is `1 + w`.
    pub unit_offset: bool,
}

/// `x [.., E]`, `weight [E]` → `x / rms(x) · weight`, in the dtype of `x`.
pub fn forward(x: &Tensor, weight: &Tensor, params: Params) -> Result<Tensor> {
    let _timer = profile::over(Op::RmsNorm, 0, &[x, x]);
    let width = width(x, weight)?;
    match fast_dtype(&[x]).filter(|_| width > 0) {
        Some(DType::BF16) => cpu::forward::<bf16>(x, weight, params),
        Some(_) => cpu::forward::<f32>(x, weight, params),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x]) && width > 0 => gpu::forward(x, weight, params),
        None => composed::forward(x, weight, params),
    }
}

/// The sum of `x` and `added [.., E]` in their dtype, and its [`forward`], in one pass:
/// `[sum, normed]`, with the bits that the sum and then the norm would have.
pub fn forward_add(
    x: &Tensor,
    added: &Tensor,
    weight: &Tensor,
    params: Params,
) -> Result<[Tensor; 2]> {
    let _timer = profile::over(Op::RmsNorm, 0, &[x, added, x, x]);
    let width = width(x, weight)?;
    if added.dims() != x.dims() || added.dtype() != x.dtype() {
        bail!("rms_norm of the sum of x {x:?} and {added:?}");
    }
    match fast_dtype(&[x, added]).filter(|_| width > 0) {
        Some(DType::BF16) => cpu::forward_add::<bf16>([x, added], weight, params),
        Some(_) => cpu::forward_add::<f32>([x, added], weight, params),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x, added]) && width > 0 => gpu::forward_add(x, added, weight, params),
        None => {
            let sum = (x + added)?;
            let normed = composed::forward(&sum, weight, params)?;
            Ok([sum, normed])
        }
    }
}

/// Gradients of `x` (its dtype) and, if `wants_weight`, of `weight` (`[E]`, f32 or f64), from the
/// saved input and the output gradient `dy [.., E]`.
///
/// With `x̂ = x / rms(x)` and `g = dy · w`: `dx = (g − x̂ · mean(g · x̂)) / rms(x)`,
/// `dw = Σ dy · x̂`.
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    params: Params,
    dy: &Tensor,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let _timer = profile::over(Op::RmsNorm, 0, &[x, dy, x]);
    match gradient_dtype(x, weight, dy)? {
        Some(DType::BF16) => {
            cpu::backward::<bf16>(x, weight, params, [dy, dy], false, wants_weight)
        }
        Some(_) => cpu::backward::<f32>(x, weight, params, [dy, dy], false, wants_weight),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x, dy]) && weight.elem_count() > 0 => {
            gpu::backward(x, weight, params, dy, None, wants_weight)
        }
        None => composed::backward(x, weight, params, dy, wants_weight),
    }
}

/// [`backward`] of a norm whose input also goes around it: `residual [.., E] + dx` in the place of
/// `dx`, in one pass and rounded once.
pub fn backward_add(
    x: &Tensor,
    weight: &Tensor,
    params: Params,
    dy: &Tensor,
    residual: &Tensor,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let _timer = profile::over(Op::RmsNorm, 0, &[x, dy, residual, x]);
    if residual.dims() != x.dims() || residual.dtype() != x.dtype() {
        bail!("rms_norm of x {x:?} beside a residual {residual:?}");
    }
    let dy_and_residual = [dy, residual];
    match gradient_dtype(x, weight, dy)? {
        Some(DType::BF16) => {
            cpu::backward::<bf16>(x, weight, params, dy_and_residual, true, wants_weight)
        }
        Some(_) => cpu::backward::<f32>(x, weight, params, dy_and_residual, true, wants_weight),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x, dy, residual]) && weight.elem_count() > 0 => {
            gpu::backward(x, weight, params, dy, Some(residual), wants_weight)
        }
        None => {
            let (dx, dw) = composed::backward(x, weight, params, dy, wants_weight)?;
            Ok(((residual + dx)?, dw))
        }
    }
}

/// Takes the buffers of [`forward`] or [`forward_add`] over rows of `[rows, width]`, and gives them
/// back.
pub fn rehearse_forward(pool: &mut Rehearsal, size: [usize; 2]) {
    if pool.is_of_gpu() {
        return;
    }
    cpu::rehearse_forward(pool, size);
}

/// Takes the buffers of [`backward`] over rows of `[rows, width]`, and gives them back.
pub fn rehearse_backward(pool: &mut Rehearsal, size: [usize; 2], wants_weight: bool) {
    if pool.is_of_gpu() {
        let bytes = gpu_sizes::norm_backward(size, wants_weight);
        return pool.pass(|passing| &mut passing.norm, bytes);
    }
    cpu::rehearse_backward(pool, size, wants_weight);
}

fn gradient_dtype(x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Option<DType>> {
    let width = width(x, weight)?;
    if dy.dims() != x.dims() {
        bail!("rms_norm of x {:?} and dy {:?}", x.dims(), dy.dims());
    }
    Ok(fast_dtype(&[x, dy]).filter(|_| width > 0))
}

fn width(x: &Tensor, weight: &Tensor) -> Result<usize> {
    match (x.dims(), weight.dims()) {
        ([.., width], [weights]) if width == weights => Ok(*width),
        (x, weight) => bail!("rms_norm of x {x:?} by a weight {weight:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, check_fast, elementwise};
    use candle_core::D;
    use proptest::prelude::*;

    #[test]
    fn matches_the_composition() -> Result<()> {
        for unit_offset in [false, true] {
            for shape in [&[5, 6][..], &[3, 2, 6]] {
                let params = Params { eps: 1e-3, unit_offset };
                check::pair(
                    &[shape, &[6]],
                    |x| {
                        let mean = x[0].sqr()?.mean_keepdim(D::Minus1)?;
                        let normed = x[0].broadcast_div(&(mean + params.eps)?.sqrt()?)?;
                        let offset = f64::from(u8::from(unit_offset));
                        normed.broadcast_mul(&(&x[1] + offset)?)
                    },
                    |x| forward(&x[0], &x[1], params),
                    |x, dy| {
                        let (dx, dw) = backward(&x[0], &x[1], params, dy, true)?;
                        Ok(vec![dx, dw.expect("asked for")])
                    },
                )?;
            }
        }
        Ok(())
    }

    /// Everything there is to a norm of `shape`: x, weight, dy, residual.
    fn all(x: &[Tensor], params: Params) -> Result<Vec<Tensor>> {
        let [x, weight, dy, residual] = x else { unreachable!("four inputs") };
        let (dx, dw) = backward(x, weight, params, dy, true)?;
        let (sum, dw_again) = backward_add(x, weight, params, dy, residual, true)?;
        let (dx_alone, none) = backward(x, weight, params, dy, false)?;
        assert!(none.is_none());
        check_fast::same(&dx, &dx_alone)?;
        let (dw, dw_again) = (dw.expect("asked for"), dw_again.expect("asked for"));
        check_fast::same(&dw, &dw_again)?;
        let y = forward(x, weight, params)?;
        let [added, normed] = forward_add(x, residual, weight, params)?;
        check_fast::same(&added, &elementwise::add(x, residual)?)?;
        check_fast::same(&normed, &forward(&added, weight, params)?)?;
        Ok(vec![y, dx, sum, dw, added])
    }

    #[test]
    fn kernels_agree_on_the_shapes_of_models() -> Result<()> {
        let cases: [&[usize]; 5] =
            [&[1, 512], &[300, 576], &[3, 8192], &[600, 3, 64], &[90, 5, 256]];
        for shape in cases {
            let width = shape[shape.len() - 1];
            for unit_offset in [false, true] {
                let params = Params { eps: 1e-5, unit_offset };
                check_fast::agrees(&[shape, &[width], shape, shape], |x| all(x, params))?;
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn kernels_agree_on_ragged_shapes(rows in 0usize..40, width in 1usize..200) {
            let (shape, params) = ([rows, width], Params { eps: 1e-2, unit_offset: false });
            check_fast::agrees(&[&shape, &[width], &shape, &shape], |x| all(x, params)).expect("agrees");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> Result<()> {
        let x = check::random(&[&[4, 6], &[5], &[6], &[3, 6]], candle_core::DType::F32)?;
        let params = Params { eps: 1e-5, unit_offset: false };
        assert!(forward(&x[0], &x[1], params).is_err());
        assert!(backward(&x[0], &x[2], params, &x[3], true).is_err());
        assert!(backward_add(&x[0], &x[2], params, &x[0], &x[3], true).is_err());
        assert!(forward_add(&x[0], &x[3], &x[2], params).is_err());
        assert!(forward_add(&x[0], &x[0], &x[1], params).is_err());
        Ok(())
    }
}
