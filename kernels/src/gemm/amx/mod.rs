//! bf16 products on the tiles of Intel's AMX (Sapphire Rapids and later).
//!
//! The tile unit is so fast that what feeds it sets the pace: a step of a 32 × 32 block takes 64
//! cycles and reads 4 KiB. So the loops differ from those of the vector kernels in `blocking`. A
//! task makes some rows of a block of columns. Each thread packs the block's share of the right
//! operand for itself, so that it comes into that core's own cache, and keeps it for the next tasks
//! of the same block. A left operand whose rows are whole steps is read where it lies, but for
//! rows that are no whole panel. Along the
//! depth a block goes slice by slice, so thin that a right panel's slice stays in L1 while the left
//! rows stream by.
//!
//! A sum kept in a tile and one stored and loaded again have the same bits, so no result depends on
//! how the depth is cut into slices, nor the product into tasks.

mod block;
mod machine;
#[cfg(test)]
mod model;
mod pack;
mod sequence;
mod serial;
#[cfg(all(test, target_os = "linux"))]
mod trap;

pub(crate) use machine::{Machine, Tmm, available};
#[cfg(test)]
pub(crate) use model::Model;
#[cfg(all(test, target_os = "linux"))]
pub(crate) use trap::Trapped;

pub(crate) use serial::AmxBf16;

use std::sync::{Mutex, PoisonError};

use half::bf16;
use rayon::prelude::*;

use super::Operand;
use super::output::{Output, Tiles};
use crate::rehearsal::Rehearsal;
use crate::scratch::{Plain, Scratch};
use block::Panels;
use pack::{Side, pack};

/// Rows of a left panel and of a right panel: two tiles.
const SIDE: usize = 32;
/// Elements along the depth of a step.
const DEPTH: usize = 32;

/// Rows of a task at most.
const TASK_ROWS: usize = 256;
/// Tasks that a product should have.
const TASKS: usize = 8;
/// Steps that are worked on before the next ones are packed, where sums are stored as f32 and
/// where they are rounded.
const CHUNK_F32: usize = 32;
const CHUNK_ROUNDED: usize = 128;
/// Steps that a block of sums stays in tiles, which is then stored and loaded again: a right panel's
/// slice is 32 KiB then, two thirds of L1, beside which the left rows stream by.
const SLICE: usize = 16;

/// Bytes that a thread packs of the right operand: half of the core's own cache, and less where
/// threads are so many that it would add up. Of the left one it packs half of that.
fn packed_bytes(threads: usize) -> usize {
    ((8 << 20) / threads.max(1)).clamp(256 << 10, 1 << 20)
}

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
    let threads = rayon::current_num_threads();
    let most = if O::ROUNDS { CHUNK_ROUNDED } else { CHUNK_F32 };
    let chunk = steps.div_ceil(steps.div_ceil(most));
    // Where a chunk is short, a block of fewer columns leaves more of the cache to the sums.
    let bytes = packed_bytes(threads) / if O::ROUNDS { 1 } else { 2 };
    let cut = Cut::of([rows, columns], chunk, bytes, lies_in_steps(left));
    let tiles = if cut.chunk < steps { tiles.cached() } else { tiles };
    let workspaces: Vec<_> = (0..threads).map(|_| Mutex::new(None)).collect();
    for step in (0..steps).step_by(cut.chunk) {
        let product = Product {
            left,
            right,
            step,
            steps: (steps - step).min(cut.chunk),
            add: add || step > 0,
        };
        (0..cut.tasks()).into_par_iter().with_max_len(1).for_each(|task| {
            let thread = rayon::current_thread_index().unwrap_or(0);
            let mut own = workspaces[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let own = own.get_or_insert_with(|| Workspace::new(threads));
            cut.task::<M, O>(task, &product, own, &tiles);
        });
    }
}

/// Takes the buffers of a product `[m, k] · [k, n]`, and gives them back.
pub(crate) fn rehearse(pool: &mut Rehearsal, [m, n, _]: [usize; 3]) {
    let threads = pool.at_a_time(usize::MAX);
    let most = m.div_ceil(SIDE) * n.div_ceil(SIDE);
    let mut taken = vec![];
    for _ in 0..pool.at_a_time(most) {
        let [right, left, sums] = Workspace::sizes(threads);
        taken.push(pool.take::<Line>(right));
        taken.push(pool.take::<Line>(left));
        taken.push(pool.take::<f32>(sums));
    }
    pool.give_all(taken);
}

/// Bytes of the buffers of a product on so many threads, whatever its size.
pub(crate) fn buffer_bytes(threads: usize) -> usize {
    let [right, left, sums] = Workspace::sizes(threads);
    threads * ((right + left) * size_of::<Line>() + sums * size_of::<f32>())
}

/// What a thread packs and sums up during a product.
struct Workspace {
    right: Scratch<Line>,
    /// The first column and the first step of what `right` holds.
    holds: Option<[usize; 2]>,
    left: Scratch<Line>,
    sums: Scratch<f32>,
}

impl Workspace {
    fn new(threads: usize) -> Self {
        let [right, left, sums] = Self::sizes(threads);
        Self {
            right: Scratch::new(right),
            holds: None,
            left: Scratch::new(left),
            sums: Scratch::new(sums),
        }
    }

    /// Lines of `right` and of `left`, and sums.
    fn sizes(threads: usize) -> [usize; 3] {
        let lines = packed_bytes(threads) / size_of::<Line>();
        // One panel of the longest chunk always fits.
        [lines, (lines / 2).max(CHUNK_ROUNDED * SIDE), block::sums(TASK_ROWS / SIDE)]
    }
}

/// A product's operands, and the part of their depth that is being worked on.
struct Product<'a> {
    left: &'a Operand<'a, bf16>,
    right: &'a Operand<'a, bf16>,
    step: usize,
    steps: usize,
    add: bool,
}

/// Whether tiles can be loaded from whole panels of it as they lie.
fn lies_in_steps(left: &Operand<bf16>) -> bool {
    left.depth_stride == 1 && left.depth.is_multiple_of(DEPTH)
}

/// How a product is cut: into chunks along the depth, and each of them into tasks.
#[derive(Debug)]
struct Cut {
    rows: usize,
    columns: usize,
    /// Steps of a chunk.
    chunk: usize,
    task_rows: usize,
    task_columns: usize,
}

impl Cut {
    /// A task's right panels take so many bytes at most, its left ones, where they are packed, half
    /// of that.
    fn of([rows, columns]: [usize; 2], chunk: usize, bytes: usize, in_steps: bool) -> Self {
        let panels = bytes / (chunk * SIDE * size_of::<Line>());
        let all = columns.div_ceil(SIDE);
        let task_columns = all.div_ceil(all.div_ceil(panels)) * SIDE;
        let most = if in_steps { TASK_ROWS } else { (panels / 2).max(1) * SIDE };
        let mut task_rows = TASK_ROWS.min(most);
        while task_rows > SIDE && rows.div_ceil(task_rows) * columns.div_ceil(task_columns) < TASKS
        {
            task_rows = (task_rows / 2).next_multiple_of(SIDE);
        }
        Self { rows, columns, chunk, task_rows, task_columns }
    }

    /// Tasks of a chunk. Those of the same columns follow each other.
    fn tasks(&self) -> usize {
        self.rows.div_ceil(self.task_rows) * self.columns.div_ceil(self.task_columns)
    }

    /// Makes the sums of one task and writes them.
    fn task<M: Machine, O: Output>(
        &self,
        task: usize,
        product: &Product,
        own: &mut Workspace,
        out: &Tiles<O>,
    ) {
        let down = self.rows.div_ceil(self.task_rows);
        let [row, column] = [task % down * self.task_rows, task / down * self.task_columns];
        let size =
            [(self.rows - row).min(self.task_rows), (self.columns - column).min(self.task_columns)];
        let Product { left, right, step, steps, add } = *product;
        let lines = |len: usize| len.div_ceil(SIDE) * SIDE * steps;

        let packed_right = &mut own.right[..lines(size[1])];
        if own.holds != Some([column, step]) {
            pack(right, column, step * DEPTH, Side::Right, steps, packed_right);
            own.holds = Some([column, step]);
        }
        let at = step * DEPTH;
        let lefts = if lies_in_steps(left) {
            let whole = size[0] / SIDE * SIDE;
            let packed = &mut own.left[..lines(size[0] - whole)];
            pack(left, row + whole, at, Side::Left, steps, packed);
            Panels::of_rows(left, row, at, size[0], packed)
        } else {
            let packed = &mut own.left[..lines(size[0])];
            pack(left, row, at, Side::Left, steps, packed);
            Panels::of_lines(packed, steps)
        };
        let place = block::Place { at: [row, column], size, add };
        block::write::<M, O>(&lefts, packed_right, steps, &place, &mut own.sums, out);
    }
}
