//! AdamW from candle's own ops, for devices without a kernel here.

use candle_core::{Result, Tensor};

use super::{Coefficients, Params};

/// One step of `param` and its moments, f32, along `grad`.
pub(super) fn step(
    param: &Tensor,
    first_moment: &Tensor,
    second_moment: &Tensor,
    grad: &Tensor,
    params: Params,
) -> Result<()> {
    let Coefficients { keep, step_size, inv_root_correction, eps, .. } = Coefficients::new(params);
    let grad = (grad.to_dtype(param.dtype())? * params.grad_scale)?;
    let m = ((first_moment * params.beta1)? + (&grad * (1.0 - params.beta1))?)?;
    let v = ((second_moment * params.beta2)? + (grad.sqr()? * (1.0 - params.beta2))?)?;
    let denominator = ((v.sqrt()? * f64::from(inv_root_correction))? + f64::from(eps))?;
    let moved = ((m.div(&denominator)? * f64::from(-step_size))? + (param * f64::from(keep))?)?;
    first_moment.slice_set(&m, 0, 0)?;
    second_moment.slice_set(&v, 0, 0)?;
    param.slice_set(&moved, 0, 0)
}
