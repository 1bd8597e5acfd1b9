//! A task's loops over its blocks of 32 × 32 sums.
#![expect(unsafe_code, reason = "lines are seen as their elements")]

use half::bf16;

use super::machine::Machine;
use super::{DEPTH, Line, SIDE, SLICE};
use crate::gemm::Operand;
use crate::gemm::output::{Output, Tiles};

/// From a row of a block's sums to the next, in f32: an odd number of cache lines, so that the rows
/// spread over all sets of the cache.
const PITCH: usize = SIDE + 16;
/// Sums of a block, with what lies between its rows.
const BLOCK: usize = SIDE * PITCH;

/// Sums that are needed for `panels` panels of rows.
pub(super) fn sums(panels: usize) -> usize {
    panels * BLOCK
}

/// 32 rows of the left operand, for some steps: where they lie, or packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(super) data: &'a [bf16],
    /// Elements from a row to the next.
    pub(super) row: usize,
    /// Elements from a step to the next.
    pub(super) step: usize,
}

impl<'a> Rows<'a> {
    /// A packed panel.
    pub(super) fn of_panel(lines: &'a [Line]) -> Self {
        // SAFETY: a line is 32 elements without padding.
        let data = unsafe {
            let len = size_of_val(lines) / size_of::<bf16>();
            std::slice::from_raw_parts(lines.as_ptr().cast::<bf16>(), len)
        };
        Self { data, row: DEPTH, step: SIDE * DEPTH }
    }
}

/// The left panels of a task.
#[derive(Debug)]
pub(super) struct Panels<'a> {
    rows: Rows<'a>,
    /// Elements from a panel to the next.
    panel: usize,
    /// How many lie in `rows`; the one after them is packed.
    whole: usize,
    packed: Rows<'a>,
}

impl<'a> Panels<'a> {
    /// `rows` rows of a matrix where they lie, from `first` and `depth` on. Those that are no whole
    /// panel are `packed`.
    pub(super) fn of_rows(
        operand: &Operand<'a, bf16>,
        first: usize,
        depth: usize,
        rows: usize,
        packed: &'a [Line],
    ) -> Self {
        let data = &operand.data[first * operand.stride + depth..];
        Self {
            rows: Rows { data, row: operand.stride, step: DEPTH },
            panel: SIDE * operand.stride,
            whole: rows / SIDE,
            packed: Rows::of_panel(packed),
        }
    }

    /// Packed panels of `steps` steps.
    pub(super) fn of_lines(lines: &'a [Line], steps: usize) -> Self {
        let rows = Rows::of_panel(lines);
        let panel = SIDE * DEPTH * steps;
        Self { rows, panel, whole: rows.data.len() / panel, packed: Rows::of_panel(&[]) }
    }

    /// A panel from a step on.
    fn of(&self, panel: usize, step: usize) -> Rows<'a> {
        let (rows, first) =
            if panel < self.whole { (self.rows, panel * self.panel) } else { (self.packed, 0) };
        Rows { data: &rows.data[first + step * rows.step..], ..rows }
    }
}

/// Where a task's sums go.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) at: [usize; 2],
    pub(super) size: [usize; 2],
    /// Whether they are added to what is there.
    pub(super) add: bool,
}

/// Multiplies all left panels by all right ones, which hold `steps` steps, and writes the sums.
pub(super) fn write<M: Machine, O: Output>(
    left: &Panels,
    right: &[Line],
    steps: usize,
    place: &Place,
    sums: &mut [f32],
    out: &Tiles<O>,
) {
    let slice = steps.div_ceil(steps.div_ceil(SLICE));
    let Place { at: [row, column], size: [height, width], add } = *place;
    M::configured(|tiles| {
        for (j, right) in right.chunks_exact(SIDE * steps).enumerate() {
            for (from, right) in (0..).step_by(slice).zip(right.chunks(SIDE * slice)) {
                for (i, sums) in
                    sums.chunks_exact_mut(BLOCK).take(height.div_ceil(SIDE)).enumerate()
                {
                    tiles.block(left.of(i, from), right, sums, PITCH, from > 0);
                    if from + slice >= steps {
                        let at = [row + i * SIDE, column + j * SIDE];
                        let size = [(height - i * SIDE).min(SIDE), (width - j * SIDE).min(SIDE)];
                        if size == [SIDE, SIDE] {
                            M::write(out, at, sums, PITCH, add);
                        } else {
                            out.write(at, size, sums, PITCH, add);
                        }
                    }
                }
            }
        }
        M::finish();
    });
}
