//! Few rows of `x` by a weight that is read once: 32 of its rows at a time, where they lie.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use half::bf16;

use super::block::Rows;
use super::machine::{Machine, Tmm};
use super::pack::{Side, pack};
use super::{DEPTH, Line, SIDE};
use crate::gemm::Operand;
use crate::scratch::Scratch;

/// Rows of `x` that are worked on together.
pub(crate) const GROUP: usize = SIDE;
/// Rows of a weight that are worked on together.
pub(crate) const STRIP: usize = SIDE;

/// Lines of a group of any number of rows.
pub(crate) fn lines(depth: usize) -> usize {
    depth.div_ceil(DEPTH) * SIDE
}

/// Packs rows of `x [n, depth]`, group by group.
pub(crate) fn pack_rows(x: &[bf16], depth: usize) -> Scratch<Line> {
    let rows = x.len() / depth;
    let mut packed = Scratch::new(rows.div_ceil(GROUP) * lines(depth));
    let x = Operand::rows(x, rows, depth);
    pack(&x, 0, 0, Side::Right, depth.div_ceil(DEPTH), &mut packed);
    packed
}

/// `weight [rows, depth]` by `batch` rows of a group → `sums [batch, rows]`. Only where there are
/// tiles.
pub(crate) fn dots(weight: &[bf16], x: &[Line], depth: usize, batch: usize, sums: &mut [f32]) {
    let rows = weight.len() / depth;
    let weight = Operand::rows(weight, rows, depth);
    let mut c = [0.0; STRIP * GROUP];
    Tmm::configured(|tiles| {
        for first in (0..rows).step_by(STRIP) {
            let height = (rows - first).min(STRIP);
            expect(&weight, first + STRIP);
            if height == STRIP && depth.is_multiple_of(DEPTH) {
                let rows = Rows { data: &weight.data[first * depth..], row: depth, step: DEPTH };
                tiles.block(rows, x, &mut c, GROUP, false);
            } else {
                let mut packed = Scratch::new(lines(depth));
                pack(&weight, first, 0, Side::Left, depth.div_ceil(DEPTH), &mut packed);
                tiles.block(Rows::of_panel(&packed), x, &mut c, GROUP, false);
            }
            for (row, c) in c.chunks_exact(GROUP).take(height).enumerate() {
                for (sums, sum) in sums.chunks_exact_mut(rows).zip(c).take(batch) {
                    sums[first + row] = *sum;
                }
            }
        }
    });
}

/// Lets a strip come into the outer cache; what lies past the end is likely the next task's.
#[expect(unsafe_code, reason = "prefetching")]
fn expect(weight: &Operand<bf16>, first: usize) {
    let strip = weight.data.as_ptr().wrapping_add(first * weight.depth);
    for line in (0..STRIP * weight.depth).step_by(DEPTH) {
        // SAFETY: prefetching is allowed from any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(strip.wrapping_add(line).cast()) }
    }
}
