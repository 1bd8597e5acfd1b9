//! Dot products of bf16 by FMA, where the CPU has no instruction for bf16: 16 elements of a weight's
//! row are widened in registers, those at even places by a shift and those at odd ones by a mask, and
//! `x` is laid out to match.
#![expect(unsafe_code, reason = "vector loads; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps,
    _mm256_and_si256, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_extractf128_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_ps,
    _mm256_slli_epi32,
};

use half::bf16;

use super::prefetch::{AHEAD_BYTES, prefetch};
use super::{GROUP, Kernel};
use crate::scratch::Scratch;

/// Elements of a step: a register of bf16, two of f32.
const WIDTH: usize = 16;
/// Rows of `x` whose sums fit into the registers beside those of two rows of a weight.
const TOGETHER: usize = 4;

/// Only where the CPU has AVX2 and FMA.
pub(super) struct Widened;

impl Kernel<bf16> for Widened {
    type X = f32;

    /// Steps of the rows of a group in turn: the elements at even places, then those at odd ones, the
    /// last step filled with zeros.
    fn prepare(x: &[bf16], depth: usize) -> Scratch<f32> {
        let padded = Self::padded(depth);
        let mut laid = Scratch::new(x.len() / depth * padded);
        for (x, laid) in x.chunks(GROUP * depth).zip(laid.chunks_mut(GROUP * padded)) {
            let batch = x.len() / depth;
            for (row, x) in x.chunks_exact(depth).enumerate() {
                for (step, x) in x.chunks(WIDTH).enumerate() {
                    let to = &mut laid[(step * batch + row) * WIDTH..][..WIDTH];
                    to.fill(0.0);
                    for (at, x) in x.iter().enumerate() {
                        to[at % 2 * (WIDTH / 2) + at / 2] = x.to_f32();
                    }
                }
            }
        }
        laid
    }

    fn padded(depth: usize) -> usize {
        depth.next_multiple_of(WIDTH)
    }

    fn panel(panel: &[bf16], x: &[f32], depth: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where the CPU has AVX2 and FMA.
        unsafe { rows(panel, x, depth, sums) }
    }
}

/// A few rows of a panel at a time, so that their sums need not wait for each other; of `x` up to
/// [`TOGETHER`], and the others while the rows are in L1.
#[target_feature(enable = "avx2,fma")]
fn rows(panel: &[bf16], x: &[f32], depth: usize, sums: &mut [f32]) {
    let (rows, batch) = (panel.len() / depth, x.len() / Widened::padded(depth));
    let at_once = if batch < TOGETHER { 4 } else { 2 };
    let whole = rows / at_once * at_once;
    let firsts = (0..whole).step_by(at_once).map(|first| (first, at_once));
    for (first, count) in firsts.chain((whole..rows).map(|last| (last, 1))) {
        let panel = &panel[first * depth..][..count * depth];
        for b in (0..batch).step_by(TOGETHER) {
            let to = &mut sums[b * rows + first..];
            let from = X { laid: x, batch, first: b };
            match (count, TOGETHER.min(batch - b)) {
                (1, 1) => dots::<1, 1>(panel, from, depth, rows, to),
                (1, 2) => dots::<1, 2>(panel, from, depth, rows, to),
                (1, 3) => dots::<1, 3>(panel, from, depth, rows, to),
                (1, _) => dots::<1, 4>(panel, from, depth, rows, to),
                (2, 1) => dots::<2, 1>(panel, from, depth, rows, to),
                (2, 2) => dots::<2, 2>(panel, from, depth, rows, to),
                (2, 3) => dots::<2, 3>(panel, from, depth, rows, to),
                (2, _) => dots::<2, 4>(panel, from, depth, rows, to),
                (_, 1) => dots::<4, 1>(panel, from, depth, rows, to),
                (_, 2) => dots::<4, 2>(panel, from, depth, rows, to),
                (_, _) => dots::<4, 3>(panel, from, depth, rows, to),
            }
        }
    }
}

/// Rows of a group as [`Widened::prepare`] lays it out.
#[derive(Clone, Copy)]
struct X<'a> {
    laid: &'a [f32],
    /// Rows of the group.
    batch: usize,
    /// The first of those that are meant.
    first: usize,
}

/// The dot products of `R` rows of a weight and `B` of `x`, into every `stride`-th of `sums`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dots<const R: usize, const B: usize>(
    w: &[bf16],
    x: X,
    depth: usize,
    stride: usize,
    sums: &mut [f32],
) {
    let row = |r: usize| &w[r * depth..][..depth];
    let laid = x.batch * Widened::padded(depth);
    assert!(w.len() == R * depth && x.laid.len() == laid && x.first + B <= x.batch, "{B} rows");
    let mut partial = [[_mm256_setzero_ps(); B]; R];
    let whole = depth / WIDTH * WIDTH;
    for at in (0..whole).step_by(WIDTH) {
        // SAFETY: there is a step of each of the batch's rows for each of a weight's row, and of those
        // `x.first + B` are at most the batch.
        let x = unsafe { x.laid.as_ptr().add(x.batch * at + x.first * WIDTH) };
        for (r, partial) in partial.iter_mut().enumerate() {
            prefetch(row(r), 2 * at + AHEAD_BYTES);
            // SAFETY: `at + WIDTH` is at most the row's length.
            let w = unsafe { _mm256_loadu_si256(row(r).as_ptr().add(at).cast()) };
            // SAFETY: `B` rows of a step lie at `x`.
            unsafe { add(partial, w, x) };
        }
    }
    if whole < depth {
        // SAFETY: as above: `x` is filled up.
        let x = unsafe { x.laid.as_ptr().add(x.batch * whole + x.first * WIDTH) };
        for (r, partial) in partial.iter_mut().enumerate() {
            let mut rest = [bf16::ZERO; WIDTH];
            rest[..depth - whole].copy_from_slice(&row(r)[whole..]);
            // SAFETY: `rest` is a step long, and `B` rows of a step lie at `x`.
            unsafe { add(partial, _mm256_loadu_si256(rest.as_ptr().cast()), x) };
        }
    }
    for r in 0..R {
        (0..B).for_each(|b| sums[b * stride + r] = sum_of_lanes(partial[r][b]));
    }
}

/// # Safety
/// `B` rows of a step can be read at `x`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add<const B: usize>(sums: &mut [__m256; B], w: __m256i, x: *const f32) {
    let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
    let odd = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(-1 << 16)));
    for (b, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let (x_even, x_odd) = unsafe {
            let x = x.add(b * WIDTH);
            (_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(WIDTH / 2)))
        };
        *sum = _mm256_fmadd_ps(odd, x_odd, _mm256_fmadd_ps(even, x_even, *sum));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_lanes(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
