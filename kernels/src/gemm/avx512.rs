//! AVX-512 micro-kernels: f32 by FMA, bf16 by `vdpbf16ps`.
//!
//! A tile is 12 × 32: 24 accumulators, two registers of the right panel, and the left panel's
//! units broadcast from memory.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_ps,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use half::bf16;

use super::Operand;
use super::kernel::{Kernel, pack_scalar};

const MR: usize = 12;
const NR: usize = 32;

/// f32 by FMA. Only where the CPU has AVX-512 F.
pub(crate) struct Avx512F32;

/// bf16 by `vdpbf16ps`, which multiplies pairs and adds them in f32. Only where the CPU has
/// AVX-512 F, BW and BF16.
pub(crate) struct Avx512Bf16;

/// bf16 widened to f32 while it is packed. Only where the CPU has AVX-512 F.
pub(crate) struct Avx512Widened;

impl Kernel<f32> for Avx512F32 {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = 256;
    type Unit = f32;

    fn unit(first: f32, _: Option<f32>) -> f32 {
        first
    }

    fn pack(operand: &Operand<f32>, first: usize, depth: usize, width: usize, panel: &mut [f32]) {
        if operand.depth_stride == 1 {
            // SAFETY: this kernel is only chosen where the CPU has AVX-512 F; a u32 and an f32 have
            // the same layout, and every bit pattern is valid for both.
            unsafe {
                let (_, panel, _) = panel.align_to_mut::<u32>();
                let (_, data, _) = operand.data.align_to::<u32>();
                let at = |i: usize| &data[(first + i) * operand.stride + depth..];
                transpose(at, width.min(operand.len - first), operand.depth - depth, width, panel);
            }
        } else {
            // SAFETY: as above.
            unsafe { interleave_f32(operand, first, depth, width, panel) }
        }
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        check_tile(c, ldc);
        // SAFETY: this kernel is only chosen where the CPU has AVX-512 F; `c` was checked.
        unsafe { tile_f32(a, b, c, ldc, add) }
    }
}

impl Kernel<bf16> for Avx512Widened {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = 256;
    type Unit = f32;

    fn unit(first: bf16, _: Option<bf16>) -> f32 {
        first.to_f32()
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        Avx512F32::tile(a, b, c, ldc, add);
    }
}

impl Kernel<bf16> for Avx512Bf16 {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 2;
    const STEPS: usize = 256;
    type Unit = u32;

    fn unit(first: bf16, second: Option<bf16>) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.unwrap_or_default().to_bits()) << 16
    }

    fn pack(operand: &Operand<bf16>, first: usize, depth: usize, width: usize, panel: &mut [u32]) {
        let even = operand.depth.is_multiple_of(2) && depth.is_multiple_of(2);
        if operand.depth_stride == 1 && even && operand.stride.is_multiple_of(2) {
            // SAFETY: this kernel is only chosen where the CPU has AVX-512 F. The pointer is read
            // as u32 by unaligned loads only, inside of what `operand.data` spans: `rows` rows of
            // `pairs` pairs, each checked by its slice.
            unsafe {
                let pairs = (operand.depth - depth) / 2;
                let rows = width.min(operand.len - first);
                let at =
                    |i: usize| &operand.data[(first + i) * operand.stride + depth..][..2 * pairs];
                transpose_pairs(at, rows, pairs, width, panel);
            }
        } else if operand.stride == 1 {
            // SAFETY: as above; the function itself is safe code.
            unsafe { interleave_bf16(operand, first, depth, width, panel) }
        } else {
            pack_scalar::<bf16, Self>(operand, first, depth, width, panel);
        }
    }

    fn tile(a: &[u32], b: &[u32], c: &mut [f32], ldc: usize, add: bool) {
        check_tile(c, ldc);
        // SAFETY: this kernel is only chosen where the CPU has AVX-512 F and BF16; `c` was checked.
        unsafe { tile_bf16(a, b, c, ldc, add) }
    }
}

fn check_tile(c: &[f32], ldc: usize) {
    assert!(ldc >= NR && c.len() >= (MR - 1) * ldc + NR, "a tile of {MR} x {NR}");
}

/// Needs `c` to hold `MR` rows of `NR`, `ldc` apart.
#[target_feature(enable = "avx512f")]
fn tile_f32(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        // SAFETY: `b` is 32 values long.
        let (b0, b1) =
            unsafe { (_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))) };
        for i in 0..MR {
            let a = _mm512_set1_ps(a[i]);
            sums[i][0] = _mm512_fmadd_ps(a, b0, sums[i][0]);
            sums[i][1] = _mm512_fmadd_ps(a, b1, sums[i][1]);
        }
    }
    store(&sums, c, ldc, add);
}

/// Needs `c` to hold `MR` rows of `NR`, `ldc` apart.
#[target_feature(enable = "avx512f,avx512bf16")]
fn tile_bf16(a: &[u32], b: &[u32], c: &mut [f32], ldc: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        // SAFETY: `b` is 32 values long; the vector types are plain bits.
        let (b0, b1) = unsafe {
            let at = b.as_ptr().cast::<f32>();
            let load = |at| std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(at));
            (load(at), load(at.add(16)))
        };
        for i in 0..MR {
            // SAFETY: the vector types are plain bits.
            let a =
                unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a[i] as i32)) };
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], a, b0);
            sums[i][1] = _mm512_dpbf16_ps(sums[i][1], a, b1);
        }
    }
    store(&sums, c, ldc, add);
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(sums: &[[__m512; 2]; MR], c: &mut [f32], ldc: usize, add: bool) {
    for (i, row) in sums.iter().enumerate() {
        for (half, sum) in row.iter().enumerate() {
            // SAFETY: callers give a `c` with `MR` rows of `NR`.
            unsafe {
                let at = c.as_mut_ptr().add(i * ldc + 16 * half);
                let sum = if add { _mm512_add_ps(_mm512_loadu_ps(at), *sum) } else { *sum };
                _mm512_storeu_ps(at, sum);
            }
        }
    }
}

/// `panel[k · width + i] = row(i)[k]` for `rows` rows, zero elsewhere.
#[target_feature(enable = "avx512f")]
fn transpose<'a>(
    row: impl Fn(usize) -> &'a [u32],
    rows: usize,
    depth: usize,
    width: usize,
    panel: &mut [u32],
) {
    transpose_from(|i| row(i)[..depth].as_ptr(), rows, depth, width, panel);
}

/// The same of pairs of bf16; `row(i)` holds `pairs` of them.
#[target_feature(enable = "avx512f")]
fn transpose_pairs<'a>(
    row: impl Fn(usize) -> &'a [bf16],
    rows: usize,
    pairs: usize,
    width: usize,
    panel: &mut [u32],
) {
    transpose_from(|i| row(i)[..2 * pairs].as_ptr().cast(), rows, pairs, width, panel);
}

/// `row(i)` points to `depth` units, which need no alignment.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_from(
    row: impl Fn(usize) -> *const u32,
    rows: usize,
    depth: usize,
    width: usize,
    panel: &mut [u32],
) {
    let steps = panel.len() / width;
    for first in (0..width).step_by(16) {
        let lanes = (width - first).min(16);
        for k in (0..steps).step_by(16) {
            let present = depth.saturating_sub(k).min(16);
            let mask = mask(present);
            let mut block = [_mm512_setzero_si512(); 16];
            for (i, line) in block.iter_mut().enumerate() {
                if first + i < rows && present > 0 {
                    // SAFETY: the mask keeps the load inside of the row's `depth` units.
                    *line = unsafe { _mm512_maskz_loadu_epi32(mask, row(first + i).add(k).cast()) };
                }
            }
            let block = transposed(&block);
            for (line, step) in block.iter().zip(k..steps) {
                let to = &mut panel[step * width + first..][..lanes];
                // SAFETY: the mask keeps the store inside of `to`.
                unsafe {
                    _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), self::mask(lanes), *line);
                }
            }
        }
    }
}

fn mask(lanes: usize) -> u16 {
    if lanes >= 16 { u16::MAX } else { (1 << lanes) - 1 }
}

/// A 16 × 16 block with its rows and columns exchanged.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transposed(r: &[__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    let mut fours = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut out = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        let (low01, high01) = (
            _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]),
            _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]),
        );
        let (low23, high23) = (
            _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]),
            _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]),
        );
        out[j] = _mm512_shuffle_i32x4::<0x88>(low01, low23);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low01, low23);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(high01, high23);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high01, high23);
    }
    out
}

/// Rows that lie side by side at each depth are copied.
#[target_feature(enable = "avx512f")]
fn interleave_f32(
    operand: &Operand<f32>,
    first: usize,
    depth: usize,
    width: usize,
    panel: &mut [f32],
) {
    assert_eq!(operand.stride, 1, "one of the strides is 1");
    let present = width.min(operand.len - first);
    for (step, units) in panel.chunks_exact_mut(width).enumerate() {
        let at = depth + step;
        let present = if at < operand.depth { present } else { 0 };
        let from = at * operand.depth_stride + first;
        if present > 0 {
            units[..present].copy_from_slice(&operand.data[from..from + present]);
        }
        units[present..].fill(0.0);
    }
}

/// Rows that lie side by side at each depth are paired with those of the next depth.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn interleave_bf16(
    operand: &Operand<bf16>,
    first: usize,
    depth: usize,
    width: usize,
    panel: &mut [u32],
) {
    let present = width.min(operand.len - first);
    let line = |at: usize| &operand.data[at * operand.depth_stride + first..][..present];
    for (step, units) in panel.chunks_exact_mut(width).enumerate() {
        let at = depth + 2 * step;
        if at + 1 < operand.depth {
            let (low, high) = (line(at), line(at + 1));
            for ((unit, low), high) in units[..present].iter_mut().zip(low).zip(high) {
                *unit = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
            }
            units[present..].fill(0);
        } else if at < operand.depth {
            for (unit, low) in units[..present].iter_mut().zip(line(at)) {
                *unit = u32::from(low.to_bits());
            }
            units[present..].fill(0);
        } else {
            units.fill(0);
        }
    }
}
