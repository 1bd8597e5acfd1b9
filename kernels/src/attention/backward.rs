//! The gradients: with `P = softmax(S)`, `dV = Pᵀ·dO`, `dP = dO·Vᵀ`,
//! `dS = P ∘ (dP − Σ_keys P ∘ dP)`, `dQ = dS·K`, `dK = dSᵀ·Q`.
//!
//! A task takes some strips of one key/value head, a few at a time. A first pass over their keys
//! leaves `P` (relative to the largest score so far) and `dP`; then the sums over a row are known,
//! and a second pass makes `P` and `dS` and the three products of them. Gradients of the keys are
//! summed in f32 in the task, and over a head's tasks in their order.

use std::ops::Range;

use candle_core::Result;
use rayon::prelude::*;

use super::cpu::{Call, KEY_BLOCK, Panels, Section};
use super::softmax::{self, Gradients, Lanes, Online, Weights};
use super::strip::{Strip, products};
use crate::cpu::Real;
use crate::fresh::fresh;
use crate::gemm::{MOST_LANES, Serial, SerialKernel, Tiles, Work};
use crate::rehearsal::{Rehearsal, Taken};
use crate::scratch::Scratch;
use crate::simd;

/// Strips that are worked on at a time.
const STRIPS: usize = 2;
/// Tasks that a call is cut into where its key/value heads are few.
const TASKS: usize = 16;

/// The gradients `[N, H, D]`, `[N, K, D]` and `[N, K, D]` of a call, from that of its output.
#[derive(Clone, Copy)]
pub(super) struct Backward<'a, 'b, T>(pub(super) &'a Call<'b, T>, pub(super) &'a [T]);

impl<T: Real + Serial> Work<T> for Backward<'_, '_, T> {
    type Done = Result<[Vec<T>; 3]>;

    fn with<K: SerialKernel<T>>(self) -> Result<[Vec<T>; 3]> {
        let Self(call, dy) = self;
        let sections = call.sections();
        let panels = KeyPanels {
            keys: Panels::<K, T>::of(call, call.k, &sections, true)?,
            values: Panels::<K, T>::of(call, call.v, &sections, true)?,
            columns: Panels::<K, T>::of(call, call.k, &sections, false)?,
        };
        let tasks = tasks(call, &sections, K::NR);
        let width = call.heads.query * call.heads.dim;
        let mut dq = fresh::<T>(call.q.len())?;
        let out = Tiles::new(&mut dq, call.q.len() / width, width, width);
        let row = call.heads.dim.next_multiple_of(K::NR);
        let lens: Vec<usize> =
            tasks.iter().map(|task| task.blocks.len() * KEY_BLOCK * row).collect();
        let mut dk = Scratch::<f32>::request(lens.iter().sum())?;
        let mut dv = Scratch::<f32>::request(lens.iter().sum())?;
        let sums: Vec<_> = split(&mut dk, &lens).into_iter().zip(split(&mut dv, &lens)).collect();
        tasks.par_iter().zip(sums).with_max_len(1).for_each_init(
            || Workspace::<K, T>::new(call.heads.dim),
            |workspace, (task, (dk, dv))| {
                workspace.task(call, dy, &sections[task.section], task, &panels, [dk, dv], &out);
            },
        );
        let gather = |sums: &[f32]| gather::<T>(call, &sections, &tasks, row, sums);
        let (dk, dv) = (gather(&dk)?, gather(&dv)?);
        Ok([dq, dk, dv])
    }
}

/// The buffers of a call, taken and given back.
pub(super) struct RehearseBackward<'a, 'b, 'p, T>(
    pub(super) &'a Call<'b, T>,
    pub(super) &'p mut Rehearsal,
);

impl<T: Real + Serial> Work<T> for RehearseBackward<'_, '_, '_, T> {
    type Done = ();

    fn with<K: SerialKernel<T>>(self) {
        let Self(call, pool) = self;
        let sections = call.sections();
        let mut taken: Vec<Taken> = [true, true, false]
            .map(|by_key| Panels::<K, T>::rehearse(pool, call, &sections, by_key))
            .into();
        let tasks = tasks(call, &sections, K::NR);
        let row = call.heads.dim.next_multiple_of(K::NR);
        let sums = tasks.iter().map(|task| task.blocks.len() * KEY_BLOCK * row).sum();
        taken.extend([pool.take::<f32>(sums), pool.take::<f32>(sums)]);
        for some in tasks.chunks(pool.at_a_time(tasks.len()).max(1)) {
            let mut all: Vec<Rehearsed> =
                some.iter().map(|_| Rehearsed::new::<K, T>(pool, call)).collect();
            for (workspace, task) in all.iter_mut().zip(some) {
                workspace.grow::<K, T>(pool, call, &sections[task.section], task);
            }
            pool.give_all(all.into_iter().flat_map(|workspace| workspace.taken));
        }
        let blocks = sections.iter().map(|section| section.keys.len().div_ceil(KEY_BLOCK)).sum();
        for _ in ["dk", "dv"] {
            let totals: Vec<Taken> =
                (0..pool.at_a_time(blocks)).map(|_| pool.take::<f32>(KEY_BLOCK * row)).collect();
            pool.give_all(totals);
        }
        pool.give_all(taken);
    }
}

/// The buffers of a [`Workspace`].
struct Rehearsed {
    /// Those that grow come first.
    taken: Vec<Taken>,
}

impl Rehearsed {
    /// As [`Workspace::new`] takes them.
    fn new<K: SerialKernel<T>, T: Real>(pool: &mut Rehearsal, call: &Call<T>) -> Self {
        let dim = call.heads.dim;
        let rows = pool.take::<T>(K::NR * dim);
        let panels: Vec<Taken> = (0..2)
            .flat_map(|_| RowPanels::<K, T>::sizes(dim).map(|len| pool.take::<K::Unit>(len)))
            .collect();
        let mut taken: Vec<Taken> = (0..3).map(|_| pool.take::<f32>(0)).collect();
        taken.push(rows);
        taken.extend(panels);
        taken.extend((0..2).map(|_| pool.take::<T>(STRIPS * KEY_BLOCK * K::NR)));
        taken.push(pool.take::<K::Unit>(KEY_BLOCK / K::DEPTH * K::NR));
        taken.push(pool.take::<f32>(STRIPS * dim.next_multiple_of(K::MR) * K::NR));
        taken.push(pool.take::<f32>(K::NR * dim));
        Self { taken }
    }

    /// As [`Workspace::reserve`] does for each of the task's strips.
    fn grow<K: SerialKernel<T>, T: Real>(
        &mut self,
        pool: &mut Rehearsal,
        call: &Call<T>,
        section: &Section,
        task: &Task,
    ) {
        let growing = if call.rule.softcap.is_some() { 3 } else { 2 };
        let all: Vec<Strip> =
            (task.strips.clone()).map(|index| section.strip(call.heads, K::NR, index)).collect();
        let mut longest = 0;
        for strips in all.chunks(STRIPS) {
            let blocks = section.blocks(strips, call.rule.window).len();
            if blocks > longest {
                longest = blocks;
                for buffer in &mut self.taken[..growing] {
                    let grown = pool.take::<f32>(blocks * STRIPS * KEY_BLOCK * K::NR);
                    pool.give(std::mem::replace(buffer, grown));
                }
            }
        }
    }
}

/// Left panels of the keys and values.
struct KeyPanels<K: SerialKernel<T>, T: Real> {
    keys: Panels<K, T>,
    values: Panels<K, T>,
    columns: Panels<K, T>,
}

/// Some strips of a section.
struct Task {
    section: usize,
    strips: Range<usize>,
    /// The key blocks that they see.
    blocks: Range<usize>,
}

/// Cuts every section into tasks of about the same work, more where there are few sections.
fn tasks(call: &Call<impl Real>, sections: &[Section], lanes: usize) -> Vec<Task> {
    let strips = |section: &Section| -> Vec<Strip> {
        let count = section.strips(call.heads, lanes);
        (0..count).map(|index| section.strip(call.heads, lanes, index)).collect()
    };
    let window = call.rule.window;
    let work = |section: &Section, strips: &[Strip]| -> usize {
        strips.chunks(STRIPS).map(|strips| section.blocks(strips, window).len()).sum()
    };
    let total: usize = sections.iter().map(|section| work(section, &strips(section))).sum();
    let share = total.div_ceil(TASKS).max(1);
    let mut tasks = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let strips = strips(section);
        let parts = work(section, &strips).div_ceil(share);
        let goal = work(section, &strips).div_ceil(parts);
        let (mut first, mut sum) = (0, 0);
        for (chunk, some) in strips.chunks(STRIPS).enumerate() {
            sum += section.blocks(some, window).len();
            let end = chunk * STRIPS + some.len();
            if sum >= goal || end == strips.len() {
                let blocks = section.blocks(&strips[first..end], window);
                tasks.push(Task { section: index, strips: first..end, blocks });
                (first, sum) = (end, 0);
            }
        }
    }
    tasks
}

fn split<'a>(mut rest: &'a mut [f32], lens: &[usize]) -> Vec<&'a mut [f32]> {
    let part = |len: &usize| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(*len);
        rest = after;
        part
    };
    lens.iter().map(part).collect()
}

/// Adds up what the tasks have summed for each key, rounds it once, and puts it in its place.
fn gather<T: Real>(
    call: &Call<T>,
    sections: &[Section],
    tasks: &[Task],
    row: usize,
    sums: &[f32],
) -> Result<Vec<T>> {
    let width = call.heads.kv * call.heads.dim;
    let mut gradient = fresh::<T>(call.k.len())?;
    let out = Tiles::new(&mut gradient, call.k.len() / width, width, width);
    let mut parts = vec![Vec::new(); sections.len()];
    let mut start = 0;
    for task in tasks {
        parts[task.section].push((task.blocks.clone(), start));
        start += task.blocks.len() * KEY_BLOCK * row;
    }
    let blocks: Vec<(usize, usize)> = sections
        .iter()
        .enumerate()
        .flat_map(|(index, section)| {
            (0..section.keys.len().div_ceil(KEY_BLOCK)).map(move |block| (index, block))
        })
        .collect();
    blocks.into_par_iter().for_each_init(
        || Scratch::<f32>::new(KEY_BLOCK * row),
        |total, (index, block)| {
            let section = &sections[index];
            let with = parts[index].iter().filter(|(blocks, _)| blocks.contains(&block));
            let at = |(blocks, start): &(Range<usize>, usize)| {
                &sums[start + (block - blocks.start) * KEY_BLOCK * row..][..KEY_BLOCK * row]
            };
            total.fill(0.0);
            for part in with.map(at) {
                simd::vectorized(|| total.iter_mut().zip(part).for_each(|(to, x)| *to += x));
            }
            let first = block * KEY_BLOCK;
            let size = [(section.keys.len() - first).min(KEY_BLOCK), call.heads.dim];
            let token = section.document.first + section.keys.start + first;
            out.write([token, section.kv_head * call.heads.dim], size, total, row, false);
        },
    );
    Ok(gradient)
}

/// What a task works with.
struct Workspace<K: SerialKernel<T>, T: Real> {
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
struct RowPanels<K: SerialKernel<T>, T: Real> {
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
    fn sizes(dim: usize) -> [usize; 2] {
        [
            STRIPS * dim.div_ceil(K::DEPTH) * K::NR,
            STRIPS * K::NR / K::DEPTH * dim.next_multiple_of(K::NR),
        ]
    }

    fn lanes(&self, strip: usize, dim: usize) -> &[K::Unit] {
        let len = dim.div_ceil(K::DEPTH) * K::NR;
        &self.lanes[strip * len..][..len]
    }

    /// The panels of all strips for the dimensions from `index · lanes` on.
    fn dims(&self, index: usize) -> &[K::Unit] {
        let len = STRIPS * K::NR / K::DEPTH * K::NR;
        &self.dims[index * len..][..len]
    }

    fn pack(&mut self, index: usize, strip: &Strip, rows: &[T], dim: usize) {
        let len = dim.div_ceil(K::DEPTH) * K::NR;
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
    fn new(dim: usize) -> Self {
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
    fn task(
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
        let panel = dim.div_ceil(K::DEPTH) * K::MR;
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
