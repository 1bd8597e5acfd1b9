//! How panels are laid out for tiles, and the way there from either kind of matrix.
//!
//! A panel is 32 rows of an operand. Each step of it, 32 elements deep, is two tiles of 16 lines of
//! 64 bytes. In a left panel a line is a row: its 32 elements along the depth. In a right panel a
//! line is a pair of neighbours along the depth: that of each of 16 rows (which are columns of the
//! product). Seen as 16 × 16 lanes, each a pair, the two layouts are each other's transpose; so a
//! matrix whose depth lies last is copied as rows, one whose depth lies first is copied as pairs,
//! and tiles are transposed where the side wants the other one.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use half::bf16;

use super::{DEPTH, Line, SIDE};
use crate::gemm::Operand;

/// Lines of a tile, and lanes of a line.
const TILE: usize = 16;

/// Which layout a panel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Writes the panel of rows `first ..` of `operand` from `depth` on, as many steps as `panel` has.
/// Rows and depths past the end become zero.
pub(super) fn pack(
    operand: &Operand<bf16>,
    first: usize,
    depth: usize,
    side: Side,
    panel: &mut [Line],
) {
    use std::arch::is_x86_feature_detected as has;
    if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
        // SAFETY: the CPU has what the function is compiled for.
        unsafe { pack_avx512(operand, first, depth, side, panel) }
    } else {
        pack_with(operand, first, depth, side, panel, transpose);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_avx512(
    operand: &Operand<bf16>,
    first: usize,
    depth: usize,
    side: Side,
    panel: &mut [Line],
) {
    pack_with(operand, first, depth, side, panel, |tile| transpose_avx512(tile));
}

#[inline(always)]
fn pack_with(
    operand: &Operand<bf16>,
    first: usize,
    depth: usize,
    side: Side,
    panel: &mut [Line],
    transpose: impl Fn(&mut [Line; TILE]),
) {
    let as_rows = operand.depth_stride == 1;
    assert!(as_rows || operand.stride == 1, "one of the strides is 1");
    for (step, lines) in panel.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
        let at = depth + step * DEPTH;
        if as_rows {
            copy_rows(operand, first, at, lines);
        } else {
            copy_pairs(operand, first, at, lines);
        }
        if as_rows != (side == Side::Left) {
            lines.as_chunks_mut::<TILE>().0.iter_mut().for_each(&transpose);
        }
    }
}

/// `lines[i]` becomes row `first + i`, 32 elements from depth `at` on.
#[inline(always)]
fn copy_rows(operand: &Operand<bf16>, first: usize, at: usize, lines: &mut [Line; SIDE]) {
    let rows = operand.len.saturating_sub(first).min(SIDE);
    let depth = operand.depth.saturating_sub(at).min(DEPTH);
    let (present, absent) = lines.split_at_mut(if depth > 0 { rows } else { 0 });
    for (i, line) in present.iter_mut().enumerate() {
        let row = &operand.data[(first + i) * operand.stride + at..][..depth];
        *line = line_of(row);
    }
    absent.fill(Line::default());
}

/// Lanes of the lines of either tile become pairs along the depth: lane `j` of `lines[16 · t + p]`
/// is that of row `first + 16 · t + j` at depth `at + 2 · p`.
#[inline(always)]
fn copy_pairs(operand: &Operand<bf16>, first: usize, at: usize, lines: &mut [Line; SIDE]) {
    let rows = operand.len.saturating_sub(first).min(SIDE);
    let across = |depth: usize| {
        if depth >= operand.depth || rows == 0 {
            return Line::default();
        }
        line_of(&operand.data[depth * operand.depth_stride + first..][..rows])
    };
    for pair in 0..TILE {
        let (even, odd) = (across(at + 2 * pair), across(at + 2 * pair + 1));
        for tile in 0..2 {
            let line = &mut lines[tile * TILE + pair].0;
            for j in 0..TILE {
                line[2 * j] = even.0[tile * TILE + j];
                line[2 * j + 1] = odd.0[tile * TILE + j];
            }
        }
    }
}

/// Up to 32 elements, then zeros.
#[inline(always)]
fn line_of(elements: &[bf16]) -> Line {
    match elements.first_chunk() {
        Some(all) => Line(*all),
        None => {
            let mut line = Line::default();
            line.0[..elements.len()].copy_from_slice(elements);
            line
        }
    }
}

/// Exchanges lines and lanes.
fn transpose(tile: &mut [Line; TILE]) {
    for i in 0..TILE {
        for j in 0..i {
            for half in 0..2 {
                let kept = tile[i].0[2 * j + half];
                tile[i].0[2 * j + half] = tile[j].0[2 * i + half];
                tile[j].0[2 * i + half] = kept;
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_avx512(tile: &mut [Line; TILE]) {
    use std::arch::x86_64::{_mm512_load_si512, _mm512_setzero_si512, _mm512_store_si512};
    let mut lines = [_mm512_setzero_si512(); TILE];
    for (to, line) in lines.iter_mut().zip(&*tile) {
        // SAFETY: a line is 64 bytes, aligned to 64.
        *to = unsafe { _mm512_load_si512((&raw const *line).cast()) };
    }
    let lines = crate::gemm::avx512::transposed(&lines);
    for (line, from) in tile.iter_mut().zip(lines) {
        // SAFETY: as above.
        unsafe { _mm512_store_si512((&raw mut *line).cast(), from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Element `(row, depth)` of a matrix, different everywhere for the sizes of the test.
    fn value(row: usize, depth: usize) -> bf16 {
        bf16::from_bits((row * 97 + depth + 1) as u16)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_element_is_where_its_side_wants_it(
            len in 1usize..70, depth in 1usize..90, panel in 0usize..3, skipped in 0usize..2,
        ) {
            let first = panel * SIDE;
            prop_assume!(first < len);
            let rows: Vec<bf16> =
                (0..len * depth).map(|at| value(at / depth, at % depth)).collect();
            let columns: Vec<bf16> =
                (0..len * depth).map(|at| value(at % len, at / len)).collect();
            let expected = |row: usize, at: usize| {
                if row < len && at < depth { value(row, at) } else { bf16::ZERO }
            };
            let from = skipped * DEPTH;
            for operand in
                [Operand::rows(&rows, len, depth), Operand::columns(&columns, len, depth)]
            {
                for side in [Side::Left, Side::Right] {
                    let mut packed = vec![Line([bf16::NAN; 32]); 3 * SIDE];
                    pack(&operand, first, from, side, &mut packed);
                    let mut plain = vec![Line([bf16::NAN; 32]); 3 * SIDE];
                    pack_with(&operand, first, from, side, &mut plain, transpose);
                    for at in 0..3 * DEPTH {
                        for row in 0..SIDE {
                            let (step, at_step) = (at / DEPTH, at % DEPTH);
                            let place = match side {
                                Side::Left => (step * SIDE + row, at_step),
                                Side::Right => (
                                    step * SIDE + row / 16 * 16 + at_step / 2,
                                    row % 16 * 2 + at_step % 2,
                                ),
                            };
                            let expected = expected(first + row, from + at).to_bits();
                            prop_assert_eq!(packed[place.0].0[place.1].to_bits(), expected);
                            prop_assert_eq!(plain[place.0].0[place.1].to_bits(), expected);
                        }
                    }
                }
            }
        }
    }
}
