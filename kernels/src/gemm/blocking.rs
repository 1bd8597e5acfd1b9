//! The loops around a micro-kernel: what is packed when, and which task makes which tile.
//!
//! A product is cut into super-blocks whose packed operands fit into the outer cache, each of them
//! into tiles that one task computes from start to end. The cut depends on the shape alone, so the
//! number of threads cannot change a bit of the result.

use rayon::prelude::*;

use super::Operand;
use super::kernel::{Kernel, Place};
use super::output::{Output, Tiles};
use crate::rehearsal::Rehearsal;
use crate::scratch::Scratch;

/// Rows of a super-block, panels rounded up.
const ROWS: usize = 2048;
/// Columns of a super-block.
const COLUMNS: usize = 1024;
/// Elements along the depth of a super-block.
const DEPTH: usize = 4096;
/// Rows and columns of a task's tile, at most, panels rounded down.
const TILE_ROWS: usize = 192;
const TILE_COLUMNS: usize = 256;
/// Rows that one task packs at a time, at most: where they lie side by side, their panels share
/// cache lines.
const PACKED_ROWS: usize = 96;

/// `out [M, N] (+)= left [M, K] · right [N, K]ᵀ`, where `add` keeps what `out` holds.
pub(crate) fn multiply<T, K, O>(
    left: &Operand<T>,
    right: &Operand<T>,
    out: &mut [O],
    row_stride: usize,
    add: bool,
) where
    T: Copy + Send + Sync,
    K: Kernel<T>,
    O: Output,
{
    assert_eq!(left.depth, right.depth, "the summed dimension of both sides");
    let (rows, columns, depth) = (left.len, right.len, left.depth);
    let tiles = Tiles::new(out, rows, columns, row_stride);
    if depth == 0 {
        if !add {
            tiles.zero();
        }
        return;
    }
    let [left_units, right_units] = packed_units::<T, K>([rows, columns, depth]);
    let mut packed_left = Scratch::new(left_units);
    let mut packed_right = Scratch::new(right_units);
    for row in (0..rows).step_by(ROWS) {
        for k in (0..depth).step_by(DEPTH) {
            let block = Block {
                rows: (rows - row).min(ROWS),
                columns: 0,
                steps: (depth - k).min(DEPTH).div_ceil(K::DEPTH),
            };
            pack::<T, K>(left, row, k, &block, block.rows, K::MR, &mut packed_left);
            for column in (0..columns).step_by(COLUMNS) {
                let block = Block { columns: (columns - column).min(COLUMNS), ..block };
                pack::<T, K>(right, column, k, &block, block.columns, K::NR, &mut packed_right);
                let add = add || k > 0;
                tiles_of::<T, K, O>(
                    &block,
                    &packed_left,
                    &packed_right,
                    &tiles,
                    [row, column],
                    add,
                );
            }
        }
    }
}

/// Units of the packed operands of a product `[m, k] · [k, n]`.
fn packed_units<T: Copy, K: Kernel<T>>([m, n, k]: [usize; 3]) -> [usize; 2] {
    let units = |len: usize, most: usize, width: usize| {
        len.min(most).next_multiple_of(width) * k.min(DEPTH).div_ceil(K::DEPTH)
    };
    [units(m, ROWS, K::MR), units(n, COLUMNS, K::NR)]
}

/// Rows and columns of a task's tile.
fn tile_size<T: Copy, K: Kernel<T>>() -> [usize; 2] {
    [TILE_ROWS / K::MR * K::MR, TILE_COLUMNS / K::NR * K::NR]
}

/// Takes the buffers of a product `[m, k] · [k, n]`, and gives them back.
pub(crate) fn rehearse<T: Copy, K: Kernel<T>>(pool: &mut Rehearsal, [m, n, k]: [usize; 3]) {
    let [rows, columns] = tile_size::<T, K>();
    let tasks = m.min(ROWS).div_ceil(rows) * n.min(COLUMNS).div_ceil(columns);
    let mut taken: Vec<_> =
        packed_units::<T, K>([m, n, k]).map(|units| pool.take::<K::Unit>(units)).into();
    taken.extend((0..pool.at_a_time(tasks)).map(|_| pool.take::<f32>(rows * columns)));
    pool.give_all(taken);
}

/// The size of a super-block.
#[derive(Debug, Clone, Copy)]
struct Block {
    rows: usize,
    columns: usize,
    steps: usize,
}

/// Packs `len` rows of `operand` from `first` on as panels of `width`.
fn pack<T: Copy + Send + Sync, K: Kernel<T>>(
    operand: &Operand<T>,
    first: usize,
    depth: usize,
    block: &Block,
    len: usize,
    width: usize,
    packed: &mut [K::Unit],
) {
    let panel = block.steps * width;
    // Fewer where there are many threads to give something to do.
    let fair = len.div_ceil(4 * rayon::current_num_threads());
    let at_a_time = PACKED_ROWS.min(fair).div_ceil(width).max(1);
    let packed = &mut packed[..len.div_ceil(width) * panel];
    packed.par_chunks_mut(at_a_time * panel).enumerate().for_each(|(index, panels)| {
        let first = first + index * at_a_time * width;
        K::pack_panels(operand, Place { first, depth, steps: block.steps }, width, panels);
    });
}

fn tiles_of<T: Copy + Send + Sync, K: Kernel<T>, O: Output>(
    block: &Block,
    left: &[K::Unit],
    right: &[K::Unit],
    out: &Tiles<O>,
    [row, column]: [usize; 2],
    add: bool,
) {
    let [tile_rows, tile_columns] = tile_size::<T, K>();
    let (down, across) = (block.rows.div_ceil(tile_rows), block.columns.div_ceil(tile_columns));
    (0..down * across).into_par_iter().for_each_init(
        || Scratch::new(tile_rows * tile_columns),
        |sums, index| {
            let (i, j) = (index % down * tile_rows, index / down * tile_columns);
            let at = [row + i, column + j];
            let rows = (block.rows - i).min(tile_rows);
            let columns = (block.columns - j).min(tile_columns);
            let left = &left[i * block.steps..][..rows.div_ceil(K::MR) * K::MR * block.steps];
            let right = &right[j * block.steps..][..columns.div_ceil(K::NR) * K::NR * block.steps];
            let width = tile::<T, K>(left, right, block.steps, sums, |[row, column]| {
                out.prefetch([at[0] + row, at[1] + column], [K::MR, K::NR]);
            });
            out.write(at, [rows, columns], sums, width, add);
        },
    );
}

/// Computes a tile from its panels into `sums`, and returns the width of a row of it. `begins` hears
/// of the place in it that is next.
fn tile<T: Copy, K: Kernel<T>>(
    left: &[K::Unit],
    right: &[K::Unit],
    steps: usize,
    sums: &mut [f32],
    begins: impl Fn([usize; 2]),
) -> usize {
    let (rows, width) = (left.len() / steps, right.len() / steps);
    let sums = &mut sums[..rows * width];
    for from in (0..steps).step_by(K::STEPS) {
        let to = (from + K::STEPS).min(steps);
        for (j, right) in right.chunks_exact(steps * K::NR).enumerate() {
            let right = &right[from * K::NR..to * K::NR];
            for (i, left) in left.chunks_exact(steps * K::MR).enumerate() {
                let left = &left[from * K::MR..to * K::MR];
                if from == 0 {
                    begins([i * K::MR, j * K::NR]);
                }
                let c = &mut sums[i * K::MR * width + j * K::NR..];
                K::tile(left, right, c, width, from > 0);
            }
        }
    }
    width
}
