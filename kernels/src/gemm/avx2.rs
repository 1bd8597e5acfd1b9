//! The AVX2 micro-kernel: 6 × 16 by FMA; bf16 is widened to f32 while it is packed.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use half::bf16;

use super::kernel::Kernel;

const MR: usize = 6;
const NR: usize = 16;

/// Only where the CPU has AVX2 and FMA.
pub(crate) struct Avx2;

impl Kernel<f32> for Avx2 {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = 256;
    type Unit = f32;

    fn unit(first: f32, _: Option<f32>) -> f32 {
        first
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        assert!(ldc >= NR && c.len() >= (MR - 1) * ldc + NR, "a tile of {MR} x {NR}");
        // SAFETY: this kernel is only chosen where the CPU has AVX2 and FMA; `c` was checked.
        unsafe { tile(a, b, c, ldc, add) }
    }
}

impl Kernel<bf16> for Avx2 {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = 256;
    type Unit = f32;

    fn unit(first: bf16, _: Option<bf16>) -> f32 {
        first.to_f32()
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        <Self as Kernel<f32>>::tile(a, b, c, ldc, add);
    }
}

/// Needs `c` to hold `MR` rows of `NR`, `ldc` apart.
#[target_feature(enable = "avx2,fma")]
fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
    let mut sums: [[__m256; 2]; MR] = [[_mm256_setzero_ps(); 2]; MR];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        // SAFETY: `b` is 16 values long.
        let (b0, b1) = unsafe { (_mm256_loadu_ps(b.as_ptr()), _mm256_loadu_ps(b.as_ptr().add(8))) };
        for i in 0..MR {
            let a = _mm256_set1_ps(a[i]);
            sums[i][0] = _mm256_fmadd_ps(a, b0, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(a, b1, sums[i][1]);
        }
    }
    for (i, row) in sums.iter().enumerate() {
        for (half, sum) in row.iter().enumerate() {
            // SAFETY: callers give a `c` with `MR` rows of `NR`.
            unsafe {
                let at = c.as_mut_ptr().add(i * ldc + 8 * half);
                let sum = if add { _mm256_add_ps(_mm256_loadu_ps(at), *sum) } else { *sum };
                _mm256_storeu_ps(at, sum);
            }
        }
    }
}
