//! A bias added to every row, and its gradient: the sum over rows.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::cpu::{self, Real};
use crate::{accumulation_dtype, simd};

/// Rows that one task works on.
const ROWS: usize = 128;

/// Adds `bias [O]` to every row of `y [N, O]`: in place where there is a kernel.
pub(crate) fn add(y: Tensor, bias: &Tensor) -> Result<Tensor> {
    if y.dim(1)? != bias.elem_count() {
        bail!("a bias {:?} for {:?}", bias.dims(), y.dims());
    }
    match cpu::fast_dtype(&[&y, bias]) {
        Some(DType::BF16) => add_in_place::<bf16>(&y, bias)?,
        Some(_) => add_in_place::<f32>(&y, bias)?,
        #[cfg(feature = "cuda")]
        None if crate::cuda::on_gpu(&[&y, bias]) => crate::cuda::elementwise::add_bias(&y, bias)?,
        None => return y.broadcast_add(bias),
    }
    Ok(y)
}

fn add_in_place<T: Real>(y: &Tensor, bias: &Tensor) -> Result<()> {
    cpu::with([bias], |[bias]: [&[T]; 1]| {
        let width = bias.len().max(1);
        cpu::update(y, |y: &mut [T]| {
            y.par_chunks_mut(ROWS * width).for_each(|rows| {
                simd::vectorized(|| {
                    for row in rows.chunks_exact_mut(width) {
                        for (y, bias) in row.iter_mut().zip(bias) {
                            *y = T::narrow(y.wide() + bias.wide());
                        }
                    }
                });
            });
            Ok(())
        })
    })
}

/// `dy [N, O]` → `[O]`, in f32 (f64 for f64).
pub(crate) fn backward(dy: &Tensor) -> Result<Tensor> {
    match cpu::fast_dtype(&[dy]) {
        Some(DType::BF16) => column_sums::<bf16>(dy),
        Some(_) => column_sums::<f32>(dy),
        #[cfg(feature = "cuda")]
        None if crate::cuda::on_gpu(&[dy]) && dy.elem_count() > 0 => {
            crate::cuda::elementwise::bias_gradient(dy)
        }
        None => dy.to_dtype(accumulation_dtype(dy.dtype()))?.sum(0),
    }
}

/// Sums of fixed chunks of rows, added in the order of the chunks.
fn column_sums<T: Real>(dy: &Tensor) -> Result<Tensor> {
    let width = dy.dim(1)?;
    cpu::with([dy], |[dy]: [&[T]; 1]| {
        let chunk_sums = |rows: &[T]| {
            let mut sums = vec![0f32; width];
            simd::vectorized(|| {
                for row in rows.chunks_exact(width.max(1)) {
                    sums.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy.wide());
                }
            });
            sums
        };
        let parts: Vec<Vec<f32>> = dy.par_chunks((ROWS * width).max(1)).map(chunk_sums).collect();
        let mut total = vec![0f32; width];
        for part in parts {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
        cpu::tensor(total, width)
    })
}
