//! Panels of the AVX-512 kernels, out of matrices of either order.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m512i, _mm256_maskz_loadu_epi16, _mm512_cvtepu16_epi32, _mm512_loadu_si512,
    _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32, _mm512_or_si512, _mm512_permutex2var_epi32,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use half::bf16;

use super::Operand;
use super::avx512::Avx512Bf16;
use super::kernel::{Place, pack_plain};

/// Units of a register.
const LANES: usize = 16;

/// Rows of a left panel.
const TWELVE: usize = 12;

/// Steps that one panel gets before the next one has its turn, where the depth lies first: so many
/// that panels of 12 are written by whole cache lines ([`store_twelves`]), so few that the lines they
/// are read from, which panels share, are still in the inner cache.
const RUN: usize = 4;

/// Writes panels of f32.
#[target_feature(enable = "avx512f")]
pub(super) fn pack_f32(operand: &Operand<f32>, place: Place, width: usize, panels: &mut [f32]) {
    // SAFETY: a u32 and an f32 have the same layout, and every bit pattern is valid for both.
    let (panels, data) =
        unsafe { (panels.align_to_mut::<u32>().1, operand.data.align_to::<u32>().1) };
    if operand.depth_stride == 1 {
        let depth = operand.depth - place.depth;
        for (first, panel) in place.panels(width, panels) {
            let row =
                |i: usize| data[(first + i) * operand.stride + place.depth..][..depth].as_ptr();
            transpose(row, width.min(operand.len - first), depth, width, panel);
        }
    } else {
        // SAFETY: the mask is of elements that are there.
        let line = |at: *const f32, _, mask| unsafe { _mm512_maskz_loadu_epi32(mask, at.cast()) };
        in_runs::<1, _>(operand, place, width, panels, line);
    }
}

/// Writes panels of pairs of bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn pack_bf16(operand: &Operand<bf16>, place: Place, width: usize, panels: &mut [u32]) {
    let even = operand.depth.is_multiple_of(2) && place.depth.is_multiple_of(2);
    if operand.depth_stride == 1 && even {
        let depth = operand.depth - place.depth;
        for (first, panel) in place.panels(width, panels) {
            // Pairs are read without alignment.
            let row = |i: usize| {
                let at = (first + i) * operand.stride + place.depth;
                operand.data[at..][..depth].as_ptr().cast()
            };
            transpose(row, width.min(operand.len - first), depth / 2, width, panel);
        }
    } else if operand.stride == 1 {
        let half = |at: *const bf16, mask| {
            // SAFETY: the mask is of elements that are there.
            _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, at.cast()) })
        };
        let line = |at: *const bf16, second: bool, mask| {
            let low = half(at, mask);
            if !second {
                return low;
            }
            let high = half(at.wrapping_add(operand.depth_stride), mask);
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        };
        in_runs::<2, _>(operand, place, width, panels, line);
    } else {
        pack_plain::<bf16, Avx512Bf16>(operand, place, width, panels);
    }
}

/// Writes panels of a matrix whose depth lies first. `line(at, second, mask)` makes units of the
/// elements at `at`, and of those at the next depth if there is a `second`.
#[target_feature(enable = "avx512f")]
#[inline]
fn in_runs<const DEPTH: usize, T>(
    operand: &Operand<T>,
    place: Place,
    width: usize,
    panels: &mut [u32],
    line: impl Fn(*const T, bool, u16) -> __m512i,
) {
    let Operand { len, depth, stride, depth_stride, data } = *operand;
    assert_eq!(stride, 1, "one of the strides is 1");
    assert!(depth > 0 && (depth - 1) * depth_stride + len <= data.len(), "a matrix");
    for run in (0..place.steps).step_by(RUN) {
        let (at, end) = (place.depth + run * DEPTH, (run + RUN).min(place.steps));
        for (first, panel) in place.panels(width, panels) {
            let from = data.as_ptr().wrapping_add(at * depth_stride + first);
            let panel = &mut panel[run * width..end * width];
            // Whether all that registers hold is there, so that nothing needs a mask.
            let inside = first + width.next_multiple_of(LANES) <= len && at + RUN * DEPTH <= depth;
            let line = |step: usize, lane: usize, second, mask| {
                line(from.wrapping_add(step * DEPTH * depth_stride + lane), second, mask)
            };
            if inside && width == TWELVE && end == run + RUN {
                let line = |step| line(step, 0, true, u16::MAX);
                store_twelves([line(0), line(1), line(2), line(3)], panel);
            } else if inside && width.is_multiple_of(LANES) {
                for (step, panel) in panel.chunks_exact_mut(width).enumerate() {
                    for (lane, to) in panel.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                        let units = line(step, lane * LANES, true, u16::MAX);
                        // SAFETY: `to` is as long as a register.
                        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), units) };
                    }
                }
            } else {
                for (step, panel) in panel.chunks_exact_mut(width).enumerate() {
                    let (at, present) = (at + step * DEPTH, width.min(len - first));
                    for lane in (0..width).step_by(LANES) {
                        let count = if at < depth { present.saturating_sub(lane) } else { 0 };
                        let units = line(step, lane, at + DEPTH <= depth && DEPTH > 1, mask(count));
                        store(units, &mut panel[lane..]);
                    }
                }
            }
        }
    }
}

/// Stores the first 12 units of each of four registers after each other.
#[target_feature(enable = "avx512f")]
#[inline]
fn store_twelves([a, b, c, d]: [__m512i; 4], to: &mut [u32]) {
    // A unit of the second register counts from 16.
    let select = |units: [i32; LANES]| {
        // SAFETY: they are as long as a register.
        unsafe { _mm512_loadu_si512(units.as_ptr().cast()) }
    };
    let first = select([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19]);
    let second = select([4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]);
    let third = select([8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27]);
    let lines = [
        _mm512_permutex2var_epi32(a, first, b),
        _mm512_permutex2var_epi32(b, second, c),
        _mm512_permutex2var_epi32(c, third, d),
    ];
    for (to, line) in to[..3 * LANES].as_chunks_mut::<LANES>().0.iter_mut().zip(lines) {
        // SAFETY: `to` is as long as a register.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), line) };
    }
}

/// Stores as many units of a register as there is room for.
#[target_feature(enable = "avx512f")]
#[inline]
fn store(units: __m512i, to: &mut [u32]) {
    // SAFETY: the mask keeps the store inside of `to`.
    unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask(to.len()), units) }
}

/// `panel[k · width + i] = row(i)[k]` for `rows` rows of `depth` units, zero elsewhere. `row(i)`
/// points to them; they need no alignment.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(
    row: impl Fn(usize) -> *const u32,
    rows: usize,
    depth: usize,
    width: usize,
    panel: &mut [u32],
) {
    let depth = depth.min(panel.len() / width);
    let twelve = width == TWELVE && rows == TWELVE;
    if twelve {
        transpose_twelve(std::array::from_fn(&row), depth / LANES, panel);
    }
    for first in (0..width).step_by(LANES) {
        let present = rows.saturating_sub(first).min(LANES);
        let from: [_; LANES] =
            std::array::from_fn(|i| if i < present { row(first + i) } else { std::ptr::null() });
        // Whole blocks of twelve rows are there already.
        let whole = if twelve || present == LANES { depth / LANES } else { 0 };
        for block in (0..whole).filter(|_| !twelve) {
            let to = &mut panel[block * LANES * width + first..][..(LANES - 1) * width + LANES];
            // SAFETY: each row has a whole block of units here.
            unsafe { transpose_block(&from, block * LANES, to, width) };
        }
        let panels = panel.chunks_mut(LANES * width).enumerate().skip(whole);
        for (block, panel) in panels {
            let depth = depth.saturating_sub(block * LANES);
            let from = &from[..present];
            transpose_part(from, block * LANES, depth, panel, [first, width]);
        }
    }
}

/// The same for 12 rows, of so many whole blocks of units.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_twelve(from: [*const u32; TWELVE], blocks: usize, panel: &mut [u32]) {
    let to = panel.as_chunks_mut::<{ TWELVE * LANES }>().0;
    for (block, to) in to.iter_mut().enumerate().take(blocks) {
        let mut lines = [_mm512_setzero_si512(); TWELVE];
        for (line, from) in lines.iter_mut().zip(from) {
            // SAFETY: the row has a whole block of units here.
            *line = unsafe { _mm512_loadu_si512(from.add(block * LANES).cast()) };
        }
        let lines = transposed_twelve(&lines);
        for (to, line) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(lines) {
            // SAFETY: `to` is as long as a register.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), line) };
        }
    }
}

/// 16 rows by 16 units, from unit `k` on, as lines that are `width` apart.
///
/// # Safety
/// Each row has 16 units from `k` on.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn transpose_block(from: &[*const u32; LANES], k: usize, to: &mut [u32], width: usize) {
    let mut lines = [_mm512_setzero_si512(); LANES];
    for (line, from) in lines.iter_mut().zip(from) {
        // SAFETY: the caller's promise.
        *line = unsafe { _mm512_loadu_si512(from.add(k).cast()) };
    }
    let lines = transposed(&lines);
    let to = &mut to[..(LANES - 1) * width + LANES];
    for (i, line) in lines.into_iter().enumerate() {
        // SAFETY: `to` has room for 16 registers, `width` apart.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(i * width).cast(), line) };
    }
}

/// The same for at most 16 rows, of `depth` units from `k` on, to lanes `first ..` of each step.
#[target_feature(enable = "avx512f")]
fn transpose_part(
    from: &[*const u32],
    k: usize,
    depth: usize,
    panel: &mut [u32],
    [first, width]: [usize; 2],
) {
    let mut lines = [_mm512_setzero_si512(); LANES];
    for (line, from) in lines.iter_mut().zip(from) {
        // SAFETY: the mask keeps the load inside of the row's `depth` units.
        *line = unsafe { _mm512_maskz_loadu_epi32(mask(depth), from.wrapping_add(k).cast()) };
    }
    for (line, step) in transposed(&lines).into_iter().zip(panel.chunks_exact_mut(width)) {
        store(line, &mut step[first..]);
    }
}

fn mask(lanes: usize) -> u16 {
    if lanes >= LANES { u16::MAX } else { (1 << lanes) - 1 }
}

/// 12 lines of 16 as 16 lines of 12, one after the other.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed_twelve(r: &[__m512i; TWELVE]) -> [__m512i; TWELVE] {
    let mut fours = [[_mm512_setzero_si512(); 4]; 3];
    for (four, r) in fours.iter_mut().zip(r.as_chunks().0) {
        *four = columns_of_four(r);
    }
    // Each column is three quarters of a register, and the columns follow each other.
    let mut out = [_mm512_setzero_si512(); TWELVE];
    for i in 0..3 {
        let of = |quarter: usize| fours[quarter % 3][quarter / 3];
        let quarters = quarters_exchanged([of(4 * i), of(4 * i + 1), of(4 * i + 2), of(4 * i + 3)]);
        for (q, line) in quarters.into_iter().enumerate() {
            out[3 * q + i] = line;
        }
    }
    out
}

/// A 16 × 16 block with its rows and columns exchanged.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transposed(r: &[__m512i; 16]) -> [__m512i; 16] {
    let mut fours = [[_mm512_setzero_si512(); 4]; 4];
    for (four, r) in fours.iter_mut().zip(r.as_chunks().0) {
        *four = columns_of_four(r);
    }
    let mut out = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        let quarters = quarters_exchanged([fours[0][j], fours[1][j], fours[2][j], fours[3][j]]);
        for (q, line) in quarters.into_iter().enumerate() {
            out[4 * q + j] = line;
        }
    }
    out
}

/// The columns of four lines: quarter `q` of the result `j` is column `4 q + j`.
#[target_feature(enable = "avx512f")]
#[inline]
fn columns_of_four([a, b, c, d]: &[__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (_mm512_unpacklo_epi32(*a, *b), _mm512_unpackhi_epi32(*a, *b));
    let (low2, high2) = (_mm512_unpacklo_epi32(*c, *d), _mm512_unpackhi_epi32(*c, *d));
    [
        _mm512_unpacklo_epi64(low, low2),
        _mm512_unpackhi_epi64(low, low2),
        _mm512_unpacklo_epi64(high, high2),
        _mm512_unpackhi_epi64(high, high2),
    ]
}

/// A 4 × 4 block of quarters of registers with its rows and columns exchanged.
#[target_feature(enable = "avx512f")]
#[inline]
fn quarters_exchanged([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    let (low2, high2) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
    [
        _mm512_shuffle_i32x4::<0x88>(low, low2),
        _mm512_shuffle_i32x4::<0x88>(high, high2),
        _mm512_shuffle_i32x4::<0xdd>(low, low2),
        _mm512_shuffle_i32x4::<0xdd>(high, high2),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::avx512::Avx512F32;
    use crate::gemm::isa::Isa;
    use crate::gemm::kernel::Kernel;
    use crate::gemm::tests::can_test;
    use proptest::prelude::*;

    /// Whether all panels are what the plain loops make of the same part of a matrix.
    fn is_right<T: Copy, K: Kernel<T>>(values: &[T], sizes: [usize; 4], rows: bool) -> bool
    where
        K::Unit: PartialEq,
    {
        let [len, depth, width, from] = sizes;
        // A row or two of the first panels, and a step or two at the start, are not asked for; more
        // steps are than there are.
        let (first, from) = (from.min(len - 1), (from * K::DEPTH).min(depth - 1));
        let place = Place { first, depth: from, steps: (depth - from).div_ceil(K::DEPTH) + 3 };
        let stride = if rows { depth } else { len } + 2;
        let operand = if rows {
            Operand::strided_rows(values, len, depth, stride)
        } else {
            Operand::strided_columns(values, len, depth, stride)
        };
        let units = (len - first).div_ceil(width) * width * place.steps;
        let garbage = || vec![K::unit(values[1], Some(values[2])); units];
        let (mut got, mut expected) = (garbage(), garbage());
        K::pack_panels(&operand, place, width, &mut got);
        pack_plain::<T, K>(&operand, place, width, &mut expected);
        got == expected
    }

    proptest! {
        #[test]
        fn panels_are_those_of_the_plain_loops(
            len in 1..80usize,
            depth in 1..150usize,
            width in prop::sample::select(vec![8, 12, 16, 24, 32, 80]),
            from in 0..3usize,
            rows: bool,
        ) {
            let values: Vec<f32> = (0..(len + 2) * (depth + 2)).map(|i| i as f32).collect();
            let narrow: Vec<_> = (0..values.len()).map(|i| bf16::from_bits(i as u16)).collect();
            let sizes = [len, depth, width, from];
            if can_test(Isa::Avx512) {
                prop_assert!(is_right::<f32, Avx512F32>(&values, sizes, rows), "f32");
                prop_assert!(is_right::<bf16, Avx512Bf16>(&narrow, sizes, rows), "bf16");
            }
        }
    }
}
