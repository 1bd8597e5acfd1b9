//! bf16 products with one short side, as low-rank adapters have them: `x·Aᵀ` with a few rows of
//! `A`, `y += u·Bᵀ` summed over a few elements, and the gradients of `A` and `B`.
//!
//! Blocks of the size that large products want would be mostly padding here, and packing the long
//! side takes longer than the product. So the long side is read where it lies, once for [`GROUP`]
//! rows of the short side, and only the short one is packed. Tasks are cut by the shape alone, and
//! no sum depends on the other rows, so bits depend neither on threads nor on how many rows come at
//! a time.

use half::bf16;
use rayon::prelude::*;

use super::Operand;
use super::avx512_narrow as kernel;
use super::output::{Output, Tiles};
use crate::rehearsal::Rehearsal;
use crate::scratch::Scratch;

use kernel::{COLUMNS, GROUP, LANES, QUAD, ROWS};

/// A side with no more rows than this is short, and so is a sum of no more elements.
const SHORT: usize = 16;
/// Rows of a task that multiplies by a short side.
const TASK_ROWS: usize = 4 * ROWS;
/// Sums of a task, about, where few elements make each.
const TASK_SUMS: usize = 1 << 16;
/// Such sums that are made before they are written.
const LINE: usize = 512;
/// Blocks of columns that a task sums over tokens, and tokens that go through all of them in turn.
const BLOCKS: usize = 2;
const TOKENS: usize = 64;

/// Where the short side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `[m, k] · [short, k]ᵀ`, the left side by rows.
    RightRows,
    /// `[m, short] · [n, short]ᵀ`.
    Depth,
    /// `[k, short]ᵀ · [k, n]`, the right side by columns.
    Sums,
    /// `[k, m]ᵀ · [k, short]`, the left side by columns: the same, turned over.
    TurnedSums,
}

impl Shape {
    /// Of a product `[m, k] · [k, n]`. `sums` says whether the rows that are summed over lie whole on
    /// both sides, `rows` whether those of the left side do.
    fn of([m, n, k]: [usize; 3], sums: bool, rows: bool) -> Option<Self> {
        if k <= SHORT {
            Some(Self::Depth)
        } else if sums && m <= SHORT {
            Some(Self::Sums)
        } else if sums && n <= SHORT {
            Some(Self::TurnedSums)
        } else if rows && n <= SHORT {
            Some(Self::RightRows)
        } else {
            None
        }
    }

    /// Units of the side that is packed, [`SHORT`] at most or of a short sum.
    fn packed(self, [m, n, k]: [usize; 3]) -> usize {
        match self {
            Self::RightRows => n.div_ceil(GROUP) * k.div_ceil(QUAD) * LANES,
            Self::Depth => n.div_ceil(LANES) * k.div_ceil(2) * LANES,
            Self::Sums => m.div_ceil(GROUP) * k.div_ceil(2) * GROUP,
            Self::TurnedSums => n.div_ceil(GROUP) * k.div_ceil(2) * GROUP,
        }
    }
}

/// Whether a product `[m, k] · [k, n]` has a short side.
pub(super) fn has_short_side(size: [usize; 3], sums: bool) -> bool {
    Shape::of(size, sums, !sums).is_some()
}

/// Takes the buffer of a product `[m, k] · [k, n]` with a short side and gives it back; false where no
/// side is short.
pub(super) fn rehearse(pool: &mut Rehearsal, size: [usize; 3], sums: bool) -> bool {
    let Some(shape) = Shape::of(size, sums, !sums) else { return false };
    let packed = pool.take::<u32>(shape.packed(size));
    pool.give(packed);
    true
}

/// Makes the product if a side is short; else `out` is as it was. Only where the CPU has AVX-512
/// BF16.
pub(super) fn multiply<O: Output>(
    left: &Operand<bf16>,
    right: &Operand<bf16>,
    out: &mut [O],
    row_stride: usize,
    add: bool,
) -> bool {
    assert_eq!(left.depth, right.depth, "the summed dimension of both sides");
    let size = [left.len, right.len, left.depth];
    if size.contains(&0) {
        return false;
    }
    let sums = left.stride == 1 && right.stride == 1;
    let Some(shape) = Shape::of(size, sums, left.depth_stride == 1) else { return false };
    let packed = Scratch::<u32>::new(shape.packed(size));
    let tiles = Tiles::new(out, left.len, right.len, row_stride);
    match shape {
        Shape::RightRows => by_rows(left, right, packed, &tiles, add),
        Shape::Depth => of_few(left, right, packed, &tiles, add),
        Shape::Sums => over_tokens(left, right, packed, |column, columns, sums| {
            tiles.write([0, column], [left.len, columns], sums, COLUMNS, add);
        }),
        Shape::TurnedSums => over_tokens(right, left, packed, |row, rows, sums| {
            let mut turned = [0.0; COLUMNS * SHORT];
            for (i, sums) in sums.chunks_exact(COLUMNS).enumerate() {
                sums.iter().enumerate().for_each(|(j, sum)| turned[j * SHORT + i] = *sum);
            }
            tiles.write([row, 0], [rows, right.len], &turned, SHORT, add);
        }),
    }
    true
}

/// Elements `at` and `at + 1` along the depth of row `i`; what is past the ends is zero.
fn pair(of: &Operand<bf16>, i: usize, at: usize) -> u32 {
    let element = |at: usize| {
        let there = i < of.len && at < of.depth;
        let bits = || of.data[i * of.stride + at * of.depth_stride].to_bits();
        u32::from(if there { bits() } else { 0 })
    };
    element(at) | element(at + 1) << 16
}

/// `out [m, short]`: each row of the left side by all of the right one.
fn by_rows<O: Output>(
    left: &Operand<bf16>,
    right: &Operand<bf16>,
    mut packed: Scratch<u32>,
    out: &Tiles<O>,
    add: bool,
) {
    let quads = left.depth.div_ceil(QUAD);
    for (index, units) in packed.chunks_exact_mut(LANES).enumerate() {
        let (group, quad) = (index / quads, index % quads);
        for (lane, unit) in units.iter_mut().enumerate() {
            *unit = pair(right, group * GROUP + lane / 2, quad * QUAD + lane % 2 * 2);
        }
    }
    (0..left.len.div_ceil(TASK_ROWS)).into_par_iter().for_each(|task| {
        let end = left.len.min((task + 1) * TASK_ROWS);
        for first in (task * TASK_ROWS..end).step_by(ROWS) {
            let count = (end - first).min(ROWS);
            // Past the end the last row stands in, and its sums are not used.
            let rows: [&[bf16]; ROWS] = std::array::from_fn(|i| {
                &left.data[(first + i.min(count - 1)) * left.stride..][..left.depth]
            });
            let mut sums = [0.0; ROWS * SHORT];
            for (group, packed) in packed.chunks_exact(quads * LANES).enumerate() {
                for (row, of_row) in kernel::rows_by_group(&rows, packed).iter().enumerate() {
                    sums[row * SHORT + group * GROUP..][..GROUP].copy_from_slice(of_row);
                }
            }
            out.write([first, 0], [count, right.len], &sums, SHORT, add);
        }
    });
}

/// `out [m, n]` where each sum is of a few elements.
fn of_few<O: Output>(
    left: &Operand<bf16>,
    right: &Operand<bf16>,
    mut packed: Scratch<u32>,
    out: &Tiles<O>,
    add: bool,
) {
    let pairs = left.depth.div_ceil(2);
    let block = pairs * LANES;
    for (index, unit) in packed.iter_mut().enumerate() {
        let (first, within) = (index / block * LANES, index % block);
        *unit = pair(right, first + within % LANES, within / LANES * 2);
    }
    let rows = (TASK_SUMS / right.len).max(1);
    (0..left.len.div_ceil(rows)).into_par_iter().for_each(|task| {
        let mut sums = [0.0; LINE];
        for row in task * rows..left.len.min((task + 1) * rows) {
            let of_row: [u32; SHORT / 2] = std::array::from_fn(|i| pair(left, row, 2 * i));
            for (line, packed) in packed.chunks(LINE / LANES * block).enumerate() {
                let (first, columns) = (line * LINE, (right.len - line * LINE).min(LINE));
                kernel::row_by_columns(&of_row[..pairs], packed, &mut sums);
                out.write([row, first], [1, columns], &sums, LINE, add);
            }
        }
    });
}

/// `[short, n]`, each sum over the rows that both sides consist of. `write` gets the first column,
/// how many, and their sums, `[short rounded up, COLUMNS]`.
fn over_tokens(
    short: &Operand<bf16>,
    long: &Operand<bf16>,
    mut packed: Scratch<u32>,
    write: impl Fn(usize, usize, &[f32]) + Sync,
) {
    let (tokens, groups) = (short.depth, short.len.div_ceil(GROUP));
    let pairs = tokens.div_ceil(2);
    for (index, unit) in packed.iter_mut().enumerate() {
        let (group, within) = (index / (pairs * GROUP), index % (pairs * GROUP));
        *unit = pair(short, group * GROUP + within % GROUP, within / GROUP * 2);
    }
    (0..long.len.div_ceil(BLOCKS * COLUMNS)).into_par_iter().for_each(|task| {
        let first = |block: usize| (task * BLOCKS + block) * COLUMNS;
        let blocks = BLOCKS.min((long.len - first(0)).div_ceil(COLUMNS));
        let mut sums = [[[0.0; GROUP * COLUMNS]; SHORT / GROUP]; BLOCKS];
        for token in (0..tokens).step_by(TOKENS) {
            let count = (tokens - token).min(TOKENS);
            for (block, sums) in sums[..blocks].iter_mut().enumerate() {
                let lines = &long.data[token * long.depth_stride + first(block)..];
                let columns = (long.len - first(block)).min(COLUMNS);
                for (sums, packed) in sums.iter_mut().zip(packed.chunks_exact(pairs * GROUP)) {
                    let packed = &packed[token / 2 * GROUP..][..count.div_ceil(2) * GROUP];
                    let lines = kernel::Lines { lines, stride: long.depth_stride, count, columns };
                    kernel::add_over_lines(&lines, packed, sums);
                }
            }
        }
        for (block, sums) in sums[..blocks].iter().enumerate() {
            let mut ordered = [0.0; SHORT * COLUMNS];
            let each = ordered.chunks_exact_mut(GROUP * COLUMNS).zip(sums);
            each.for_each(|(to, sums)| kernel::in_order(sums, to));
            let columns = (long.len - first(block)).min(COLUMNS);
            write(first(block), columns, &ordered[..groups * GROUP * COLUMNS]);
        }
    });
}
