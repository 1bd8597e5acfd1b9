//! `softmax(q·kᵀ)·v`, strip by strip.

use std::ops::Range;

use candle_core::Result;
use rayon::prelude::*;

use super::cpu::{Call, KEY_BLOCK, Panels, Section};
use super::softmax::{self, Online};
use super::strip::{Strip, products};
use crate::cpu::Real;
use crate::fresh::fresh;
use crate::gemm::{Serial, SerialKernel, Tiles, Work};
use crate::rehearsal::{Rehearsal, Taken};
use crate::scratch::Scratch;

/// Strips of a task.
const STRIPS: usize = 8;

/// The output `[N, H, D]` of a call.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a, 'b, T>(pub(super) &'a Call<'b, T>);

impl<T: Real + Serial> Work<T> for Forward<'_, '_, T> {
    type Done = Result<Vec<T>>;

    fn with<K: SerialKernel<T>>(self) -> Result<Vec<T>> {
        let call = self.0;
        let sections = call.sections();
        let keys = Panels::<K, T>::of(call, call.k, &sections, true)?;
        let values = Panels::<K, T>::of(call, call.v, &sections, false)?;
        let width = call.heads.query * call.heads.dim;
        let mut y = fresh::<T>(call.q.len())?;
        let out = Tiles::new(&mut y, call.q.len() / width, width, width);
        let tasks: Vec<(usize, usize)> = sections
            .iter()
            .enumerate()
            .flat_map(|(index, section)| {
                let strips = section.strips(call.heads, K::NR);
                (0..strips).step_by(STRIPS).map(move |strip| (index, strip))
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each_init(
            || Workspace::<K, T>::new(call.heads.dim),
            |workspace, (index, first)| {
                let section = &sections[index];
                let strips = section.strips(call.heads, K::NR);
                let strips = first..(first + STRIPS).min(strips);
                K::ready(|| {
                    workspace.strips(call, section, strips, &out, |block| {
                        (keys.block(index, block), values.block(index, block))
                    });
                });
            },
        );
        Ok(y)
    }
}

/// The buffers of a call, taken and given back.
pub(super) struct RehearseForward<'a, 'b, 'p, T>(
    pub(super) &'a Call<'b, T>,
    pub(super) &'p mut Rehearsal,
);

impl<T: Real + Serial> Work<T> for RehearseForward<'_, '_, '_, T> {
    type Done = ();

    fn with<K: SerialKernel<T>>(self) {
        let Self(call, pool) = self;
        let sections = call.sections();
        let mut taken: Vec<Taken> = [true, false]
            .map(|by_key| Panels::<K, T>::rehearse(pool, call, &sections, by_key))
            .into();
        let strips = sections.iter().map(|section| section.strips(call.heads, K::NR));
        let tasks = strips.map(|strips| strips.div_ceil(STRIPS)).sum();
        for _ in 0..pool.at_a_time(tasks) {
            let sizes = Sizes::of::<K, T>(call.heads.dim);
            taken.push(pool.take::<T>(sizes.rows));
            taken.push(pool.take::<K::Unit>(sizes.queries));
            taken.push(pool.take::<f32>(sizes.scores));
            taken.push(pool.take::<K::Unit>(sizes.p));
            taken.push(pool.take::<f32>(sizes.sums));
            taken.push(pool.take::<f32>(sizes.rows));
        }
        pool.give_all(taken);
    }
}

/// Elements of a [`Workspace`].
struct Sizes {
    /// Of `rows` and of `turned`.
    rows: usize,
    queries: usize,
    scores: usize,
    p: usize,
    sums: usize,
}

impl Sizes {
    fn of<K: SerialKernel<T>, T: Real>(dim: usize) -> Self {
        Self {
            rows: K::NR * dim,
            queries: K::units(dim) * K::NR,
            scores: KEY_BLOCK * K::NR,
            p: KEY_BLOCK / K::DEPTH * K::NR,
            sums: dim.next_multiple_of(K::MR) * K::NR,
        }
    }
}

/// What a task works with.
struct Workspace<K: SerialKernel<T>, T: Real> {
    rows: Scratch<T>,
    /// A right panel of queries.
    queries: Scratch<K::Unit>,
    /// `[KEY_BLOCK, lanes]`.
    scores: Scratch<f32>,
    /// A right panel of probabilities.
    p: Scratch<K::Unit>,
    /// `[D, lanes]`.
    sums: Scratch<f32>,
    /// `[lanes, D]`.
    turned: Scratch<f32>,
}

impl<K: SerialKernel<T>, T: Real> Workspace<K, T> {
    fn new(dim: usize) -> Self {
        let sizes = Sizes::of::<K, T>(dim);
        Self {
            rows: Scratch::new(sizes.rows),
            queries: Scratch::new(sizes.queries),
            scores: Scratch::new(sizes.scores),
            p: Scratch::new(sizes.p),
            sums: Scratch::new(sizes.sums),
            turned: Scratch::new(sizes.rows),
        }
    }

    /// Writes the output of some strips of a section.
    fn strips<'a>(
        &mut self,
        call: &Call<T>,
        section: &Section,
        strips: Range<usize>,
        out: &Tiles<T>,
        panels: impl Fn(usize) -> (&'a [K::Unit], &'a [K::Unit]),
    ) where
        K::Unit: 'a,
    {
        for strip in strips {
            let strip = section.strip(call.heads, K::NR, strip);
            self.strip(call, section, &strip, &panels);
            let size = [strip.queries, strip.heads * call.heads.dim];
            let place = [strip.token, strip.head * call.heads.dim];
            out.write(place, size, &self.turned, size[1], false);
        }
    }

    /// Leaves the output of a strip in `turned`; `panels` gives those of the keys and of the
    /// values of a block.
    fn strip<'a>(
        &mut self,
        call: &Call<T>,
        section: &Section,
        strip: &Strip,
        panels: impl Fn(usize) -> (&'a [K::Unit], &'a [K::Unit]),
    ) where
        K::Unit: 'a,
    {
        let (dim, window) = (call.heads.dim, call.rule.window);
        strip.gather(call.q, call.heads, &mut self.rows);
        strip.pack_lanes::<K, T>(&self.rows, dim, &mut self.queries);
        let mut online = Online::new(strip);
        let blocks = section.blocks(&[*strip], window);
        for block in blocks.clone() {
            let start = section.keys.start + block * KEY_BLOCK;
            let used = strip.used(start, K::MR);
            let (keys, values) = panels(block);
            let scores = &mut self.scores[..used * K::NR];
            products::<K, T>(keys, K::units(dim) * K::MR, &self.queries, scores, false);
            let hides = !strip.sees_all(&(start..start + used), window);
            let p = &mut self.p[..used / K::DEPTH * K::NR];
            let first = hides.then_some(start);
            softmax::probabilities::<K, T>(scores, first, &call.rule, &mut online, p);
            let add = block > blocks.start;
            if add && !online.keeps() {
                softmax::scale_lanes(&mut self.sums, K::NR, &online.rescale);
            }
            products::<K, T>(values, KEY_BLOCK / K::DEPTH * K::MR, p, &mut self.sums, add);
        }
        let factor = online.sum.map(|sum| 1.0 / sum);
        softmax::scale_lanes(&mut self.sums, K::NR, &factor);
        K::turn(&self.sums, dim, &mut self.turned);
    }
}
