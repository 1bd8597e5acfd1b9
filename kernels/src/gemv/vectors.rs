//! Dot products in the vectors that the CPU has: of f32, and of bf16 widened row by row where there
//! is no instruction for them.

use pulp::{Simd, WithSimd};

use super::prefetch::{AHEAD_BYTES, prefetch};
use super::{GROUP, Kernel};
use crate::cpu::Real;
use crate::scratch::Scratch;
use crate::simd;

/// f32, or bf16 widened to f32.
pub(super) struct Vectors;

impl<T: Real> Kernel<T> for Vectors {
    type X = f32;

    fn prepare(x: &[T], _: usize) -> Scratch<f32> {
        let mut wide = Scratch::new(x.len());
        wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.wide());
        wide
    }

    fn padded(depth: usize) -> usize {
        depth
    }

    fn panel(panel: &[T], x: &[f32], depth: usize, sums: &mut [f32]) {
        let mut wide = Scratch::new(depth);
        simd::dispatch(Rows { panel, x, depth, wide: &mut wide, sums });
    }
}

struct Rows<'a, T> {
    panel: &'a [T],
    x: &'a [f32],
    depth: usize,
    /// A row of the panel as f32.
    wide: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<T: Real> WithSimd for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panel, x, depth, wide, sums } = self;
        let (rows, batch) = (panel.len() / depth, x.len() / depth);
        // Rows of `x` whose sums fit into the registers: AVX-512 has 32, the others 16 shorter ones.
        let together = if S::F32_LANES >= 16 { GROUP } else { GROUP / 2 };
        for (row, stored) in panel.chunks_exact(depth).enumerate() {
            let w = T::as_wide(stored, wide);
            for first in (0..batch).step_by(together) {
                let x = &x[first * depth..];
                let sums = &mut sums[first * rows + row..];
                match together.min(batch - first) {
                    1 => dots::<S, T, 1>(simd, stored, w, x, rows, sums),
                    2 => dots::<S, T, 2>(simd, stored, w, x, rows, sums),
                    3 => dots::<S, T, 3>(simd, stored, w, x, rows, sums),
                    4 => dots::<S, T, 4>(simd, stored, w, x, rows, sums),
                    5 => dots::<S, T, 5>(simd, stored, w, x, rows, sums),
                    6 => dots::<S, T, 6>(simd, stored, w, x, rows, sums),
                    7 => dots::<S, T, 7>(simd, stored, w, x, rows, sums),
                    _ => dots::<S, T, GROUP>(simd, stored, w, x, rows, sums),
                }
            }
        }
    }
}

/// `w [depth]` by each of the first `B` rows of `x`, into every `stride`-th of `sums`; two chains of
/// sums each, so that one need not wait for the other. `stored` is the row as the weight has it.
#[inline(always)]
fn dots<S: Simd, T, const B: usize>(
    simd: S,
    stored: &[T],
    w: &[f32],
    x: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    let pair_bytes = 2 * S::F32_LANES * size_of::<T>();
    let depth = w.len();
    let (w, w_rest) = S::as_simd_f32s(w);
    let (pairs, odd) = w.as_chunks::<2>();
    let mut x_pairs = [&pairs[..0]; B];
    let mut x_odd = [&odd[..0]; B];
    let mut x_rest = [&w_rest[..0]; B];
    for b in 0..B {
        let (x, rest) = S::as_simd_f32s(&x[b * depth..][..depth]);
        let (pairs, odd) = x.as_chunks::<2>();
        (x_pairs[b], x_odd[b], x_rest[b]) = (pairs, odd, rest);
    }
    let mut chains = [[simd.splat_f32s(0.0); 2]; B];
    for (at, w) in pairs.iter().enumerate() {
        for line in (0..pair_bytes).step_by(64) {
            prefetch(stored, AHEAD_BYTES + at * pair_bytes + line);
        }
        for b in 0..B {
            let x = &x_pairs[b][at];
            chains[b][0] = simd.mul_add_e_f32s(w[0], x[0], chains[b][0]);
            chains[b][1] = simd.mul_add_e_f32s(w[1], x[1], chains[b][1]);
        }
    }
    for b in 0..B {
        if let ([w], [x]) = (odd, x_odd[b]) {
            chains[b][0] = simd.mul_add_e_f32s(*w, *x, chains[b][0]);
        }
        if !w_rest.is_empty() {
            let (w, x) = (simd.partial_load_f32s(w_rest), simd.partial_load_f32s(x_rest[b]));
            chains[b][1] = simd.mul_add_e_f32s(w, x, chains[b][1]);
        }
        sums[b * stride] = simd.reduce_sum_f32s(simd.add_f32s(chains[b][0], chains[b][1]));
    }
}
