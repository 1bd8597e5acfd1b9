//! Rotary position embedding (Su et al. 2021), in the half-split layout of transformers: the pair
//! of dimension `i` is `i + D/2`.

use candle_core::{D, Result, Tensor};

/// `x [N, H, D]`, `cos` and `sin` `[N, D/2]` (f32 or f64) → `x` rotated, in the dtype of `x`.
pub fn forward(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(x, cos, sin)
}

/// The gradient of the input: the rotation by the opposite angle.
///
/// A `cos`/`sin` pair that carries an attention factor (yarn) scales the gradient by it too, as it
/// must.
pub fn backward(dy: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(dy, cos, &sin.neg()?)
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let wide = x.to_dtype(cos.dtype())?;
    let (a, b) = (wide.narrow(D::Minus1, 0, half)?, wide.narrow(D::Minus1, half, half)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::DType;

    #[test]
    fn matches_the_composition() -> Result<()> {
        let angles = check::random(&[&[5, 3]], DType::F64)?.remove(0);
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        check::pair(
            &[&[5, 2, 6]],
            |x| {
                let (a, b) = (x[0].narrow(2, 0, 3)?, x[0].narrow(2, 3, 3)?);
                let turned = Tensor::cat(&[b.neg()?, a], 2)?;
                let twice = |t: &Tensor| Tensor::cat(&[t, t], 1)?.unsqueeze(1);
                x[0].broadcast_mul(&twice(&cos)?)? + turned.broadcast_mul(&twice(&sin)?)?
            },
            |x| forward(&x[0], &cos, &sin),
            |_, dy| Ok(vec![backward(dy, &cos, &sin)?]),
        )
    }
}
