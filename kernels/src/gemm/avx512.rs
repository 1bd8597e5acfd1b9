//! AVX-512 micro-kernels: f32 by FMA, bf16 by `vdpbf16ps`.
//!
//! A tile is 12 × 32: 24 accumulators, two registers of the right panel, and the left panel's
//! units broadcast from memory.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::kernel::{Kernel, Place};
use super::{Operand, avx512_pack};

const MR: usize = 12;
const NR: usize = 32;
/// Units along the depth whose sums stay in registers. Their panels outgrow the inner cache, but are
/// read in order; to add sums to those of the units before costs more.
const STEPS: usize = 1024;

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
    const STEPS: usize = STEPS;
    type Unit = f32;

    fn unit(first: f32, _: Option<f32>) -> f32 {
        first
    }

    fn pack_panels(operand: &Operand<f32>, place: Place, width: usize, panels: &mut [f32]) {
        // SAFETY: this kernel is only chosen where the CPU has AVX-512 F.
        unsafe { avx512_pack::pack_f32(operand, place, width, panels) }
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
    const STEPS: usize = STEPS;
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
    const STEPS: usize = STEPS;
    type Unit = u32;

    fn unit(first: bf16, second: Option<bf16>) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.unwrap_or_default().to_bits()) << 16
    }

    fn pack_panels(operand: &Operand<bf16>, place: Place, width: usize, panels: &mut [u32]) {
        // SAFETY: this kernel is only chosen where the CPU has AVX-512 F, BW and VL.
        unsafe { avx512_pack::pack_bf16(operand, place, width, panels) }
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
