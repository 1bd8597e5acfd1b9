//! The sums over a row, in vector registers: a compiler may not regroup sums of floats, so plain
//! loops over them stay scalar or come out well by luck alone.

use half::bf16;
use pulp::Simd;

use crate::cpu::Real;

/// Runs the same code for any width of a row, compiled apart for the widths that attention heads
/// have: where a row is so short, loops of a length that is not known take longer to begin than to
/// run.
macro_rules! specialised {
    ($width:expr, |$name:ident| $run:expr) => {
        match $width {
            64 => {
                let $name = 64;
                $run
            }
            128 => {
                let $name = 128;
                $run
            }
            256 => {
                let $name = 256;
                $run
            }
            $name => $run,
        }
    };
}
pub(crate) use specialised;

/// An element whose rows the sums are taken of, in f32.
pub(crate) trait Row: Real {
    /// The row in f32: itself, or written to `buffer`, which is as long.
    ///
    /// The buffer begins at a cache line (as [`Scratch`](crate::scratch::Scratch) does): a vector
    /// that lies across two is slow to read back.
    fn widened<'a>(row: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32];
}

impl Row for f32 {
    #[inline(always)]
    fn widened<'a>(row: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        row
    }
}

impl Row for bf16 {
    #[inline(always)]
    fn widened<'a>(row: &'a [bf16], buffer: &'a mut [f32]) -> &'a [f32] {
        for (wide, x) in buffer.iter_mut().zip(row) {
            *wide = x.wide();
        }
        buffer
    }
}

/// `1 / √(mean(x²) + ε)`.
#[inline(always)]
pub(crate) fn inv_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let zero = simd.splat_f32s(0.0);
    let [mut even, mut odd] = [zero; 2];
    let (whole, rest) = S::as_simd_f32s(x);
    let (pairs, single) = whole.as_chunks::<2>();
    for [x0, x1] in pairs {
        even = simd.mul_add_f32s(*x0, *x0, even);
        odd = simd.mul_add_f32s(*x1, *x1, odd);
    }
    for x in single {
        even = simd.mul_add_f32s(*x, *x, even);
    }
    let rest = rest.iter().fold(0f32, |sum, x| x.mul_add(*x, sum));
    root(simd.reduce_sum_f32s(simd.add_f32s(even, odd)) + rest, x.len(), eps)
}

/// `1 / √(mean(x²) + ε)` and `Σ dy · factor · x`, of rows of one length.
#[inline(always)]
pub(crate) fn backward_sums<S: Simd>(
    simd: S,
    x: &[f32],
    factor: &[f32],
    dy: &[f32],
    eps: f32,
) -> (f32, f32) {
    let zero = simd.splat_f32s(0.0);
    let [mut square_even, mut square_odd, mut even, mut odd] = [zero; 4];
    let (x_whole, x_rest) = S::as_simd_f32s(x);
    let (factor_whole, factor_rest) = S::as_simd_f32s(factor);
    let (dy_whole, dy_rest) = S::as_simd_f32s(dy);
    let (x_pairs, x_single) = x_whole.as_chunks::<2>();
    let (factor_pairs, factor_single) = factor_whole.as_chunks::<2>();
    let (dy_pairs, dy_single) = dy_whole.as_chunks::<2>();
    for (([x0, x1], [f0, f1]), [g0, g1]) in x_pairs.iter().zip(factor_pairs).zip(dy_pairs) {
        square_even = simd.mul_add_f32s(*x0, *x0, square_even);
        square_odd = simd.mul_add_f32s(*x1, *x1, square_odd);
        even = simd.mul_add_f32s(simd.mul_f32s(*g0, *f0), *x0, even);
        odd = simd.mul_add_f32s(simd.mul_f32s(*g1, *f1), *x1, odd);
    }
    for ((x, factor), dy) in x_single.iter().zip(factor_single).zip(dy_single) {
        square_even = simd.mul_add_f32s(*x, *x, square_even);
        even = simd.mul_add_f32s(simd.mul_f32s(*dy, *factor), *x, even);
    }
    let (mut square, mut product) = (0f32, 0f32);
    for ((x, factor), dy) in x_rest.iter().zip(factor_rest).zip(dy_rest) {
        square = x.mul_add(*x, square);
        product = (dy * factor).mul_add(*x, product);
    }
    let square = simd.reduce_sum_f32s(simd.add_f32s(square_even, square_odd)) + square;
    let product = simd.reduce_sum_f32s(simd.add_f32s(even, odd)) + product;
    (root(square, x.len(), eps), product)
}

#[inline(always)]
fn root(square_sum: f32, width: usize, eps: f32) -> f32 {
    1.0 / (square_sum / width as f32 + eps).sqrt()
}
