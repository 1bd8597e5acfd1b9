//! The buffers that the backward pass takes from the pool, in the order in which it takes them.

use super::workspace::{RowPanels, STRIPS};
use super::{Task, tasks};
use crate::attention::cpu::{Call, KEY_BLOCK, Panels, Section};
use crate::attention::strip::Strip;
use crate::cpu::Real;
use crate::gemm::{Serial, SerialKernel, Work};
use crate::rehearsal::{Rehearsal, Taken};

/// The buffers of a call, taken and given back.
pub(in crate::attention) struct RehearseBackward<'a, 'b, 'p, T>(
    pub(in crate::attention) &'a Call<'b, T>,
    pub(in crate::attention) &'p mut Rehearsal,
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
