//! The micro-kernel of CPUs that no other is for: 4 × 8, in plain loops that the compiler makes vector
//! code of, by what it may count on; bf16 is widened to f32 while it is packed.

use half::bf16;

use super::kernel::Kernel;
use super::serial::SerialKernel;

const MR: usize = 4;
const NR: usize = 8;

/// Units along the depth that are summed at a time: without FMA each product is rounded too, and short
/// sums keep what that adds up to small.
const STEPS: usize = 64;

/// Every CPU runs it.
pub(crate) struct Portable;

impl Kernel<f32> for Portable {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = STEPS;
    type Unit = f32;

    fn unit(first: f32, _: Option<f32>) -> f32 {
        first
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        let mut sums = [[0f32; NR]; MR];
        for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
            for (sums, a) in sums.iter_mut().zip(a) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
            }
        }
        for (c, sums) in c.chunks_mut(ldc).zip(&sums) {
            let each = c.iter_mut().zip(sums);
            each.for_each(|(c, sum)| *c = if add { *c + sum } else { *sum });
        }
    }
}

impl Kernel<bf16> for Portable {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = STEPS;
    type Unit = f32;

    fn unit(first: bf16, _: Option<bf16>) -> f32 {
        first.to_f32()
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        <Self as Kernel<f32>>::tile(a, b, c, ldc, add);
    }
}

impl SerialKernel<f32> for Portable {}
impl SerialKernel<bf16> for Portable {}
