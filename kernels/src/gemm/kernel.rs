//! What a micro-kernel is to the blocking around it.

use super::Operand;
use crate::scratch::Plain;

/// A product of one panel by one panel, for elements of type `T`, on CPUs that have its
/// instructions.
///
/// A panel holds `MR` (or `NR`) rows of an operand, depth by depth: `units[step · MR + i]` is row
/// `i` at depth `step · DEPTH`. A unit holds `DEPTH` neighbours along the depth.
pub(crate) trait Kernel<T: Copy>: Send + Sync {
    /// Rows of a panel of the left operand.
    const MR: usize;
    /// Rows of a panel of the right operand.
    const NR: usize;
    /// Elements of a unit.
    const DEPTH: usize;
    /// Units along the depth that are worked on at a time; a panel of them fits into L1.
    const STEPS: usize;
    /// What a panel is made of.
    type Unit: Plain + Default;

    /// Makes a unit of elements along the depth; those past the end are `None`.
    fn unit(first: T, second: Option<T>) -> Self::Unit;

    /// Writes the panel of rows `first ..` of `operand`, `width` wide, at depths from `depth` on.
    /// Rows and depths past the end become zero. `panel` is `steps · width` long.
    fn pack(
        operand: &Operand<T>,
        first: usize,
        depth: usize,
        width: usize,
        panel: &mut [Self::Unit],
    ) {
        pack_scalar::<T, Self>(operand, first, depth, width, panel);
    }

    /// `c[i · ldc + j] (+)= Σ a[step · MR + i] · b[step · NR + j]` for a whole `MR × NR` tile.
    fn tile(a: &[Self::Unit], b: &[Self::Unit], c: &mut [f32], ldc: usize, add: bool);
}

pub(crate) fn pack_scalar<T: Copy, K: Kernel<T> + ?Sized>(
    operand: &Operand<T>,
    first: usize,
    depth: usize,
    width: usize,
    panel: &mut [K::Unit],
) {
    let present = width.min(operand.len - first);
    for (step, units) in panel.chunks_exact_mut(width).enumerate() {
        let at = depth + step * K::DEPTH;
        let (present, absent) = units.split_at_mut(if at < operand.depth { present } else { 0 });
        for (i, unit) in present.iter_mut().enumerate() {
            let place = (first + i) * operand.stride + at * operand.depth_stride;
            let second = (K::DEPTH == 2 && at + 1 < operand.depth)
                .then(|| operand.data[place + operand.depth_stride]);
            *unit = K::unit(operand.data[place], second);
        }
        absent.fill(K::Unit::default());
    }
}
