//! The fast path's way in and out: tensors as slices, keys and values packed once, and the work cut
//! into tasks by shape alone.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::strip::{Heads, Rule};
use super::{Params, backward as backward_pass, forward as forward_pass};
use crate::cpu::{self, Real};
use crate::gemm::{Operand, Serial, SerialKernel};
use crate::rehearsal::{Rehearsal, Taken};
use crate::scratch::Scratch;

/// Keys that are worked on at a time: a multiple of the rows of every kernel's left panel.
pub(super) const KEY_BLOCK: usize = 96;

/// Where a document lies in the queries and the keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document {
    /// Its first row, of the queries and of the keys.
    pub(super) first: usize,
    pub(super) queries: usize,
    /// The key position at which its first query stands.
    pub(super) query_offset: usize,
}

impl Document {
    /// One whose queries stand at the keys of the same tokens.
    pub(super) fn alone(tokens: &Range<usize>) -> Self {
        Self { first: tokens.start, queries: tokens.len(), query_offset: 0 }
    }

    /// The keys that some query of it sees.
    fn keys(&self, window: usize) -> Range<usize> {
        (self.query_offset + 1).saturating_sub(window)..self.query_offset + self.queries
    }
}

pub(super) fn is(tensor: &Tensor, dtype: DType) -> bool {
    cpu::fast_dtype(&[tensor]) == Some(dtype)
}

/// What every task of a call reads.
pub(super) struct Call<'a, T> {
    pub(super) heads: Heads,
    pub(super) rule: Rule,
    pub(super) documents: &'a [Document],
    pub(super) q: &'a [T],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
}

pub(super) fn forward<T: Real + Serial>(
    [q, k, v]: [&Tensor; 3],
    documents: &[Document],
    params: Params,
) -> Result<Tensor> {
    let heads = Heads::of(q, k)?;
    let y = cpu::with([q, k, v], |[q, k, v]: [&[T]; 3]| {
        let call = Call { heads, rule: Rule::of(params), documents, q, k, v };
        T::with_kernel(forward_pass::Forward(&call))
    })?;
    cpu::tensor(y, q.dims())
}

pub(super) fn backward<T: Real + Serial>(
    [q, k, v, dy]: [&Tensor; 4],
    documents: &[Document],
    params: Params,
) -> Result<[Tensor; 3]> {
    let heads = Heads::of(q, k)?;
    let [dq, dk, dv] = cpu::with([q, k, v, dy], |[q, k, v, dy]: [&[T]; 4]| {
        let call = Call { heads, rule: Rule::of(params), documents, q, k, v };
        T::with_kernel(backward_pass::Backward(&call, dy))
    })?;
    Ok([cpu::tensor(dq, q.dims())?, cpu::tensor(dk, k.dims())?, cpu::tensor(dv, v.dims())?])
}

/// Takes the buffers of a forward pass, and gives them back.
pub(super) fn rehearse_forward<T: Real + Serial>(
    pool: &mut Rehearsal,
    heads: Heads,
    documents: &[Document],
    params: Params,
) {
    let call = Call::<T>::of_shape(heads, documents, params);
    T::with_kernel(forward_pass::RehearseForward(&call, pool));
}

/// Takes the buffers of a backward pass, and gives them back.
pub(super) fn rehearse_backward<T: Real + Serial>(
    pool: &mut Rehearsal,
    heads: Heads,
    documents: &[Document],
    params: Params,
) {
    let call = Call::<T>::of_shape(heads, documents, params);
    T::with_kernel(backward_pass::RehearseBackward(&call, pool));
}

/// One key/value head of one document.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) document: Document,
    pub(super) kv_head: usize,
    /// The keys that some query sees.
    pub(super) keys: Range<usize>,
}

impl<'a, T: Real> Call<'a, T> {
    /// One without tensors.
    fn of_shape(heads: Heads, documents: &'a [Document], params: Params) -> Self {
        Self { heads, rule: Rule::of(params), documents, q: &[], k: &[], v: &[] }
    }

    /// Every key/value head of every document.
    pub(super) fn sections(&self) -> Vec<Section> {
        let of = |document: &Document| {
            let (document, keys) = (*document, document.keys(self.rule.window));
            (0..self.heads.kv).map(move |kv_head| Section { document, kv_head, keys: keys.clone() })
        };
        self.documents.iter().flat_map(of).collect()
    }

    /// `k` or `v` of a section, `[keys, D]`: with `by_key` as rows, else its transpose.
    fn operand<'x>(&self, x: &'x [T], section: &Section, by_key: bool) -> Operand<'x, T> {
        let Heads { kv, dim, .. } = self.heads;
        let first = section.document.first + section.keys.start;
        let x = &x[first * kv * dim + section.kv_head * dim..];
        let keys = section.keys.len();
        if by_key {
            Operand::strided_rows(x, keys, dim, kv * dim)
        } else {
            Operand::strided_columns(x, dim, keys, kv * dim)
        }
    }
}

/// Left panels of `k` or `v` of every section, for sums over the head dimension (`by_key`) or over
/// the keys.
pub(super) struct Panels<K: SerialKernel<T>, T: Real> {
    units: Scratch<K::Unit>,
    starts: Vec<usize>,
    /// Units of all panels of a key block.
    block: usize,
}

impl<K: SerialKernel<T>, T: Real> Panels<K, T> {
    pub(super) fn of(call: &Call<T>, x: &[T], sections: &[Section], by_key: bool) -> Result<Self> {
        let (block, starts) = Self::layout(call.heads.dim, sections, by_key);
        let mut units = Scratch::request(starts[sections.len()])?;
        let mut rest = &mut units[..];
        let mut parts = Vec::with_capacity(sections.len());
        for (section, bounds) in sections.iter().zip(starts.windows(2)) {
            let (part, after) = rest.split_at_mut(bounds[1] - bounds[0]);
            parts.push((section, part));
            rest = after;
        }
        parts.into_par_iter().for_each(|(section, part)| {
            let operand = call.operand(x, section, by_key);
            if by_key {
                pack_rows::<K, T>(&operand, part);
            } else {
                pack_columns::<K, T>(&operand, part, block);
            }
        });
        Ok(Self { units, starts, block })
    }

    /// Units of a key block, and where the sections begin and the last one ends.
    fn layout(dim: usize, sections: &[Section], by_key: bool) -> (usize, Vec<usize>) {
        let block = if by_key {
            KEY_BLOCK * K::units(dim)
        } else {
            KEY_BLOCK / K::DEPTH * dim.next_multiple_of(K::MR)
        };
        let mut starts = vec![0];
        for section in sections {
            let blocks = section.keys.len().div_ceil(KEY_BLOCK);
            starts.push(starts[starts.len() - 1] + blocks * block);
        }
        (block, starts)
    }

    /// The buffer of such panels.
    pub(super) fn rehearse(
        pool: &mut Rehearsal,
        call: &Call<T>,
        sections: &[Section],
        by_key: bool,
    ) -> Taken {
        let (_, starts) = Self::layout(call.heads.dim, sections, by_key);
        pool.take::<K::Unit>(starts[sections.len()])
    }

    /// The panels of one block of one section's keys.
    pub(super) fn block(&self, section: usize, block: usize) -> &[K::Unit] {
        &self.units[self.starts[section] + block * self.block..][..self.block]
    }
}

fn pack_rows<K: SerialKernel<T>, T: Copy>(operand: &Operand<T>, part: &mut [K::Unit]) {
    let panel = K::units(operand.depth) * K::MR;
    for (index, panel) in part.chunks_exact_mut(panel).enumerate() {
        if index * K::MR < operand.len {
            K::pack_left(operand, index * K::MR, 0, panel);
        } else {
            panel.fill(K::Unit::default());
        }
    }
}

fn pack_columns<K: SerialKernel<T>, T: Copy>(
    operand: &Operand<T>,
    part: &mut [K::Unit],
    block: usize,
) {
    let panel = KEY_BLOCK / K::DEPTH * K::MR;
    for (index, block) in part.chunks_exact_mut(block).enumerate() {
        for (i, panel) in block.chunks_exact_mut(panel).enumerate() {
            K::pack_left(operand, i * K::MR, index * KEY_BLOCK, panel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use half::bf16;

    /// The largest difference between what two kernels make of the same call.
    fn spread<T: Real + Serial>(softcap: Option<f32>, window: usize) -> Result<f32> {
        let shapes: [&[usize]; 4] = [&[210, 6, 20], &[210, 2, 20], &[210, 2, 20], &[210, 6, 20]];
        let x = check::random(&shapes, T::DTYPE)?;
        let heads = Heads::of(&x[0], &x[1])?;
        let documents = [Document::alone(&(0..13)), Document::alone(&(13..210))];
        cpu::with([&x[0], &x[1], &x[2], &x[3]], |[q, k, v, dy]: [&[T]; 4]| {
            let rule = Rule { scale: 0.4, softcap, window };
            let call = Call { heads, rule, documents: &documents, q, k, v };
            let outputs = T::with_each_kernel(forward_pass::Forward(&call));
            let mut results = outputs.into_iter().collect::<Result<Vec<_>>>()?;
            let gradients = T::with_each_kernel(backward_pass::Backward(&call, dy));
            for (all, gradients) in results.iter_mut().zip(gradients) {
                all.extend(gradients?.concat());
            }
            let difference = |(a, b): (&T, &T)| (a.wide() - b.wide()).abs();
            let pairs = results.iter().flat_map(|all| all.iter().zip(&results[0]));
            Ok(pairs.map(difference).fold(0.0, f32::max))
        })
    }

    #[test]
    fn every_kernel_gives_the_same_up_to_rounding() -> Result<()> {
        for (softcap, window) in [(None, 210), (Some(1.5), 210), (None, 30)] {
            let (single, half) =
                (spread::<f32>(softcap, window)?, spread::<bf16>(softcap, window)?);
            assert!(single < 2e-5 && half < 4e-2, "{softcap:?} {window}: {single:e}, {half:e}");
        }
        Ok(())
    }
}
