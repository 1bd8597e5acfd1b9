//! AVX-512 micro-kernels for products whose sides are short, like a head's dimension: tiles of
//! 8 × 32, because 8 divides what 12 does not, and left sides that need no packing.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::Operand;
use super::avx512::{Avx512Bf16, Avx512F32};
use super::kernel::{Kernel, Place};
use super::serial::SerialKernel;

const MR: usize = 8;
const NR: usize = 32;

/// f32 by FMA. Only where the CPU has AVX-512 F.
pub(crate) struct ShortF32;

/// bf16 by `vdpbf16ps`. Only where the CPU has AVX-512 F, BW and BF16.
pub(crate) struct ShortBf16;

impl Kernel<f32> for ShortF32 {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = 256;
    type Unit = f32;

    #[inline(always)]
    fn unit(first: f32, _: Option<f32>) -> f32 {
        first
    }

    fn pack_panels(operand: &Operand<f32>, place: Place, width: usize, panels: &mut [f32]) {
        Avx512F32::pack_panels(operand, place, width, panels);
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        check_tile(c, ldc);
        // SAFETY: this kernel is only chosen where the CPU has AVX-512 F; `c` was checked.
        unsafe { tile_f32(a, b, c, ldc, add) }
    }
}

impl SerialKernel<f32> for ShortF32 {
    fn tile_of_lines(
        lines: &[f32],
        blocks: usize,
        stride: usize,
        right: &[f32],
        c: &mut [f32],
        ldc: usize,
        add: bool,
    ) {
        check_tile(c, ldc);
        check_lines(lines.len(), blocks, stride, right.len(), NR);
        // SAFETY: as above; the lengths of the other slices were checked too.
        unsafe { tile_of_lines_f32(lines, blocks, stride, right, c, ldc, add) }
    }

    fn turn(from: &[f32], dim: usize, to: &mut [f32]) {
        turn(from, dim, to);
    }
}

impl Kernel<bf16> for ShortBf16 {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 2;
    const STEPS: usize = 256;
    type Unit = u32;

    #[inline(always)]
    fn unit(first: bf16, second: Option<bf16>) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.unwrap_or(bf16::ZERO).to_bits()) << 16
    }

    fn pack_panels(operand: &Operand<bf16>, place: Place, width: usize, panels: &mut [u32]) {
        Avx512Bf16::pack_panels(operand, place, width, panels);
    }

    fn tile(a: &[u32], b: &[u32], c: &mut [f32], ldc: usize, add: bool) {
        check_tile(c, ldc);
        // SAFETY: this kernel is only chosen where the CPU has AVX-512 F and BF16; `c` was checked.
        unsafe { tile_bf16(a, b, c, ldc, add) }
    }
}

impl SerialKernel<bf16> for ShortBf16 {
    fn tile_of_lines(
        lines: &[bf16],
        blocks: usize,
        stride: usize,
        right: &[u32],
        c: &mut [f32],
        ldc: usize,
        add: bool,
    ) {
        check_tile(c, ldc);
        check_lines(lines.len(), blocks, stride, right.len(), NR / 2);
        // SAFETY: as above; the lengths of the other slices were checked too.
        unsafe { tile_of_lines_bf16(lines, blocks, stride, right, c, ldc, add) }
    }

    fn turn(from: &[f32], dim: usize, to: &mut [f32]) {
        turn(from, dim, to);
    }
}

/// `to [32, dim] = from [dim, 32]ᵀ`. Only where the CPU has AVX-512 F.
pub(super) fn turn(from: &[f32], dim: usize, to: &mut [f32]) {
    Avx512F32::pack(&Operand::rows(&from[..dim * NR], dim, NR), 0, 0, dim, &mut to[..dim * NR]);
}

fn check_tile(c: &[f32], ldc: usize) {
    assert!(ldc >= NR && c.len() >= (MR - 1) * ldc + NR, "a tile of {MR} x {NR}");
}

fn check_lines(lines: usize, blocks: usize, stride: usize, right: usize, steps: usize) {
    let needed = if blocks == 0 { 0 } else { (blocks - 1) * stride + MR * NR };
    assert!(lines >= needed && right >= blocks * steps * NR, "{blocks} blocks of {MR} lines");
}

type Sums = [[__m512; 2]; MR];

/// Needs `c` to hold `MR` rows of `NR`, `ldc` apart.
#[target_feature(enable = "avx512f")]
fn tile_f32(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        let b = load(b);
        for (sums, a) in sums.iter_mut().zip(a) {
            step_f32(sums, _mm512_set1_ps(*a), b);
        }
    }
    store(&sums, c, ldc, add);
}

/// Needs what [`check_tile`] and [`check_lines`] check.
#[target_feature(enable = "avx512f")]
fn tile_of_lines_f32(
    lines: &[f32],
    blocks: usize,
    stride: usize,
    right: &[f32],
    c: &mut [f32],
    ldc: usize,
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    for block in 0..blocks {
        let right = &right[block * NR * NR..][..NR * NR];
        let lines = &lines[block * stride..][..MR * NR];
        for (k, b) in right.as_chunks::<NR>().0.iter().enumerate() {
            let b = load(b);
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `k < NR`, and the block has `MR` lines of `NR`.
                let a = unsafe { *lines.get_unchecked(i * NR + k) };
                step_f32(sums, _mm512_set1_ps(a), b);
            }
        }
    }
    store(&sums, c, ldc, add);
}

/// Needs `c` to hold `MR` rows of `NR`, `ldc` apart.
#[target_feature(enable = "avx512f,avx512bf16")]
fn tile_bf16(a: &[u32], b: &[u32], c: &mut [f32], ldc: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        let b = load_pairs(b);
        for (sums, a) in sums.iter_mut().zip(a) {
            step_bf16(sums, *a, b);
        }
    }
    store(&sums, c, ldc, add);
}

/// Needs what [`check_tile`] and [`check_lines`] check.
#[target_feature(enable = "avx512f,avx512bf16")]
fn tile_of_lines_bf16(
    lines: &[bf16],
    blocks: usize,
    stride: usize,
    right: &[u32],
    c: &mut [f32],
    ldc: usize,
    add: bool,
) {
    const STEPS: usize = NR / 2;
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    for block in 0..blocks {
        let right = &right[block * STEPS * NR..][..STEPS * NR];
        let lines = &lines[block * stride..][..MR * NR];
        for (k, b) in right.as_chunks::<NR>().0.iter().enumerate() {
            let b = load_pairs(b);
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `2 k + 1 < NR`, and the block has `MR` lines of `NR`; the pointer is read
                // as a u32 without alignment.
                let a =
                    unsafe { lines.as_ptr().add(i * NR + 2 * k).cast::<u32>().read_unaligned() };
                step_bf16(sums, a, b);
            }
        }
    }
    store(&sums, c, ldc, add);
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(b: &[f32; NR]) -> [__m512; 2] {
    // SAFETY: `b` is 32 values long.
    unsafe { [_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))] }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_pairs(b: &[u32; NR]) -> [__m512bh; 2] {
    // SAFETY: `b` is 32 values long; the vector types are plain bits.
    unsafe {
        let at = b.as_ptr().cast::<f32>();
        let load = |at| std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(at));
        [load(at), load(at.add(16))]
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn step_f32(sums: &mut [__m512; 2], a: __m512, [b0, b1]: [__m512; 2]) {
    sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
    sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn step_bf16(sums: &mut [__m512; 2], a: u32, [b0, b1]: [__m512bh; 2]) {
    // SAFETY: the vector types are plain bits.
    let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a as i32)) };
    sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
    sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
}

/// Needs `c` to hold `MR` rows of `NR`, `ldc` apart.
#[target_feature(enable = "avx512f")]
#[inline]
fn store(sums: &Sums, c: &mut [f32], ldc: usize, add: bool) {
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
