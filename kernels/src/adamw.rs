//! AdamW (Loshchilov and Hutter 2019, algorithm 2), in place, as PyTorch computes it: decoupled
//! weight decay, bias-corrected moments, ε outside the root.

use candle_core::{CpuStorage, DType, InplaceOp2, InplaceOp3, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// Elements that one task works on.
const TASK: usize = 1 << 14;

/// The coefficients of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps including this one: 1 at the first.
    pub step: u64,
    /// Factor on the gradient (clipping).
    pub grad_scale: f64,
}

/// One step of `param`, `first_moment` and `second_moment` (f32, contiguous, same shape, all
/// updated in place) along `grad` (f32, same shape).
///
/// Every tensor that shares the storage of `param` sees the new values.
pub fn step(
    param: &Tensor,
    first_moment: &Tensor,
    second_moment: &Tensor,
    grad: &Tensor,
    params: Params,
) -> Result<()> {
    for tensor in [param, first_moment, second_moment, grad] {
        if tensor.dtype() != DType::F32 || tensor.dims() != param.dims() {
            bail!("adamw wants f32 {:?}, not {tensor:?}", param.dims());
        }
    }
    let grad = grad.contiguous()?;
    let Params { beta1, beta2, grad_scale, .. } = params;
    if !param.device().is_cpu() {
        return step_composed(param, first_moment, second_moment, &grad, params);
    }
    let first = Moment { decay: beta1 as f32, grad_scale: grad_scale as f32, square: false };
    let second = Moment { decay: beta2 as f32, grad_scale: grad_scale as f32, square: true };
    first_moment.inplace_op2(&grad, &first)?;
    second_moment.inplace_op2(&grad, &second)?;
    param.inplace_op3(first_moment, second_moment, &Move::new(params))
}

/// The same from candle's own ops, for devices without a kernel here.
fn step_composed(
    param: &Tensor,
    first_moment: &Tensor,
    second_moment: &Tensor,
    grad: &Tensor,
    params: Params,
) -> Result<()> {
    let Move { keep, step_size, inv_root_correction, eps } = Move::new(params);
    let grad = (grad * params.grad_scale)?;
    let m = ((first_moment * params.beta1)? + (&grad * (1.0 - params.beta1))?)?;
    let v = ((second_moment * params.beta2)? + (grad.sqr()? * (1.0 - params.beta2))?)?;
    let denominator = ((v.sqrt()? * f64::from(inv_root_correction))? + f64::from(eps))?;
    let moved = ((m.div(&denominator)? * f64::from(-step_size))? + (param * f64::from(keep))?)?;
    first_moment.slice_set(&m, 0, 0)?;
    second_moment.slice_set(&v, 0, 0)?;
    param.slice_set(&moved, 0, 0)
}

/// `m ← β·m + (1 − β)·g` or, of the square, `v ← β·v + (1 − β)·g²`.
struct Moment {
    decay: f32,
    grad_scale: f32,
    square: bool,
}

impl InplaceOp2 for Moment {
    fn name(&self) -> &'static str {
        "adamw-moment"
    }

    fn cpu_fwd(
        &self,
        moment: &mut CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<()> {
        let grad = contiguous(grad, grad_layout)?;
        let moment = contiguous_mut(moment, layout)?;
        let rest = 1.0 - self.decay;
        moment.par_chunks_mut(TASK).zip(grad.par_chunks(TASK)).for_each(|(moment, grad)| {
            for (m, g) in moment.iter_mut().zip(grad) {
                let g = g * self.grad_scale;
                let toward = if self.square { g * g } else { g };
                *m = self.decay * *m + rest * toward;
            }
        });
        Ok(())
    }
}

/// `p ← (1 − lr·λ)·p − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`.
struct Move {
    keep: f32,
    step_size: f32,
    inv_root_correction: f32,
    eps: f32,
}

impl Move {
    fn new(params: Params) -> Self {
        let Params { lr, beta1, beta2, eps, weight_decay, step, .. } = params;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            step_size: (lr / correction(beta1)) as f32,
            inv_root_correction: (1.0 / correction(beta2).sqrt()) as f32,
            eps: eps as f32,
        }
    }
}

impl InplaceOp3 for Move {
    fn name(&self) -> &'static str {
        "adamw-move"
    }

    fn cpu_fwd(
        &self,
        param: &mut CpuStorage,
        layout: &Layout,
        first: &CpuStorage,
        first_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
    ) -> Result<()> {
        let first = contiguous(first, first_layout)?;
        let second = contiguous(second, second_layout)?;
        let param = contiguous_mut(param, layout)?;
        let moments = first.par_chunks(TASK).zip(second.par_chunks(TASK));
        param.par_chunks_mut(TASK).zip(moments).for_each(|(param, (first, second))| {
            for ((p, m), v) in param.iter_mut().zip(first).zip(second) {
                let denominator = v.sqrt() * self.inv_root_correction + self.eps;
                *p = *p * self.keep - self.step_size * (m / denominator);
            }
        });
        Ok(())
    }
}

/// Sum of the squares of `tensor` (f32), in f64 and in an order that no thread count changes.
pub fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    if !tensor.device().is_cpu() {
        return Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        bail!("a tensor on the CPU has CPU storage");
    };
    let squares = |task: &[f32]| task.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    let partial: Vec<f64> = contiguous(storage, layout)?.par_chunks(TASK).map(squares).collect();
    Ok(partial.iter().sum())
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("adamw wants contiguous tensors"),
    }
}

fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("adamw wants contiguous f32 tensors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::Device;

    const PARAMS: Params = Params {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 0.5,
    };

    #[test]
    fn three_steps_match_the_formula_in_f64() -> Result<()> {
        let [p, g]: [Tensor; 2] =
            check::random(&[&[3, 7], &[3, 7]], DType::F32)?.try_into().expect("two");
        let (m, v) = (p.zeros_like()?, p.zeros_like()?);
        let mut expected: Vec<f64> = p.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let grads = g.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let (mut em, mut ev) = (vec![0f64; 21], vec![0f64; 21]);
        let shares = p.clone();
        for step_index in 1..=3 {
            step(&p, &m, &v, &g, Params { step: step_index, ..PARAMS })?;
            for i in 0..21 {
                let grad = grads[i] * PARAMS.grad_scale;
                em[i] = PARAMS.beta1 * em[i] + (1.0 - PARAMS.beta1) * grad;
                ev[i] = PARAMS.beta2 * ev[i] + (1.0 - PARAMS.beta2) * grad * grad;
                let m_hat = em[i] / (1.0 - PARAMS.beta1.powf(step_index as f64));
                let v_hat = ev[i] / (1.0 - PARAMS.beta2.powf(step_index as f64));
                expected[i] -= PARAMS.lr * PARAMS.weight_decay * expected[i];
                expected[i] -= PARAMS.lr * m_hat / (v_hat.sqrt() + PARAMS.eps);
            }
        }
        let expected = Tensor::from_vec(expected, (3, 7), &Device::Cpu)?;
        check::close(&expected, &p, 1e-6)?;
        check::close(&shares, &p, 0.0)
    }

    #[test]
    fn the_composed_path_agrees() -> Result<()> {
        let [p, g]: [Tensor; 2] =
            check::random(&[&[5, 4], &[5, 4]], DType::F32)?.try_into().expect("two");
        let copy = p.copy()?;
        let zeros = || p.zeros_like();
        let (m, v, cm, cv) = (zeros()?, zeros()?, zeros()?, zeros()?);
        for step_index in 1..=3 {
            let params = Params { step: step_index, ..PARAMS };
            step(&p, &m, &v, &g, params)?;
            step_composed(&copy, &cm, &cv, &g, params)?;
        }
        check::close(&p, &copy, 1e-6)?;
        check::close(&v, &cv, 1e-6)
    }

    #[test]
    fn the_norm_is_the_same_on_any_thread_count() -> Result<()> {
        let x = check::random(&[&[TASK * 3 + 5]], DType::F32)?.remove(0);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| sum_of_squares(&x))
        };
        let one = on(1)?;
        assert!(one > 1000.0);
        assert_eq!(one.to_bits(), on(4)?.to_bits());
        Ok(())
    }
}
