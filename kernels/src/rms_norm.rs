//! Root-mean-square layer normalisation over the last dimension (Zhang and Sennrich 2019, eq. 4).

use candle_core::{D, Result, Tensor};

use crate::accumulation_dtype;

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
    let wide = x.to_dtype(accumulation_dtype(x.dtype()))?;
    let (normed, _) = normalise(&wide, params.eps)?;
    normed.broadcast_mul(&factor(weight, &wide, params)?)?.to_dtype(x.dtype())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

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
}
