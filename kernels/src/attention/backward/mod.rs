//! The gradients: with `P = softmax(S)`, `dV = Pᵀ·dO`, `dP = dO·Vᵀ`,
//! `dS = P ∘ (dP − Σ_keys P ∘ dP)`, `dQ = dS·K`, `dK = dSᵀ·Q`.
//!
//! A task takes some strips of one key/value head, a few at a time. A first pass over their keys
//! leaves `P` (relative to the largest score so far) and `dP`; then the sums over a row are known,
//! and a second pass makes `P` and `dS` and the three products of them. Gradients of the keys are
//! summed in f32 in the task, and over a head's tasks in their order.

mod rehearse;
mod workspace;

use std::ops::Range;

use candle_core::Result;
use rayon::prelude::*;

pub(super) use self::rehearse::RehearseBackward;
use self::workspace::{STRIPS, Workspace};
use super::cpu::{Call, KEY_BLOCK, Panels, Section};
use super::strip::Strip;
use crate::cpu::Real;
use crate::fresh::fresh;
use crate::gemm::{Serial, SerialKernel, Tiles, Work};
use crate::scratch::Scratch;
use crate::simd;

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
                let section = &sections[task.section];
                K::ready(|| workspace.task(call, dy, section, task, &panels, [dk, dv], &out));
            },
        );
        let gather = |sums: &[f32]| gather::<T>(call, &sections, &tasks, row, sums);
        let (dk, dv) = (gather(&dk)?, gather(&dv)?);
        Ok([dq, dk, dv])
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
