//! How panels are laid out for tiles, and the way there from either kind of matrix.
//!
//! A panel is 32 rows of an operand. Each step of it, 32 elements deep, is two tiles of 16 lines of
//! 64 bytes. In a left panel a line is a row: its 32 elements along the depth; the lines of the upper
//! tile come first. In a right panel a line is a pair of neighbours along the depth: that of each of
//! 16 rows (which are columns of the product); the lines of both tiles take turns, so that a pair of
//! all 32 rows lies together. Seen as 16 × 16 lanes, each a pair, the two kinds of tiles are each
//! other's transpose; so a matrix whose depth lies last is copied as rows, one whose depth lies
//! first is copied as pairs, and tiles are transposed where the side wants the other one.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_load_si512, _mm512_store_si512,
};

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

/// Writes `panels` panels, one after the other, of rows `first ..` of `operand` from `depth` on, of
/// `steps` steps each. Rows and depths past the end become zero.
pub(super) fn pack(
    operand: &Operand<bf16>,
    first: usize,
    depth: usize,
    side: Side,
    steps: usize,
    panels: &mut [Line],
) {
    use std::arch::is_x86_feature_detected as has;
    if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
        // SAFETY: the CPU has what the function is compiled for.
        unsafe { pack_avx512(operand, first, depth, side, steps, panels) }
    } else {
        pack_with(Scalar, operand, first, depth, side, steps, panels);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_avx512(
    operand: &Operand<bf16>,
    first: usize,
    depth: usize,
    side: Side,
    steps: usize,
    panels: &mut [Line],
) {
    pack_with(Avx512, operand, first, depth, side, steps, panels);
}

/// What is done to the 32 lines of a step.
trait Shuffle: Copy {
    /// Each two lines, neighbours along the depth, become lines of pairs, one for either tile.
    fn pair(self, lines: &[Line; SIDE], to: &mut [Line; SIDE]);
    /// Of lines of either tile, one tile after the other, to those that take turns, with lines and
    /// lanes exchanged.
    fn to_right(self, lines: &mut [Line; SIDE]);
    /// The way back.
    fn to_left(self, lines: &mut [Line; SIDE]);
}

#[inline(always)]
fn pack_with<S: Shuffle>(
    shuffle: S,
    operand: &Operand<bf16>,
    first: usize,
    depth: usize,
    side: Side,
    steps: usize,
    panels: &mut [Line],
) {
    let as_rows = operand.depth_stride == 1;
    assert!(as_rows || operand.stride == 1, "one of the strides is 1");
    let count = panels.len() / (steps * SIDE);
    for place in 0..count * steps {
        // In the order of the memory.
        let (panel, step) =
            if as_rows { (place / steps, place % steps) } else { (place % count, place / count) };
        let lines: &mut [Line; SIDE] =
            (&mut panels[(panel * steps + step) * SIDE..][..SIDE]).try_into().expect("32 lines");
        let (row, at) = (first + panel * SIDE, depth + step * DEPTH);
        if as_rows {
            copy(
                operand.data,
                [row, operand.len],
                [at, operand.depth],
                operand.stride,
                SIDE * operand.stride,
                lines,
            );
        } else {
            let mut across = [Line::default(); SIDE];
            let [rows, columns] = [[at, operand.depth], [row, operand.len]];
            copy(
                operand.data,
                rows,
                columns,
                operand.depth_stride,
                SIDE * operand.depth_stride,
                &mut across,
            );
            shuffle.pair(&across, lines);
        }
        match side {
            Side::Left if !as_rows => shuffle.to_left(lines),
            Side::Right if as_rows => shuffle.to_right(lines),
            _ => {}
        }
    }
}

/// `lines[i]` becomes 32 elements of row `row + i`, from `column` on, of a matrix of `rows` rows
/// that are `stride` apart and have `columns` elements. What lies outside is zero. What lies `ahead`
/// elements further comes into the cache: no such row is long enough for the CPU to foresee it.
#[inline(always)]
fn copy(
    data: &[bf16],
    [row, rows]: [usize; 2],
    [column, columns]: [usize; 2],
    stride: usize,
    ahead: usize,
    lines: &mut [Line; SIDE],
) {
    let width = columns.saturating_sub(column).min(SIDE);
    let height = if width > 0 { rows.saturating_sub(row).min(SIDE) } else { 0 };
    let (present, absent) = lines.split_at_mut(height);
    for (i, line) in present.iter_mut().enumerate() {
        let from = &data[(row + i) * stride + column..];
        // SAFETY: prefetching is allowed from any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(ahead).cast()) };
        *line = line_of(&from[..width]);
    }
    absent.fill(Line::default());
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

/// Without vector instructions.
#[derive(Clone, Copy)]
struct Scalar;

impl Shuffle for Scalar {
    fn pair(self, lines: &[Line; SIDE], to: &mut [Line; SIDE]) {
        for ([even, odd], to) in lines.as_chunks().0.iter().zip(to.as_chunks_mut::<2>().0) {
            for (i, pair) in even.0.iter().zip(&odd.0).enumerate() {
                let line = &mut to[i / TILE].0;
                (line[i % TILE * 2], line[i % TILE * 2 + 1]) = (*pair.0, *pair.1);
            }
        }
    }

    fn to_right(self, lines: &mut [Line; SIDE]) {
        let from = *lines;
        each_lane(|tile, line, lane, half| {
            lines[2 * lane + tile].0[2 * line + half] = from[tile * TILE + line].0[2 * lane + half];
        });
    }

    fn to_left(self, lines: &mut [Line; SIDE]) {
        let from = *lines;
        each_lane(|tile, line, lane, half| {
            lines[tile * TILE + line].0[2 * lane + half] = from[2 * lane + tile].0[2 * line + half];
        });
    }
}

/// Calls `of(tile, line, lane, half)` for all of them.
fn each_lane(mut of: impl FnMut(usize, usize, usize, usize)) {
    for at in 0..2 * TILE * TILE * 2 {
        of(at / (2 * TILE * TILE), at / (2 * TILE) % TILE, at / 2 % TILE, at % 2);
    }
}

/// By AVX-512 F and BW, which the CPU must have.
#[derive(Clone, Copy)]
struct Avx512;

impl Shuffle for Avx512 {
    #[inline(always)]
    fn pair(self, lines: &[Line; SIDE], to: &mut [Line; SIDE]) {
        // SAFETY: whoever makes the value has seen that the CPU has the instructions.
        unsafe { pair_avx512(lines, to) }
    }

    #[inline(always)]
    fn to_right(self, lines: &mut [Line; SIDE]) {
        // SAFETY: as above.
        unsafe { transpose_avx512(lines, |tile, line| [tile * TILE + line, 2 * line + tile]) }
    }

    #[inline(always)]
    fn to_left(self, lines: &mut [Line; SIDE]) {
        // SAFETY: as above.
        unsafe { transpose_avx512(lines, |tile, line| [2 * line + tile, tile * TILE + line]) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn pair_avx512(lines: &[Line; SIDE], to: &mut [Line; SIDE]) {
    use std::arch::x86_64::{
        _mm512_permutex2var_epi64, _mm512_set_epi64, _mm512_unpackhi_epi16, _mm512_unpacklo_epi16,
    };
    // Lanes of 128 bits of both halves, in turn.
    let lower = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    let upper = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    for ([even, odd], to) in lines.as_chunks().0.iter().zip(to.as_chunks_mut::<2>().0) {
        let (even, odd) = (load(even), load(odd));
        let (low, high) = (_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
        store(&mut to[0], _mm512_permutex2var_epi64(low, lower, high));
        store(&mut to[1], _mm512_permutex2var_epi64(low, upper, high));
    }
}

/// Exchanges lines and lanes of either tile; `places` says where a tile's line comes from and where
/// it goes.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_avx512(lines: &mut [Line; SIDE], places: impl Fn(usize, usize) -> [usize; 2]) {
    let tiles = [0, 1].map(|tile| {
        let mut from = [load(&lines[0]); TILE];
        for (line, from) in from.iter_mut().enumerate() {
            *from = load(&lines[places(tile, line)[0]]);
        }
        crate::gemm::avx512_pack::transposed(&from)
    });
    for (tile, transposed) in tiles.iter().enumerate() {
        for (line, of) in transposed.iter().enumerate() {
            store(&mut lines[places(tile, line)[1]], *of);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512((&raw const *line).cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(line: &mut Line, of: __m512i) {
    // SAFETY: as above.
    unsafe { _mm512_store_si512((&raw mut *line).cast(), of) }
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
                    pack(&operand, first, from, side, 3, &mut packed);
                    let mut plain = vec![Line([bf16::NAN; 32]); 3 * SIDE];
                    pack_with(Scalar, &operand, first, from, side, 3, &mut plain);
                    for at in 0..3 * DEPTH {
                        for row in 0..SIDE {
                            let (step, at_step) = (at / DEPTH, at % DEPTH);
                            let place = match side {
                                Side::Left => (step * SIDE + row, at_step),
                                Side::Right => (
                                    step * SIDE + at_step / 2 * 2 + row / 16,
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
