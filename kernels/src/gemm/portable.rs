//! The micro-kernel of CPUs that no other is for: 4 × 8, in plain loops that the compiler makes vector
//! code of, by what it may count on; bf16 is widened to f32 while it is packed.

use super::kernel::Kernel;
use super::serial::SerialKernel;

const MR: usize = 4;
const NR: usize = 8;

/// Every CPU runs it.
pub(crate) struct Portable;

impl<T: Copy + Into<f32>> Kernel<T> for Portable {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    /// Without FMA each product is rounded too, and short sums keep what that adds up to small.
    const STEPS: usize = 64;
    type Unit = f32;

    fn unit(first: T, _: Option<T>) -> f32 {
        first.into()
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

impl<T: Copy + Into<f32>> SerialKernel<T> for Portable {}
