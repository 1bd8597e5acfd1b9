//! The kernels' twin in plain Rust.

use super::Kernel;
use crate::cpu::Real;
use crate::scratch::Scratch;

/// Products and sums in f32, one after another.
pub(super) struct Scalar;

impl<T: Real> Kernel<T> for Scalar {
    type X = T;

    fn prepare(x: &[T], _: usize) -> Scratch<T> {
        let mut copy = Scratch::new(x.len());
        copy.copy_from_slice(x);
        copy
    }

    fn padded(depth: usize) -> usize {
        depth
    }

    fn panel(panel: &[T], x: &[T], depth: usize, sums: &mut [f32]) {
        let rows = panel.len() / depth;
        for (b, x) in x.chunks_exact(depth).enumerate() {
            for (row, w) in panel.chunks_exact(depth).enumerate() {
                sums[b * rows + row] = w.iter().zip(x).map(|(w, x)| w.wide() * x.wide()).sum();
            }
        }
    }
}
