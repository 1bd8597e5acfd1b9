//! bf16 products on the tiles of Intel's AMX (Sapphire Rapids and later).
//!
//! The tile unit is so fast that what feeds it sets the pace: a step of a 32 × 32 block takes 64
//! cycles and reads 4 KiB. So the loops differ from those of the vector kernels in `blocking`. The
//! left operand is packed once and shared. A task then makes a strip of columns: it packs the right
//! operand's share of it itself, a chunk along the depth at a time, so that this never leaves the
//! core's own cache, and goes over it in slices so thin that a right panel's slice stays in L1
//! while the left panels stream by. Sums are f32 and stay in cache from the first slice to the last.
//!
//! A sum kept in a tile and one stored and loaded again have the same bits, so no result depends on
//! how the depth is cut into slices and chunks.

mod machine;
#[cfg(test)]
mod model;
mod pack;
mod sequence;
#[cfg(all(test, target_os = "linux"))]
mod trap;

pub(crate) use machine::{Machine, Tmm, available};
#[cfg(test)]
pub(crate) use model::Model;
#[cfg(all(test, target_os = "linux"))]
pub(crate) use trap::Trapped;

use half::bf16;
use rayon::prelude::*;

use super::Operand;
use super::output::{Output, Tiles};
use crate::rehearsal::Rehearsal;
use crate::scratch::{Plain, Scratch};
use pack::{Side, pack};

/// Rows of a left panel and of a right panel: two tiles.
const SIDE: usize = 32;
/// Elements along the depth of a step.
const DEPTH: usize = 32;

/// Rows of the left operand that are packed at a time.
const PACKED_ROWS: usize = 2048;
/// Steps of it, along the depth.
const PACKED_STEPS: usize = 128;
/// Rows of a task at most, and at least where a product is cut finer to have enough tasks.
const TASK_ROWS: [usize; 2] = [512, 128];
/// Tasks that a product should have.
const TASKS: usize = 8;
/// Panels of right columns of a task, at most.
const TASK_PANELS: usize = 6;
/// Steps of the right operand that a task packs at a time.
const CHUNK: usize = 20;
/// Steps that a block of sums stays in tiles. Slices of a left and a right panel and the sums are
/// 24 KiB then, half of L1, which leaves the other half to a second thread of the core.
const SLICE: usize = 5;

/// A row of a tile: 64 bytes.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Line([bf16; 32]);

#[expect(unsafe_code, reason = "lines lie in scratch buffers")]
// SAFETY: 32 numbers without padding, all of whose bit patterns are values, aligned to 64.
unsafe impl Plain for Line {}

/// `out [M, N] (+)= left [M, K] · right [N, K]ᵀ`, where `add` keeps what `out` holds.
pub(crate) fn multiply<M: Machine, O: Output>(
    left: &Operand<bf16>,
    right: &Operand<bf16>,
    out: &mut [O],
    row_stride: usize,
    add: bool,
) {
    assert_eq!(left.depth, right.depth, "the summed dimension of both sides");
    let (rows, columns, steps) = (left.len, right.len, left.depth.div_ceil(DEPTH));
    let tiles = Tiles::new(out, rows, columns, row_stride);
    if steps == 0 {
        if !add {
            tiles.zero();
        }
        return;
    }
    let panels = rows.min(PACKED_ROWS).div_ceil(SIDE);
    let mut packed = Scratch::new(panels * SIDE * steps.min(PACKED_STEPS));
    for row in (0..rows).step_by(PACKED_ROWS) {
        for step in (0..steps).step_by(PACKED_STEPS) {
            let block = Block::new(left, row, step, columns);
            let packed = &mut packed[..block.rows.div_ceil(SIDE) * SIDE * block.steps];
            pack_left(left, &block, packed);
            let add = add || step > 0;
            (0..block.tasks()).into_par_iter().for_each(|task| {
                block.task::<M, O>(task, packed, right, &tiles, add);
            });
        }
    }
}

/// Takes the buffers of a product `[m, k] · [k, n]`, and gives them back.
pub(crate) fn rehearse(pool: &mut Rehearsal, [m, n, k]: [usize; 3]) {
    let (steps, panels) = (k.div_ceil(DEPTH).min(PACKED_STEPS), m.min(PACKED_ROWS).div_ceil(SIDE));
    let block = Block::of([m.min(PACKED_ROWS), n], 0, [0, steps]);
    let mut taken = vec![pool.take::<Line>(panels * SIDE * steps)];
    let rows = block.task_rows.min(block.rows).next_multiple_of(SIDE);
    let panels = n.div_ceil(SIDE).div_ceil(block.strips);
    for _ in 0..pool.at_a_time(block.tasks()) {
        taken.push(pool.take::<Line>(panels * SIDE * steps.min(CHUNK)));
        taken.push(pool.take::<f32>(rows * pitch(panels)));
    }
    pool.give_all(taken);
}

/// From a row of sums to the next, in f32: an odd number of cache lines, so that the rows of a
/// block spread over all sets of the cache.
fn pitch(panels: usize) -> usize {
    panels * SIDE + 16
}

/// What is computed from one packed part of the left operand: its rows by all columns, over its
/// part of the depth.
#[derive(Debug)]
struct Block {
    row: usize,
    rows: usize,
    columns: usize,
    step: usize,
    steps: usize,
    task_rows: usize,
    strips: usize,
}

impl Block {
    fn new(left: &Operand<bf16>, row: usize, step: usize, columns: usize) -> Self {
        let rows = (left.len - row).min(PACKED_ROWS);
        let steps = (left.depth.div_ceil(DEPTH) - step).min(PACKED_STEPS);
        Self::of([rows, columns], row, [step, steps])
    }

    /// So many rows from `row` on by `columns`, over so many steps from `step` on.
    fn of([rows, columns]: [usize; 2], row: usize, [step, steps]: [usize; 2]) -> Self {
        let strips = columns.div_ceil(SIDE).div_ceil(TASK_PANELS);
        let [mut task_rows, least] = TASK_ROWS;
        while task_rows > least && rows.div_ceil(task_rows) * strips < TASKS {
            task_rows /= 2;
        }
        Self { row, rows, columns, step, steps, task_rows, strips }
    }

    /// Tasks of it. Neighbours share their rows.
    fn tasks(&self) -> usize {
        self.rows.div_ceil(self.task_rows) * self.strips
    }

    /// Makes the sums of one task and writes them.
    fn task<M: Machine, O: Output>(
        &self,
        task: usize,
        packed_left: &[Line],
        right: &Operand<bf16>,
        out: &Tiles<O>,
        add: bool,
    ) {
        let first_row = task / self.strips * self.task_rows;
        let rows = (self.rows - first_row).min(self.task_rows);
        let left = &packed_left[first_row * self.steps..];
        let left = &left[..rows.div_ceil(SIDE) * SIDE * self.steps];

        let (strip, panels) = (task % self.strips, self.columns.div_ceil(SIDE));
        let [from, to] = [strip, strip + 1].map(|strip| strip * panels / self.strips);
        let columns = (to * SIDE).min(self.columns) - from * SIDE;

        let mut strip = Strip::new(left, self.steps, to - from);
        M::configured(|tiles| {
            for step in (0..self.steps).step_by(CHUNK) {
                let steps = (self.steps - step).min(CHUNK);
                strip.pack(right, from * SIDE, self.step + step, steps);
                strip.add_chunk(tiles, step, steps);
            }
        });
        let place = [self.row + first_row, from * SIDE];
        out.write(place, [rows, columns], &strip.sums, strip.pitch, add);
    }
}

/// Packs the left panels of a block.
fn pack_left(left: &Operand<bf16>, block: &Block, packed: &mut [Line]) {
    packed.par_chunks_mut(SIDE * block.steps).enumerate().for_each(|(index, panel)| {
        pack(left, block.row + index * SIDE, block.step * DEPTH, Side::Left, panel);
    });
}

/// The work of a task: some left panels by a strip of right ones.
struct Strip<'a> {
    left: &'a [Line],
    /// Lines of a left panel.
    left_panel: usize,
    /// Panels of the strip, the chunk of steps that is being worked on.
    right: Scratch<Line>,
    panels: usize,
    sums: Scratch<f32>,
    /// From a row of sums to the next, in f32.
    pitch: usize,
}

impl<'a> Strip<'a> {
    fn new(left: &'a [Line], steps: usize, panels: usize) -> Self {
        let pitch = pitch(panels);
        let rows = left.len() / steps;
        Self {
            left,
            left_panel: steps * SIDE,
            right: Scratch::new(panels * SIDE * steps.min(CHUNK)),
            panels,
            sums: Scratch::new(rows * pitch),
            pitch,
        }
    }

    /// Packs the chunk of `steps` from `step` on.
    fn pack(&mut self, right: &Operand<bf16>, column: usize, step: usize, steps: usize) {
        let panels = self.right.chunks_exact_mut(SIDE * steps).take(self.panels);
        for (index, panel) in panels.enumerate() {
            pack(right, column + index * SIDE, step * DEPTH, Side::Right, panel);
        }
    }

    /// Adds the packed chunk's products, slice by slice. `step` is its place in the left panels.
    fn add_chunk<M: Machine>(&mut self, tiles: &mut M, step: usize, steps: usize) {
        let slice = steps.div_ceil(steps.div_ceil(SLICE));
        for from in (0..steps).step_by(slice) {
            let to = (from + slice).min(steps);
            let lefts = || self.left.chunks_exact(self.left_panel);
            let of_left = |panel: &'a [Line]| &panel[(step + from) * SIDE..(step + to) * SIDE];
            for (j, right) in self.right.chunks_exact(SIDE * steps).take(self.panels).enumerate() {
                let right = &right[from * SIDE..to * SIDE];
                let next = lefts().skip(1).chain(lefts().take(1));
                for (i, (left, next)) in lefts().zip(next).enumerate() {
                    let sums = &mut self.sums[i * SIDE * self.pitch + j * SIDE..];
                    let (left, next) = (of_left(left), of_left(next));
                    tiles.block(left, right, next, sums, self.pitch, step + from > 0);
                }
            }
        }
    }
}
