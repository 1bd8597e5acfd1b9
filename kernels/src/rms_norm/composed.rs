//! The same from candle's own ops: for f64, f16 and devices without a kernel here, and the oracle
//! of the kernels' tests.

use candle_core::{D, Result, Tensor};

use super::Params;
use crate::accumulation_dtype;

pub(super) fn forward(x: &Tensor, weight: &Tensor, params: Params) -> Result<Tensor> {
    let wide = x.to_dtype(accumulation_dtype(x.dtype()))?;
    let (normed, _) = normalise(&wide, params.eps)?;
    normed.broadcast_mul(&factor(weight, &wide, params)?)?.to_dtype(x.dtype())
}

pub(super) fn backward(
    x: &Tensor,
    weight: &Tensor,
    params: Params,
    dy: &Tensor,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let wide = x.to_dtype(accumulation_dtype(x.dtype()))?;
    let dy = dy.to_dtype(wide.dtype())?;
    let (normed, inv_rms) = normalise(&wide, params.eps)?;
    let g = dy.broadcast_mul(&factor(weight, &wide, params)?)?;
    let projection = (&g * &normed)?.mean_keepdim(D::Minus1)?;
    let dx = (g - normed.broadcast_mul(&projection)?)?.broadcast_mul(&inv_rms)?;
    let dw = if wants_weight {
        let width = weight.dim(0)?;
        Some((dy * normed)?.reshape(((), width))?.sum(0)?)
    } else {
        None
    };
    Ok((dx.to_dtype(x.dtype())?, dw))
}

fn normalise(wide: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let inv_rms = (mean_square + eps)?.sqrt()?.recip()?;
    Ok((wide.broadcast_mul(&inv_rms)?, inv_rms))
}

fn factor(weight: &Tensor, wide: &Tensor, params: Params) -> Result<Tensor> {
    let weight = weight.to_dtype(wide.dtype())?;
    if params.unit_offset { weight + 1.0 } else { Ok(weight) }
}
