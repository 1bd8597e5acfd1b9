//! Tiles for ops that do many small products inside of one task.
#![expect(unsafe_code, reason = "units are seen as lines")]

use half::bf16;

use super::block::Rows;
use super::machine::{Machine, Tmm};
use super::pack::{Side, pack};
use super::{DEPTH, Line, SIDE};
use crate::gemm::Operand;
use crate::gemm::avx512::Avx512Bf16;
use crate::gemm::avx512_short;
use crate::gemm::kernel::{Kernel, Place};
use crate::gemm::serial::SerialKernel;

/// bf16 on tiles. A unit is a pair along the depth. Only where [`available`](super::available).
pub(crate) struct AmxBf16;

impl Kernel<bf16> for AmxBf16 {
    const MR: usize = SIDE;
    const NR: usize = SIDE;
    const DEPTH: usize = 2;
    const STEPS: usize = 256;
    type Unit = u32;

    #[inline(always)]
    fn unit(first: bf16, second: Option<bf16>) -> u32 {
        Avx512Bf16::unit(first, second)
    }

    /// Right panels.
    fn pack_panels(operand: &Operand<bf16>, place: Place, width: usize, panels: &mut [u32]) {
        Avx512Bf16::pack_panels(operand, place, width, panels);
    }

    fn tile(a: &[u32], b: &[u32], c: &mut [f32], ldc: usize, add: bool) {
        block(Rows::of_panel(lines(a)), b, c, ldc, add);
    }
}

impl SerialKernel<bf16> for AmxBf16 {
    const LOT: usize = DEPTH / 2;

    fn ready<R>(work: impl FnOnce() -> R) -> R {
        Tmm::configured(|_| work())
    }

    fn pack_left(operand: &Operand<bf16>, first: usize, depth: usize, panel: &mut [u32]) {
        let steps = panel.len() / (SIDE * Self::LOT);
        // SAFETY: a line is 16 units; every bit pattern is a value of both types.
        let (before, lines, after) = unsafe { panel.align_to_mut::<Line>() };
        assert!(before.is_empty() && after.is_empty(), "panels of whole lines");
        pack(operand, first, depth, Side::Left, steps, lines);
    }

    fn tile_of_lines(
        lines: &[bf16],
        blocks: usize,
        stride: usize,
        right: &[u32],
        c: &mut [f32],
        ldc: usize,
        add: bool,
    ) {
        let right = &right[..blocks * SIDE * Self::LOT];
        block(Rows { data: lines, row: SIDE, step: stride }, right, c, ldc, add);
    }

    fn turn(from: &[f32], dim: usize, to: &mut [f32]) {
        avx512_short::turn(from, dim, to);
    }
}

fn block(left: Rows, right: &[u32], c: &mut [f32], ldc: usize, add: bool) {
    Tmm::with_set_up(|tiles| tiles.block(left, lines(right), c, ldc, add));
}

fn lines(units: &[u32]) -> &[Line] {
    // SAFETY: a line is 16 units; every bit pattern is a value of both types.
    let (before, lines, after) = unsafe { units.align_to() };
    assert!(before.is_empty() && after.is_empty(), "panels of whole lines");
    lines
}
