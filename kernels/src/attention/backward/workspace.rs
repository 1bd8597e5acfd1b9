//! What one task of the backward pass works with, and its two passes over the keys.

use std::ops::Range;

use super::{KeyPanels, Task};
use crate::attention::cpu::{Call, KEY_BLOCK, Section};
use crate::attention::softmax::{self, Gradients, Lanes, Online, Weights};
use crate::attention::strip::{Strip, products};
use crate::cpu::Real;
use crate::gemm::{MOST_LANES, SerialKernel, Tiles};
use crate::scratch::Scratch;

/// Strips that are worked on at a time.
pub(super) const STRIPS: usize = 2;

/// What a task works with.
pub(super) struct Workspace<K: SerialKernel<T>, T: Real> {
    rows: Scratch<T>,
    q: RowPanels<K, T>,
    dy: RowPanels<K, T>,
    /// `[blocks, STRIPS, KEY_BLOCK, lanes]` each, as long as the keys at hand need.
    p: Scratch<f32>,
    dp: Scratch<f32>,
    slope: Scratch<f32>,
    /// The largest scores up to each block, `[blocks, STRIPS]`.
    max: Vec<Lanes>,
    /// `[STRIPS, KEY_BLOCK, lanes]` each.
    p_lines: Scratch<T>,
    ds_lines: Scratch<T>,
    /// A right panel of score gradients.
    ds_panel: Scratch<K::Unit>,
    /// `[STRIPS, D, lanes]`.
    dq: Scratch<f32>,
    /// `[lanes, D]`.
    turned: Scratch<f32>,
}

/// Rows of strips as right panels.
pub(super) struct RowPanels<K: SerialKernel<T>, T: Real> {
    /// `[STRIPS]`: a lane for each row, for sums over the head dimension.
    lanes: Scratch<K::Unit>,
    /// `[D / lanes, STRIPS]`: a lane for each dimension, for sums over the rows.
    dims: Scratch<K::Unit>,
}

impl<K: SerialKernel<T>, T: Real> RowPanels<K, T> {
    fn new(dim: usize) -> Self {
        let [lanes, dims] = Self::sizes(dim).map(Scratch::new);
        Self { lanes, dims }
    }

    /// Units of `lanes` and of `dims`.
    pub(super) fn sizes(dim: usize) -> [usize; 2] {
        [STRIPS * K::units(dim) * K::NR, STRIPS * K::NR / K::DEPTH * dim.next_multiple_of(K::NR)]
    }

    fn lanes(&self, strip: usize, dim: usize) -> &[K::Unit] {
        let len = K::units(dim) * K::NR;
        &self.lanes[strip * len..][..len]
    }

    /// The panels of all strips for the dimensions from `index · lanes` on.
    fn dims(&self, index: usize) -> &[K::Unit] {
        let len = STRIPS * K::NR / K::DEPTH * K::NR;
        &self.dims[index * len..][..len]
    }

    fn pack(&mut self, index: usize, strip: &Strip, rows: &[T], dim: usize) {
        let len = K::units(dim) * K::NR;
        strip.pack_lanes::<K, T>(rows, dim, &mut self.lanes[index * len..][..len]);
        let len = K::NR / K::DEPTH * K::NR;
        let panels = self.dims.chunks_exact_mut(len).skip(index).step_by(STRIPS);
        strip.pack_dims::<K, T>(rows, dim, panels);
    }
}

/// Strips of one section that are worked on together.
struct Together<'a> {
    section: &'a Section,
    strips: &'a [Strip],
    blocks: Range<usize>,
    online: Vec<Online>,
    /// `Σ p · dp`, relative as the sums in `online` are.
    mean: Vec<Lanes>,
}

impl<K: SerialKernel<T>, T: Real> Workspace<K, T> {
    pub(super) fn new(dim: usize) -> Self {
        Self {
            rows: Scratch::new(K::NR * dim),
            q: RowPanels::new(dim),
            dy: RowPanels::new(dim),
            p: Scratch::new(0),
            dp: Scratch::new(0),
            slope: Scratch::new(0),
            max: Vec::new(),
            p_lines: Scratch::new(STRIPS * KEY_BLOCK * K::NR),
            ds_lines: Scratch::new(STRIPS * KEY_BLOCK * K::NR),
            ds_panel: Scratch::new(KEY_BLOCK / K::DEPTH * K::NR),
            dq: Scratch::new(STRIPS * dim.next_multiple_of(K::MR) * K::NR),
            turned: Scratch::new(K::NR * dim),
        }
    }

    /// Writes the gradients of the task's queries, and leaves what it adds to those of its keys.
    #[expect(clippy::too_many_arguments, reason = "one task's inputs and outputs")]
    pub(super) fn task(
        &mut self,
        call: &Call<T>,
        dy: &[T],
        section: &Section,
        task: &Task,
        panels: &KeyPanels<K, T>,
        [dk, dv]: [&mut [f32]; 2],
        out: &Tiles<T>,
    ) {
        dk.fill(0.0);
        dv.fill(0.0);
        let dim = call.heads.dim;
        let row = dim.next_multiple_of(K::NR);
        let all: Vec<Strip> =
            (task.strips.clone()).map(|index| section.strip(call.heads, K::NR, index)).collect();
        for strips in all.chunks(STRIPS) {
            let mut at = Together {
                section,
                strips,
                blocks: section.blocks(strips, call.rule.window),
                online: strips.iter().map(Online::new).collect(),
                mean: vec![[0.0; MOST_LANES]; strips.len()],
            };
            self.load(call, dy, strips);
            self.reserve(&at, call);
            for block in at.blocks.clone() {
                self.weigh(call, &mut at, block, task.section, panels);
            }
            for block in at.blocks.clone() {
                let add = block > at.blocks.start;
                self.differentiate(
                    call,
                    &at,
                    block,
                    panels.columns.block(task.section, block),
                    add,
                );
                let first = (block - task.blocks.start) * KEY_BLOCK * row;
                let used = at.used::<K, T>(block);
                self.add_keys(strips.len(), used, row, [&mut dk[first..], &mut dv[first..]]);
            }
            self.write(strips, dim, out);
        }
    }

    fn load(&mut self, call: &Call<T>, dy: &[T], strips: &[Strip]) {
        let dim = call.heads.dim;
        for (index, strip) in strips.iter().enumerate() {
            strip.gather(call.q, call.heads, &mut self.rows);
            self.q.pack(index, strip, &self.rows, dim);
            strip.gather(dy, call.heads, &mut self.rows);
            self.dy.pack(index, strip, &self.rows, dim);
        }
    }

    fn reserve(&mut self, at: &Together, call: &Call<T>) {
        let tiles = at.blocks.len() * STRIPS;
        let len = tiles * KEY_BLOCK * K::NR;
        let slopes = if call.rule.softcap.is_some() { len } else { 0 };
        for (buffer, len) in [(&mut self.p, len), (&mut self.dp, len), (&mut self.slope, slopes)] {
            if buffer.len() < len {
                *buffer = Scratch::new(len);
            }
        }
        self.max.resize(self.max.len().max(tiles), [0.0; MOST_LANES]);
    }

    /// The first pass over a block.
    fn weigh(
        &mut self,
        call: &Call<T>,
        at: &mut Together,
        block: usize,
        section: usize,
        panels: &KeyPanels<K, T>,
    ) {
        let dim = call.heads.dim;
        let panel = K::units(dim) * K::MR;
        let start = at.section.keys.start + block * KEY_BLOCK;
        for (index, strip) in at.strips.iter().enumerate() {
            let used = strip.used(start, K::MR);
            if used == 0 {
                continue;
            }
            let tile = (block - at.blocks.start) * STRIPS + index;
            let scores = tile_of(&mut self.p, tile, used * K::NR, K::NR);
            let dp = tile_of(&mut self.dp, tile, used * K::NR, K::NR);
            let keys = panels.keys.block(section, block);
            let values = panels.values.block(section, block);
            products::<K, T>(keys, panel, self.q.lanes(index, dim), scores, false);
            products::<K, T>(values, panel, self.dy.lanes(index, dim), dp, false);
            let hides = !strip.sees_all(&(start..start + used), call.rule.window);
            let slope = match call.rule.softcap {
                Some(_) => tile_of(&mut self.slope, tile, used * K::NR, K::NR),
                None => &mut [],
            };
            let weights = Weights { p: scores, dp, slope };
            let (online, mean) = (&mut at.online[index], &mut at.mean[index]);
            softmax::weigh::<K, T>(weights, hides.then_some(start), &call.rule, online, mean);
            self.max[tile] = online.max;
        }
    }

    /// The second pass over a block: `P` and `dS` of every strip, and what the block adds to `dQ`.
    fn differentiate(
        &mut self,
        call: &Call<T>,
        at: &Together,
        block: usize,
        columns: &[K::Unit],
        add: bool,
    ) {
        let start = at.section.keys.start + block * KEY_BLOCK;
        let dq_len = call.heads.dim.next_multiple_of(K::MR) * K::NR;
        let lines = KEY_BLOCK * K::NR;
        for (index, strip) in at.strips.iter().enumerate() {
            let used = strip.used(start, K::MR);
            let unused = index * lines + used * K::NR..(index + 1) * lines;
            self.p_lines[unused.clone()].fill(T::narrow(0.0));
            self.ds_lines[unused].fill(T::narrow(0.0));
            if used == 0 {
                continue;
            }
            let tile = (block - at.blocks.start) * STRIPS + index;
            let p = tile_of(&mut self.p, tile, used * K::NR, K::NR);
            let dp = tile_of(&mut self.dp, tile, used * K::NR, K::NR);
            let slope = match call.rule.softcap {
                Some(_) => tile_of(&mut self.slope, tile, used * K::NR, K::NR),
                None => &mut [],
            };
            let panel = &mut self.ds_panel[..used / K::DEPTH * K::NR];
            let to = Gradients {
                p: &mut self.p_lines[index * lines..][..used * K::NR],
                ds: &mut self.ds_lines[index * lines..][..used * K::NR],
                panel: &mut *panel,
            };
            let (online, max) = (&at.online[index], &self.max[tile]);
            let sums = softmax::Sums { online, max, mean: &at.mean[index] };
            softmax::gradients::<K, T>(Weights { p, dp, slope }, &sums, &call.rule, to);
            let dq = &mut self.dq[index * dq_len..][..dq_len];
            products::<K, T>(columns, KEY_BLOCK / K::DEPTH * K::MR, panel, dq, add);
        }
    }

    /// What all strips add to the gradients of a block's keys.
    fn add_keys(&self, strips: usize, used: usize, row: usize, [dk, dv]: [&mut [f32]; 2]) {
        let lines = KEY_BLOCK * K::NR;
        for key in (0..used).step_by(K::MR) {
            for index in 0..row / K::NR {
                let at = key * row + index * K::NR;
                let c = &mut dv[at..];
                let p = &self.p_lines[key * K::NR..];
                K::tile_of_lines(p, strips, lines, self.dy.dims(index), c, row, true);
                let c = &mut dk[at..];
                let ds = &self.ds_lines[key * K::NR..];
                K::tile_of_lines(ds, strips, lines, self.q.dims(index), c, row, true);
            }
        }
    }

    fn write(&mut self, strips: &[Strip], dim: usize, out: &Tiles<T>) {
        let len = dim.next_multiple_of(K::MR) * K::NR;
        for (strip, dq) in strips.iter().zip(self.dq.chunks_exact(len)) {
            K::turn(dq, dim, &mut self.turned);
            let size = [strip.queries, strip.heads * dim];
            out.write([strip.token, strip.head * dim], size, &self.turned, size[1], false);
        }
    }
}

impl Together<'_> {
    /// Keys of a block that some strip sees, panels rounded up.
    fn used<K: SerialKernel<T>, T: Copy>(&self, block: usize) -> usize {
        let start = self.section.keys.start + block * KEY_BLOCK;
        self.strips.iter().map(|strip| strip.used(start, K::MR)).max().unwrap_or(0)
    }
}

fn tile_of(all: &mut [f32], tile: usize, len: usize, lanes: usize) -> &mut [f32] {
    &mut all[tile * KEY_BLOCK * lanes..][..len]
}
