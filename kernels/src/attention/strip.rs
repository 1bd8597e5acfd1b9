//! A strip: the rows of scores that are worked on at a time, one a lane.
//!
//! Scores are kept as `[keys, lanes]`, so what the softmax does a row is done a lane, without a sum
//! across one register, and probabilities leave in the order in which the next product reads them.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::cpu::{KEY_BLOCK, Section};
use super::{HeadShape, Params};
use crate::cpu::Real;
use crate::gemm::{MOST_LANES, Operand, SerialKernel};

/// Heads and their dimension.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
}

impl From<HeadShape> for Heads {
    fn from([query, kv, dim]: HeadShape) -> Self {
        Self { query, kv, dim }
    }
}

impl Heads {
    pub(super) fn of(q: &Tensor, k: &Tensor) -> Result<Self> {
        let (_, query, dim) = q.dims3()?;
        Ok(Self { query, kv: k.dim(1)?, dim })
    }

    fn group(self) -> usize {
        self.query / self.kv
    }

    /// Query heads of a group that share a strip: as many as divide both, so that all lanes of a
    /// strip are used and the group's other heads have strips of their own.
    fn together(self, lanes: usize) -> usize {
        1 << self.group().trailing_zeros().min(lanes.trailing_zeros())
    }
}

/// Which keys a query sees, and what a score is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// Factor on `q · k`.
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    /// Keys that a query sees, its own included.
    pub(super) window: usize,
}

impl Rule {
    pub(super) fn of(params: Params) -> Self {
        let window = params.window.unwrap_or(usize::MAX).min(i32::MAX as usize);
        Self { scale: params.scale as f32, softcap: params.softcap.map(|cap| cap as f32), window }
    }
}

/// Some queries of some heads of a group: lane `i · heads + j` is query `i` of head `j`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strip {
    /// The first query's row, of all queries.
    pub(super) token: usize,
    pub(super) queries: usize,
    /// The first head, of all query heads.
    pub(super) head: usize,
    pub(super) heads: usize,
    /// Where the first query stands in the keys.
    pub(super) position: usize,
}

impl Section {
    /// How many strips it has: those of the same queries follow each other.
    pub(super) fn strips(&self, heads: Heads, lanes: usize) -> usize {
        let together = heads.together(lanes);
        self.document.queries.div_ceil(lanes / together) * (heads.group() / together)
    }

    pub(super) fn strip(&self, heads: Heads, lanes: usize, index: usize) -> Strip {
        let together = heads.together(lanes);
        let per_query = heads.group() / together;
        let most = lanes / together;
        let query = index / per_query * most;
        Strip {
            token: self.document.first + query,
            queries: (self.document.queries - query).min(most),
            head: self.kv_head * heads.group() + index % per_query * together,
            heads: together,
            position: self.document.query_offset + query,
        }
    }

    /// The key blocks that some query of these strips sees.
    pub(super) fn blocks(&self, strips: &[Strip], window: usize) -> Range<usize> {
        let first = strips.iter().map(|strip| strip.position).min().unwrap_or(0);
        let start = (first + 1).saturating_sub(window).max(self.keys.start);
        let end = strips.iter().map(Strip::end).max().unwrap_or(0);
        (start - self.keys.start) / KEY_BLOCK..(end - self.keys.start).div_ceil(KEY_BLOCK)
    }
}

impl Strip {
    /// The first position that none of its queries sees.
    pub(super) fn end(&self) -> usize {
        self.position + self.queries
    }

    /// How many keys from position `start` on its tiles of a block hold: those that some query
    /// sees, panels of `MR` rounded up.
    pub(super) fn used(&self, start: usize, panel: usize) -> usize {
        self.end().saturating_sub(start).next_multiple_of(panel).min(KEY_BLOCK)
    }

    pub(super) fn rows(&self) -> usize {
        self.queries * self.heads
    }

    /// The positions of the lanes; those without a query stand where the last one does.
    pub(super) fn positions(&self) -> [u32; MOST_LANES] {
        let at = |lane: usize| self.position + (lane / self.heads).min(self.queries - 1);
        std::array::from_fn(|lane| at(lane) as u32)
    }

    /// Whether every lane sees all of these keys.
    pub(super) fn sees_all(&self, keys: &Range<usize>, window: usize) -> bool {
        keys.end <= self.position + 1 && self.end() - 1 - keys.start < window
    }

    /// Its rows of `x [N, H, D]`, one after the other.
    pub(super) fn gather<T: Copy>(&self, x: &[T], heads: Heads, rows: &mut [T]) {
        let width = self.heads * heads.dim;
        for (query, to) in rows.chunks_exact_mut(width).take(self.queries).enumerate() {
            let at = ((self.token + query) * heads.query + self.head) * heads.dim;
            to.copy_from_slice(&x[at..at + width]);
        }
    }

    /// Packs gathered rows as a right panel: a lane each, for sums over the head dimension.
    pub(super) fn pack_lanes<K: SerialKernel<T>, T: Real>(
        &self,
        rows: &[T],
        dim: usize,
        panel: &mut [K::Unit],
    ) {
        let rows = Operand::rows(&rows[..self.rows() * dim], self.rows(), dim);
        K::pack(&rows, 0, 0, K::NR, panel);
    }

    /// Packs gathered rows as right panels of the head dimension, for sums over the lanes.
    pub(super) fn pack_dims<'a, K: SerialKernel<T>, T: Real>(
        &self,
        rows: &[T],
        dim: usize,
        panels: impl Iterator<Item = &'a mut [K::Unit]>,
    ) where
        K::Unit: 'a,
    {
        let columns = Operand::columns(&rows[..self.rows() * dim], dim, self.rows());
        for (index, panel) in panels.enumerate() {
            K::pack(&columns, index * K::NR, 0, K::NR, panel);
        }
    }
}

/// `sums [blocks of D, lanes] (+)= Σ_keys left [keys, D] · right [keys, lanes]`, or the same with D
/// and keys exchanged: a panel of `left` makes `MR` rows of `sums`.
pub(super) fn products<K: SerialKernel<T>, T: Real>(
    left: &[K::Unit],
    panel: usize,
    right: &[K::Unit],
    sums: &mut [f32],
    add: bool,
) {
    let steps = right.len() / K::NR;
    for (left, sums) in left.chunks_exact(panel).zip(sums.chunks_exact_mut(K::MR * K::NR)) {
        K::tile(&left[..steps * K::MR], right, sums, K::NR, add);
    }
}
