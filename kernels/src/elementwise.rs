//! The sum of two tensors, as every residual connection takes it.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::cpu::{self, Real};
use crate::fresh::fresh;
use crate::profile::{self, Op};
use crate::{simd, tasks};

/// `a + b` of the same shape and dtype; on the CPU in f32 and bf16 by all threads.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let _timer = profile::over(Op::Other, 0, &[a, b, a]);
    if a.dims() != b.dims() {
        bail!("sum of {:?} and {:?}", a.dims(), b.dims());
    }
    match cpu::fast_dtype(&[a, b]) {
        Some(DType::BF16) => add_on_cpu::<bf16>(a, b),
        Some(_) => add_on_cpu::<f32>(a, b),
        #[cfg(feature = "cuda")]
        None if crate::cuda::on_gpu(&[a, b]) => crate::cuda::elementwise::add(a, b),
        None => a + b,
    }
}

fn add_on_cpu<T: Real>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let shape = a.shape();
    cpu::with([a, b], |[a, b]: [&[T]; 2]| {
        let mut sum = fresh::<T>(a.len())?;
        tasks::rows(1, [&mut sum], |first, [sum]| {
            let range = first..first + sum.len();
            let (a, b) = (&a[range.clone()], &b[range]);
            simd::vectorized(
                #[inline(always)]
                || add_slices(a, b, sum),
            );
        });
        cpu::tensor(sum, shape)
    })
}

#[inline(always)]
pub(crate) fn add_slices<T: Real>(a: &[T], b: &[T], sum: &mut [T]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum = T::narrow(a.wide() + b.wide());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_fast;

    #[test]
    fn is_the_sum() -> Result<()> {
        for shape in [&[3, 5][..], &[0, 4], &[301, 257]] {
            check_fast::agrees(&[shape, shape], |x| Ok(vec![add(&x[0], &x[1])?]))?;
        }
        let x = crate::check::random(&[&[3, 5], &[5, 3]], DType::F32)?;
        let turned = x[1].t()?;
        crate::check::close(&add(&x[0], &turned)?, &(&x[0] + &turned)?, 0.0)?;
        assert!(add(&x[0], &x[1]).is_err());
        Ok(())
    }
}
