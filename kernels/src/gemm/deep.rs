//! Sums over more depth than a kernel packs at a time, into an output that rounds: they are kept in
//! f32 until they are whole, or each lot of the depth would round them anew.

use rayon::prelude::*;

use super::output::{Output, Tiles};
use super::{Element, Operand};
use crate::rehearsal::Rehearsal;
use crate::scratch::Scratch;

/// The depth that every kernel sums up before it stores.
const DEPTH: usize = 4096;
/// Rows and columns whose sums are kept at a time: 8 MiB of them.
const ROWS: usize = 2048;
const COLUMNS: usize = 1024;
/// Rows that a task rounds.
const ROUNDED_ROWS: usize = 64;

/// Whether sums over so much depth have to be kept.
pub(super) fn is_deep<O: Output>(depth: usize) -> bool {
    O::ROUNDS && depth > DEPTH
}

/// [`Element::multiply`] by way of sums in f32.
pub(super) fn multiply<T: Element, O: Output>(
    left: &Operand<T>,
    right: &Operand<T>,
    out: &mut [O],
    row_stride: usize,
    add: bool,
) {
    let (rows, columns) = (left.len, right.len);
    let out = Tiles::new(out, rows, columns, row_stride);
    let mut kept = Scratch::<f32>::new(rows.min(ROWS) * columns.min(COLUMNS));
    for row in (0..rows).step_by(ROWS) {
        let left = left.part(row, ROWS);
        for column in (0..columns).step_by(COLUMNS) {
            let right = right.part(column, COLUMNS);
            let width = right.len;
            let sums = &mut kept[..left.len * width];
            T::multiply(&left, &right, sums, width, false);
            sums.par_chunks(ROUNDED_ROWS * width).enumerate().for_each(|(index, sums)| {
                let at = [row + index * ROUNDED_ROWS, column];
                out.write(at, [sums.len() / width, width], sums, width, add);
            });
        }
    }
}

/// Takes the buffer of a product `[m, k] · [k, n]` into an output that rounds, and what `product` of
/// that size takes, and gives them back.
pub(super) fn rehearse(
    pool: &mut Rehearsal,
    [m, n, k]: [usize; 3],
    product: impl FnOnce(&mut Rehearsal, [usize; 3]),
) {
    let kept = pool.take::<f32>(m.min(ROWS) * n.min(COLUMNS));
    product(pool, [m.min(ROWS), n.min(COLUMNS), k]);
    pool.give(kept);
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::tests::values;
    use super::*;

    /// Past every cut, with the error of one rounding: half a unit in the last place.
    #[test]
    fn deep_sums_are_rounded_once() {
        for (m, n) in [(2070, 33), (33, 1040)] {
            let k = 3 * DEPTH + 7;
            let of = |len, salt| values(len, salt).into_iter().map(bf16::from_f32).collect();
            let (a, b): (Vec<bf16>, Vec<bf16>) = (of(m * k, 1), of(n * k, 2));
            let (left, right) = (Operand::rows(&a, m, k), Operand::columns(&b, n, k));
            for add in [false, true] {
                let mut out = vec![bf16::from_f32(0.5); m * n];
                bf16::multiply(&left, &right, &mut out, n, add);
                for place in (0..m * n).step_by(997) {
                    let (i, j) = (place / n, place % n);
                    let product = |d: usize| a[i * k + d].to_f64() * b[d * n + j].to_f64();
                    let sum = (0..k).map(product).sum::<f64>() + if add { 0.5 } else { 0.0 };
                    let off = (out[place].to_f64() - sum).abs();
                    assert!(off <= sum.abs() / 256.0 + 1e-3, "{i},{j}: {off:e} of {sum}");
                }
            }
        }
    }
}
