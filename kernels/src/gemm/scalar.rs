//! The kernels' scalar twin: the same panels and the same sums, in plain Rust.

use half::bf16;

use super::kernel::Kernel;

/// Plain f32.
pub(crate) struct ScalarF32;

/// Pairs of bf16, products and sums in f32.
pub(crate) struct ScalarBf16;

impl Kernel<f32> for ScalarF32 {
    const MR: usize = 3;
    const NR: usize = 5;
    const DEPTH: usize = 1;
    const STEPS: usize = 7;
    type Unit = f32;

    fn unit(first: f32, _: Option<f32>) -> f32 {
        first
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        for i in 0..Self::MR {
            for j in 0..Self::NR {
                let steps = a.chunks_exact(Self::MR).zip(b.chunks_exact(Self::NR));
                let sum: f32 = steps.map(|(a, b)| a[i] * b[j]).sum();
                let c = &mut c[i * ldc + j];
                *c = if add { *c + sum } else { sum };
            }
        }
    }
}

impl Kernel<bf16> for ScalarBf16 {
    const MR: usize = 4;
    const NR: usize = 6;
    const DEPTH: usize = 2;
    const STEPS: usize = 5;
    type Unit = [bf16; 2];

    fn unit(first: bf16, second: Option<bf16>) -> [bf16; 2] {
        [first, second.unwrap_or(bf16::ZERO)]
    }

    fn tile(a: &[[bf16; 2]], b: &[[bf16; 2]], c: &mut [f32], ldc: usize, add: bool) {
        let dot = |a: [bf16; 2], b: [bf16; 2]| {
            a[0].to_f32() * b[0].to_f32() + a[1].to_f32() * b[1].to_f32()
        };
        for i in 0..Self::MR {
            for j in 0..Self::NR {
                let steps = a.chunks_exact(Self::MR).zip(b.chunks_exact(Self::NR));
                let sum: f32 = steps.map(|(a, b)| dot(a[i], b[j])).sum();
                let c = &mut c[i * ldc + j];
                *c = if add { *c + sum } else { sum };
            }
        }
    }
}
