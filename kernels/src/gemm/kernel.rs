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
    /// Units along the depth that are worked on at a time.
    const STEPS: usize;
    /// What a panel is made of.
    type Unit: Plain + Default;

    /// Makes a unit of elements along the depth; those past the end are `None`.
    fn unit(first: T, second: Option<T>) -> Self::Unit;

    /// Writes panels of `operand`, `width` wide, one after the other. Rows and depths past the end
    /// become zero.
    fn pack_panels(operand: &Operand<T>, place: Place, width: usize, panels: &mut [Self::Unit]) {
        pack_plain::<T, Self>(operand, place, width, panels);
    }

    /// Writes one panel, of rows `first ..` at depths from `depth` on.
    fn pack(
        operand: &Operand<T>,
        first: usize,
        depth: usize,
        width: usize,
        panel: &mut [Self::Unit],
    ) {
        let place = Place { first, depth, steps: panel.len() / width };
        Self::pack_panels(operand, place, width, panel);
    }

    /// `c[i · ldc + j] (+)= Σ a[step · MR + i] · b[step · NR + j]` for a whole `MR × NR` tile.
    fn tile(a: &[Self::Unit], b: &[Self::Unit], c: &mut [f32], ldc: usize, add: bool);
}

/// What of an operand is packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Row of the first panel.
    pub(crate) first: usize,
    /// Depth of the first step.
    pub(crate) depth: usize,
    /// Units along the depth.
    pub(crate) steps: usize,
}

impl Place {
    /// Each of `panels`, `width` wide, with its first row.
    pub(super) fn panels<U>(
        self,
        width: usize,
        panels: &mut [U],
    ) -> impl Iterator<Item = (usize, &mut [U])> {
        let panels = panels.chunks_exact_mut((self.steps * width).max(1));
        panels.enumerate().map(move |(index, panel)| (self.first + index * width, panel))
    }
}

/// [`Kernel::pack_panels`] for any kernel and any order.
pub(super) fn pack_plain<T: Copy, K: Kernel<T> + ?Sized>(
    operand: &Operand<T>,
    place: Place,
    width: usize,
    panels: &mut [K::Unit],
) {
    for (first, panel) in place.panels(width, panels) {
        pack_panel::<T, K>(operand, first, place.depth, width, panel);
    }
}

fn pack_panel<T: Copy, K: Kernel<T> + ?Sized>(
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
