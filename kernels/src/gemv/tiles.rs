//! Dot products of bf16 on AMX tiles.

use half::bf16;

use super::Kernel;
use crate::gemm::amx;
use crate::scratch::Scratch;

/// Only where the CPU has tiles.
pub(super) struct OnTiles;

impl Kernel<bf16> for OnTiles {
    type X = amx::Line;
    const GROUP: usize = amx::decode::GROUP;
    const ROWS: usize = amx::decode::STRIP;

    fn prepare(x: &[bf16], depth: usize) -> Scratch<amx::Line> {
        amx::decode::pack_rows(x, depth)
    }

    fn laid(_: usize, depth: usize) -> usize {
        amx::decode::lines(depth)
    }

    fn panel(panel: &[bf16], x: &[amx::Line], batch: usize, depth: usize, sums: &mut [f32]) {
        amx::decode::dots(panel, x, depth, batch, sums);
    }
}
