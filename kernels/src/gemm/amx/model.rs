//! A software model of the tile instructions, which runs the very lists that the CPU is given.

use half::bf16;

use super::Line;
use super::block::Rows;
use super::machine::{Machine, check_block};
use super::sequence::{begin_sums, begin_zero, last, step};

/// 16 rows of 16 lanes; a lane is an f32 or a pair of bf16.
type Tile = [[u32; 16]; 16];

/// Eight tiles.
pub(crate) struct Model {
    pub(super) tiles: [Tile; 8],
}

/// The pointers of a block, as places in its slices.
struct Places<'a> {
    rows: Rows<'a>,
    left: usize,
    low: usize,
    right: (&'a [Line], usize),
    upper: usize,
    lower: usize,
}

fn pair(pair: &[bf16]) -> u32 {
    u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16
}

impl Model {
    /// Tiles that were just set up; the CPU's would be zero, but nobody should rely on it.
    pub(super) fn new() -> Self {
        Model { tiles: [[[0x7fc0_7fc0; 16]; 16]; 8] }
    }

    /// `tileloadd` of every other line of a panel, `offset` bytes past the pointer.
    fn load(&mut self, tile: usize, (panel, at): (&[Line], usize), offset: usize) {
        let first = at + offset / size_of::<Line>();
        for (lanes, line) in self.tiles[tile].iter_mut().zip(panel[first..].iter().step_by(2)) {
            for (lane, elements) in lanes.iter_mut().zip(line.0.chunks_exact(2)) {
                *lane = pair(elements);
            }
        }
    }

    /// `tileloadd` of left rows.
    fn load_rows(&mut self, tile: usize, rows: &Rows, at: usize) {
        for (row, lanes) in self.tiles[tile].iter_mut().enumerate() {
            for (lane, elements) in lanes.iter_mut().zip(rows.data[at + row * rows.row..].chunks(2))
            {
                *lane = pair(elements);
            }
        }
    }

    /// `tileloadd` from the sums.
    fn load_sums(&mut self, tile: usize, c: &[f32], at: usize, offset: usize, pitch: usize) {
        for (row, lanes) in self.tiles[tile].iter_mut().enumerate() {
            let from = &c[at + offset / 4 + row * pitch..][..16];
            *lanes = std::array::from_fn(|lane| from[lane].to_bits());
        }
    }

    /// `tilestored` to the sums.
    fn store(&self, tile: usize, c: &mut [f32], at: usize, offset: usize, pitch: usize) {
        for (row, lanes) in self.tiles[tile].iter().enumerate() {
            let to = &mut c[at + offset / 4 + row * pitch..][..16];
            to.copy_from_slice(&lanes.map(f32::from_bits));
        }
    }

    /// `tdpbf16ps`: even and odd elements are summed apart from each other, then added to the sum.
    pub(super) fn dot(&mut self, sums: usize, left: usize, right: usize) {
        let wide = |lane: u32| [f32::from_bits(lane << 16), f32::from_bits(lane & 0xffff_0000)];
        let (left, right) = (self.tiles[left], self.tiles[right]);
        for (lanes, left) in self.tiles[sums].iter_mut().zip(&left) {
            for (column, lane) in lanes.iter_mut().enumerate() {
                let (mut even, mut odd) = (0f32, 0f32);
                for (left, right) in left.iter().zip(&right) {
                    let (left, right) = (wide(*left), wide(right[column]));
                    even = left[0].mul_add(right[0], even);
                    odd = left[1].mul_add(right[1], odd);
                }
                *lane = (f32::from_bits(*lane) + (even + odd)).to_bits();
            }
        }
    }
}

macro_rules! run {
    ($with:tt $([$($op:tt)*])*) => { $(run_one!($with $($op)*);)* };
}

macro_rules! run_one {
    (($m:ident $p:ident $c:ident $pitch:ident) zero $tile:literal) => {
        $m.tiles[$tile] = Tile::default()
    };
    (($m:ident $p:ident $c:ident $pitch:ident) load $tile:literal $from:ident $offset:literal) => {
        $m.load($tile, $p.$from, $offset)
    };
    (($m:ident $p:ident $c:ident $pitch:ident) load_sums $tile:literal $from:ident $o:literal) => {
        $m.load_sums($tile, $c, $p.$from, $o, $pitch)
    };
    (($m:ident $p:ident $c:ident $pitch:ident) store $tile:literal $to:ident $offset:literal) => {
        $m.store($tile, $c, $p.$to, $offset, $pitch)
    };
    (($m:ident $p:ident $c:ident $pitch:ident) dot $sums:literal $left:literal $right:literal) => {
        $m.dot($sums, $left, $right)
    };
    (($m:ident $p:ident $c:ident $pitch:ident) load_rows $tile:literal $from:ident) => {
        $m.load_rows($tile, &$p.rows, $p.$from)
    };
    (($m:ident $p:ident $c:ident $pitch:ident) forth $pointer:ident) => {
        $p.$pointer += $p.rows.step
    };
    (($m:ident $p:ident $c:ident $pitch:ident) advance $pointer:ident $bytes:literal) => {
        $p.$pointer.1 += $bytes / size_of::<Line>()
    };
}

impl Machine for Model {
    fn configured<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        work(&mut Model::new())
    }

    fn block(&mut self, left: Rows, right: &[Line], c: &mut [f32], pitch: usize, add: bool) {
        let steps = check_block(&left, right, c, pitch);
        let mut p = Places {
            rows: left,
            left: 0,
            low: 16 * left.row,
            right: (right, 0),
            upper: 0,
            lower: 16 * pitch,
        };
        let m = self;
        if add {
            begin_sums!(run!((m p c pitch)));
        } else {
            begin_zero!(run!((m p c pitch)));
        }
        for _ in 1..steps {
            step!(run!((m p c pitch)));
        }
        last!(run!((m p c pitch)));
    }
}
