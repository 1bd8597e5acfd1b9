//! Rotary position embedding (Su et al. 2021), in the half-split layout of transformers: the pair
//! of dimension `i` is `i + D/2`.

mod composed;
mod cpu;
mod normed;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::cpu::fast_dtype;
#[cfg(feature = "cuda")]
use crate::cuda::{on_gpu, rope as gpu, rope_normed};
use crate::profile::{self, Op};
use crate::rms_norm;

/// `x [N, H, D]`, `cos` and `sin` `[N, D/2]` (f32 or f64) → `x` rotated, in the dtype of `x`.
pub fn forward(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let _timer = profile::over(Op::Rope, 0, &[x, x]);
    match kernel_dtype(x, cos, sin)? {
        Some(DType::BF16) => cpu::rotate::<bf16>(x, cos, sin, 1.0),
        Some(_) => cpu::rotate::<f32>(x, cos, sin, 1.0),
        #[cfg(feature = "cuda")]
        None if takes_on_gpu(x, cos) => gpu::rotate(x, cos, sin, 1.0),
        None => composed::rotate(x, cos, sin),
    }
}

/// The gradient of the input: the rotation by the opposite angle.
///
/// A `cos`/`sin` pair that carries an attention factor (yarn) scales the gradient by it too, as it
/// must.
pub fn backward(dy: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let _timer = profile::over(Op::Rope, 0, &[dy, dy]);
    match kernel_dtype(dy, cos, sin)? {
        Some(DType::BF16) => cpu::rotate::<bf16>(dy, cos, sin, -1.0),
        Some(_) => cpu::rotate::<f32>(dy, cos, sin, -1.0),
        #[cfg(feature = "cuda")]
        None if takes_on_gpu(dy, cos) => gpu::rotate(dy, cos, sin, -1.0),
        None => composed::rotate(dy, cos, &sin.neg()?),
    }
}

/// [`rms_norm::forward`] over the heads of `raw [N, H, D]` by `weight [D]`, then [`forward`], in
/// one pass; what is between the two is not rounded.
pub fn forward_normed(
    raw: &Tensor,
    weight: &Tensor,
    norm: rms_norm::Params,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    let _timer = profile::over(Op::Rope, 0, &[raw, raw]);
    match normed_dtype(raw, weight, cos, sin)? {
        Some(DType::BF16) => normed::forward::<bf16>(raw, weight, norm, cos, sin),
        Some(_) => normed::forward::<f32>(raw, weight, norm, cos, sin),
        #[cfg(feature = "cuda")]
        None if takes_on_gpu(raw, cos) => rope_normed::forward(raw, weight, norm, [cos, sin]),
        None => forward(&rms_norm::forward(raw, weight, norm)?, cos, sin),
    }
}

/// Gradients of [`forward_normed`]: of `raw` (its dtype) and, if `wants_weight`, of the norm's
/// `weight` (`[D]`, f32 or f64), from `dy [N, H, D]`.
pub fn backward_normed(
    raw: &Tensor,
    weight: &Tensor,
    norm: rms_norm::Params,
    cos: &Tensor,
    sin: &Tensor,
    dy: &Tensor,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let _timer = profile::over(Op::Rope, 0, &[raw, dy, raw]);
    if dy.dims() != raw.dims() {
        bail!("rope of {:?} and dy {:?}", raw.dims(), dy.dims());
    }
    let same = fast_dtype(&[raw, dy]).is_some();
    match normed_dtype(raw, weight, cos, sin)?.filter(|_| same) {
        Some(DType::BF16) => {
            normed::backward::<bf16>(raw, weight, norm, [cos, sin], dy, wants_weight)
        }
        Some(_) => normed::backward::<f32>(raw, weight, norm, [cos, sin], dy, wants_weight),
        #[cfg(feature = "cuda")]
        None if takes_on_gpu(raw, cos) && on_gpu(&[raw, dy]) => {
            rope_normed::backward(raw, weight, norm, [cos, sin], dy, wants_weight)
        }
        None => rms_norm::backward(raw, weight, norm, &backward(dy, cos, sin)?, wants_weight),
    }
}

/// Whether there is a kernel of the GPU for these arguments, of which the shapes fit.
#[cfg(feature = "cuda")]
fn takes_on_gpu(x: &Tensor, cos: &Tensor) -> bool {
    on_gpu(&[x]) && on_gpu(&[cos]) && cos.dtype() == DType::F32 && x.elem_count() > 0
}

/// The dtype of the kernel for these arguments, if there is one.
fn kernel_dtype(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Option<DType>> {
    let (tokens, heads, head_dim) = x.dims3()?;
    if head_dim % 2 != 0 || [cos.dims(), sin.dims()] != [&[tokens, head_dim / 2]; 2] {
        bail!("rope of {:?} by cos {:?}, sin {:?}", x.dims(), cos.dims(), sin.dims());
    }
    let angles = fast_dtype(&[cos, sin]) == Some(DType::F32);
    Ok(fast_dtype(&[x]).filter(|_| angles && heads * head_dim > 0))
}

fn normed_dtype(
    raw: &Tensor,
    weight: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Option<DType>> {
    if weight.dims() != [raw.dim(2)?] {
        bail!("rope of {:?}, normed by {:?}", raw.dims(), weight.dims());
    }
    kernel_dtype(raw, cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{accumulation_dtype, check, check_fast};
    use candle_core::DType;
    use proptest::prelude::*;

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

    /// Everything that rope does with `[x, weight, dy, cos, sin]`.
    fn all(x: &[Tensor]) -> Result<Vec<Tensor>> {
        let [x, weight, dy, cos, sin] = x else { unreachable!("five inputs") };
        let angle = |t: &Tensor| t.to_dtype(accumulation_dtype(t.dtype()));
        let (cos, sin) = (angle(cos)?, angle(sin)?);
        let norm = rms_norm::Params { eps: 1e-3, unit_offset: true };
        let (dx, dw) = backward_normed(x, weight, norm, &cos, &sin, dy, true)?;
        let (dx_alone, none) = backward_normed(x, weight, norm, &cos, &sin, dy, false)?;
        check_fast::same(&dx, &dx_alone)?;
        assert!(none.is_none());
        Ok(vec![
            forward(x, &cos, &sin)?,
            backward(dy, &cos, &sin)?,
            forward_normed(x, weight, norm, &cos, &sin)?,
            dx,
            dw.expect("asked for"),
        ])
    }

    fn kernels_agree(tokens: usize, heads: usize, half: usize) -> Result<()> {
        let (x, angles) = ([tokens, heads, 2 * half], [tokens, half]);
        check_fast::agrees(&[&x, &[2 * half], &x, &angles, &angles], all)
    }

    #[test]
    fn kernels_agree_on_the_shapes_of_models() -> Result<()> {
        for (tokens, heads, half) in [(1, 8, 32), (150, 9, 32), (70, 4, 64), (40, 3, 128)] {
            kernels_agree(tokens, heads, half)?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn kernels_agree_on_ragged_shapes(n in 0usize..30, heads in 1usize..5, half in 1usize..90) {
            kernels_agree(n, heads, half).expect("agrees");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> Result<()> {
        let x = check::random(&[&[4, 2, 6], &[4, 3], &[3, 3], &[4, 2, 5], &[5]], DType::F32)?;
        let norm = rms_norm::Params { eps: 1e-5, unit_offset: false };
        assert!(forward(&x[0], &x[1], &x[2]).is_err());
        assert!(forward(&x[3], &x[1], &x[1]).is_err());
        assert!(forward_normed(&x[0], &x[4], norm, &x[1], &x[1]).is_err());
        assert!(backward_normed(&x[0], &x[4], norm, &x[1], &x[1], &x[3], true).is_err());
        Ok(())
    }
}
