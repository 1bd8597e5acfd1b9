//! Dot products of bf16 by `vdpbf16ps`: 32 elements of a weight's row at a time, read once for all
//! rows of `x`.
#![expect(unsafe_code, reason = "vector loads; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi16,
    _mm512_reduce_add_ps, _mm512_setzero_ps,
};

use std::ops::Range;

use half::bf16;

use super::prefetch::{AHEAD_BYTES, prefetch};
use super::{GROUP, Kernel};
use crate::scratch::Scratch;

/// Elements of a register.
const WIDTH: usize = 32;
/// Elements along the depth for which a group of rows of `x` fits into L1.
const BLOCK: usize = 1024;
/// Rows of a panel that is deeper than a block.
const BLOCKED_ROWS: usize = 32;

/// Only where the CPU has AVX-512 F, BW and BF16.
pub(super) struct Pairs;

impl Kernel<bf16> for Pairs {
    type X = bf16;

    /// Registers of the rows of a group in turn, the last ones filled with zeros.
    fn prepare(x: &[bf16], depth: usize) -> Scratch<bf16> {
        let padded = Self::padded(depth);
        let mut laid = Scratch::new(x.len() / depth * padded);
        for (x, laid) in x.chunks(GROUP * depth).zip(laid.chunks_mut(GROUP * padded)) {
            let batch = x.len() / depth;
            for (row, x) in x.chunks_exact(depth).enumerate() {
                for (step, x) in x.chunks(WIDTH).enumerate() {
                    let to = &mut laid[(step * batch + row) * WIDTH..][..WIDTH];
                    to[..x.len()].copy_from_slice(x);
                    to[x.len()..].fill(bf16::ZERO);
                }
            }
        }
        laid
    }

    fn padded(depth: usize) -> usize {
        depth.next_multiple_of(WIDTH)
    }

    fn panel(panel: &[bf16], x: &[bf16], depth: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where the CPU has AVX-512 F, BW and BF16.
        unsafe {
            match x.len() / Self::padded(depth) {
                1 => rows::<1, 1>(panel, x, depth, sums),
                2 => rows::<1, 2>(panel, x, depth, sums),
                3 => rows::<1, 3>(panel, x, depth, sums),
                4 => rows::<1, 4>(panel, x, depth, sums),
                5 => rows::<2, 5>(panel, x, depth, sums),
                6 => rows::<2, 6>(panel, x, depth, sums),
                7 => rows::<2, 7>(panel, x, depth, sums),
                _ => rows::<2, 8>(panel, x, depth, sums),
            }
        }
    }
}

/// `R` rows of the panel at a time, the last ones singly.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn rows<const R: usize, const B: usize>(
    panel: &[bf16],
    x: &[bf16],
    depth: usize,
    sums: &mut [f32],
) {
    let rows = panel.len() / depth;
    assert!(x.len() == B * Pairs::padded(depth) && sums.len() >= B * rows, "{B} rows of x");
    let row = |row: usize| &panel[row * depth..][..depth];
    if B > 4 && depth > BLOCK && rows <= BLOCKED_ROWS {
        let mut partial = [[_mm512_setzero_ps(); B]; BLOCKED_ROWS];
        for from in (0..depth).step_by(BLOCK) {
            let block = from..depth.min(from + BLOCK);
            let (pairs, odd) = partial[..rows].as_chunks_mut::<2>();
            for (pair, partial) in pairs.iter_mut().enumerate() {
                let w = [row(2 * pair), row(2 * pair + 1)];
                add_dots(w, x, block.clone(), 2 * panel.len(), partial);
            }
            for partial in odd {
                let partial = std::array::from_mut(partial);
                add_dots([row(rows - 1)], x, block.clone(), 2 * panel.len(), partial);
            }
        }
        for (row, partial) in partial[..rows].iter().enumerate() {
            (0..B).for_each(|b| sums[b * rows + row] = _mm512_reduce_add_ps(partial[b]));
        }
        return;
    }
    let whole = rows / R * R;
    for first in (0..whole).step_by(R) {
        let w: [&[bf16]; R] = std::array::from_fn(|r| row(first + r));
        dots::<R, B>(w, x, first, rows, sums);
    }
    for last in whole..rows {
        dots::<1, B>([row(last)], x, last, rows, sums);
    }
}

/// The dot products of rows `first ..` of a panel of `rows`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn dots<const R: usize, const B: usize>(
    w: [&[bf16]; R],
    x: &[bf16],
    first: usize,
    rows: usize,
    sums: &mut [f32],
) {
    let mut partial = [[_mm512_setzero_ps(); B]; R];
    add_dots(w, x, 0..w[0].len(), AHEAD_BYTES, &mut partial);
    for r in 0..R {
        (0..B).for_each(|b| sums[b * rows + first + r] = _mm512_reduce_add_ps(partial[r][b]));
    }
}

/// Adds the products of a range of elements, in lanes. `x` is a group of `B` as
/// [`Pairs::prepare`] lays it out; the range begins at a whole register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn add_dots<const R: usize, const B: usize>(
    w: [&[bf16]; R],
    x: &[bf16],
    range: Range<usize>,
    ahead_bytes: usize,
    partial: &mut [[__m512; B]; R],
) {
    let depth = w[0].len();
    assert!(w.iter().all(|w| w.len() == depth) && range.end <= depth, "rows of {depth}");
    assert!(range.start.is_multiple_of(WIDTH) && x.len() == B * Pairs::padded(depth), "{B} rows");
    let mut sums = *partial;
    let whole = range.end / WIDTH * WIDTH;
    for at in (range.start..whole).step_by(WIDTH) {
        // SAFETY: `at + WIDTH` is at most the length of every row of `w`, and `x` has `B` registers
        // for each register of `w`.
        unsafe {
            let x: [__m512bh; B] =
                std::array::from_fn(|b| load(x.as_ptr().add(B * at + b * WIDTH)));
            for r in 0..R {
                prefetch(w[r], 2 * at + ahead_bytes);
                add(&mut sums[r], load(w[r].as_ptr().add(at)), &x);
            }
        }
    }
    if whole < range.end {
        let present = u32::MAX >> (WIDTH - (range.end - whole));
        // SAFETY: masked to the elements that are left of a row; `x` is filled up.
        unsafe {
            let x: [__m512bh; B] =
                std::array::from_fn(|b| load(x.as_ptr().add(B * whole + b * WIDTH)));
            for r in 0..R {
                let rest = w[r].as_ptr().add(whole);
                let rest = as_pairs(_mm512_maskz_loadu_epi16(present, rest.cast()));
                add(&mut sums[r], rest, &x);
            }
        }
    }
    *partial = sums;
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add<const B: usize>(sums: &mut [__m512; B], w: __m512bh, x: &[__m512bh; B]) {
    for b in 0..B {
        sums[b] = _mm512_dpbf16_ps(sums[b], w, x[b]);
    }
}

/// # Safety
/// 32 elements can be read at `at`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(at: *const bf16) -> __m512bh {
    // SAFETY: the caller's promise.
    as_pairs(unsafe { _mm512_loadu_si512(at.cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn as_pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of which every pattern is a value.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}
