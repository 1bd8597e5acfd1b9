//! The head and the loss on the CPU: chunks of tokens by pieces of the vocabulary.
//!
//! One pass over the vocabulary makes the logits of a piece, takes them into the statistics of
//! their tokens, and adds what the piece has to say to the gradients of the hidden states. These sums are relative to the largest logit so far, as in attention over
//! tiles, so nothing of a piece is needed later, unless the head itself is trained.

use candle_core::Result;
use rayon::prelude::*;

use super::buffers::{Buffers, FORWARD_TOKENS, HeadGradient, PIECE, chunk_tokens};
use super::softmax::Statistics;
use super::{Losses, Trained};
use crate::cpu::Real;
use crate::gemm::{Operand, Output};
use crate::scratch::Scratch;
use crate::{simd, tasks};

/// The hidden states and the head as slices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a, T> {
    /// `[N, E]`.
    pub(super) hidden: &'a [T],
    /// `[V, E]`.
    pub(super) weight: &'a [T],
    /// E.
    pub(super) width: usize,
    pub(super) softcap: Option<f32>,
}

/// What a chunk of C tokens works with.
pub(super) struct Chunk<'a, T> {
    /// The hidden states, `[C, E]`.
    pub(super) rows: &'a [T],
    /// `[C, piece]`, and what a piece adds to `d_rows`, `[C, E]`.
    pub(super) logits: &'a mut [f32],
    /// The exponentials of a piece `[C, piece]`, or of one after the other.
    pub(super) kept: &'a mut [T],
    /// Where they are kept, the largest logits of each piece, `[C]` one after the other.
    pub(super) largest: &'a mut [f32],
    /// `rows` times a piece's factors, where exponentials are kept.
    pub(super) scaled: &'a mut [T],
    /// Gradients of the hidden states, `[C, E]`.
    pub(super) d_rows: &'a mut [f32],
}

impl<T: Real> Head<'_, T> {
    fn vocab(&self) -> usize {
        self.weight.len() / self.width.max(1)
    }

    /// The loss of each trained token.
    pub(super) fn losses(&self, trained: &Trained) -> Result<Losses> {
        let tokens = FORWARD_TOKENS.min(trained.rows.len());
        let mut rows = Scratch::<T>::request(tokens * self.width)?;
        let mut logits = Scratch::<f32>::request(tokens * self.vocab().min(PIECE))?;
        let mut all = Losses::default();
        for (chunk, targets) in trained.chunks(tokens) {
            let rows = self.gather(chunk, &mut rows);
            let mut statistics = Statistics::of_all(targets);
            for (index, piece) in self.pieces() {
                let len = piece.len() / self.width;
                let logits = &mut logits[..targets.len() * len];
                self.logits(rows, piece, logits);
                let each = statistics.par_iter_mut().zip(logits.par_chunks_exact_mut(len));
                each.for_each(|(token, logits)| {
                    token.absorb::<T>(logits, index * PIECE, self.softcap, &mut []);
                });
            }
            all.extend(&statistics);
        }
        Ok(all)
    }

    /// The loss of each trained token. `d_hidden [N, E]` gets its gradient in their rows, and
    /// `d_weight [V, E]` has its gradient added.
    pub(super) fn gradients<G: Output>(
        &self,
        trained: &Trained,
        loss_scale: f64,
        d_hidden: &mut [T],
        d_weight: Option<&mut [G]>,
    ) -> Result<Losses> {
        let way = HeadGradient::new(d_weight.is_some(), T::DTYPE);
        self.gradients_by(way, trained, loss_scale, d_hidden, d_weight)
    }

    /// The same, with the head's gradient by `way`.
    pub(super) fn gradients_by<G: Output>(
        &self,
        way: HeadGradient,
        trained: &Trained,
        loss_scale: f64,
        d_hidden: &mut [T],
        mut d_weight: Option<&mut [G]>,
    ) -> Result<Losses> {
        let (vocab, width) = (self.vocab(), self.width);
        let tokens = trained.rows.len();
        let tokens = tokens.min(chunk_tokens(tokens, vocab, width, T::DTYPE, way));
        let buffers = Buffers::new(tokens, vocab, width, T::DTYPE, way);
        let packed = buffers.packed_words(T::DTYPE);
        let Buffers { narrow, wide, .. } = buffers;
        let [rows, kept, scaled] = narrow.map(Scratch::<T>::request);
        let (mut rows, mut kept, mut scaled) = (rows?, kept?, scaled?);
        let [mut logits, mut d_rows] = both(wide, Scratch::<f32>::request)?;
        // Left in the pool, so that all products use these two and no smaller ones come to lie
        // beside them.
        drop(both(packed, Scratch::<u32>::request)?);
        let keeps = way == HeadGradient::Kept;
        let mut largest = vec![0.0; if keeps { tokens * vocab.div_ceil(PIECE) } else { 0 }];
        let mut all = Losses::default();
        for (chunk, targets) in trained.chunks(tokens) {
            let mut buffers = Chunk {
                rows: self.gather(chunk, &mut rows),
                logits: &mut logits,
                kept: &mut kept,
                largest: &mut largest,
                scaled: &mut scaled,
                d_rows: &mut d_rows[..chunk.len() * width],
            };
            let statistics = self.pass(targets, keeps, loss_scale, &mut buffers);
            match (way, &mut d_weight) {
                (HeadGradient::Unwanted, _) | (_, None) => {}
                (HeadGradient::Kept, Some(d_weight)) => {
                    self.add_of_kept(&statistics, loss_scale, &mut buffers, d_weight);
                }
                (HeadGradient::Again, Some(d_weight)) => {
                    self.add_of_logits(&statistics, loss_scale, &mut buffers, d_weight);
                }
            }
            self.scatter(chunk, &d_rows, d_hidden);
            all.extend(&statistics);
        }
        Ok(all)
    }

    fn gather<'s>(&self, rows: &[u32], to: &'s mut [T]) -> &'s [T] {
        for (to, row) in to.chunks_exact_mut(self.width).zip(rows) {
            to.copy_from_slice(&self.hidden[*row as usize * self.width..][..self.width]);
        }
        &to[..rows.len() * self.width]
    }

    fn scatter(&self, rows: &[u32], from: &[f32], to: &mut [T]) {
        for (row, from) in rows.iter().zip(from.chunks_exact(self.width)) {
            let to = &mut to[*row as usize * self.width..][..self.width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = T::narrow(*from));
        }
    }

    /// The pieces of the vocabulary and their numbers.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (usize, &[T])> {
        self.weight.chunks(PIECE * self.width).enumerate()
    }

    /// `logits [C, piece] = rows [C, E] · pieceᵀ`.
    pub(super) fn logits(&self, rows: &[T], piece: &[T], logits: &mut [f32]) {
        let (tokens, len) = (rows.len() / self.width, piece.len() / self.width);
        let left = Operand::rows(rows, tokens, self.width);
        T::multiply(&left, &Operand::rows(piece, len, self.width), logits, len, false);
    }

    /// The statistics of the tokens, and the gradients of their hidden states. What is kept gets
    /// the exponentials of all pieces if it `keeps`; a target's is zero.
    fn pass(
        &self,
        targets: &[u32],
        keeps: bool,
        scale: f64,
        buffers: &mut Chunk<T>,
    ) -> Vec<Statistics> {
        let (tokens, width) = (targets.len(), self.width);
        let Chunk { rows, logits, kept, largest, d_rows, .. } = buffers;
        let mut statistics = Statistics::of_all(targets);
        let mut factors = vec![[0.0; 2]; tokens];
        let mut most = vec![0.0; tokens];
        d_rows.fill(0.0);
        for (index, piece) in self.pieces() {
            let (first, len) = (index * PIECE, piece.len() / width);
            let kept = &mut kept[if keeps { first * tokens } else { 0 }..][..tokens * len];
            self.logits(rows, piece, &mut logits[..tokens * len]);
            let each = statistics.par_iter_mut().zip(&mut factors).zip(&mut most);
            let each = each.zip(logits.par_chunks_exact_mut(len));
            each.zip(kept.par_chunks_exact_mut(len)).for_each(
                |((((token, factors), most), logits), kept)| {
                    let before = token.max();
                    *most = token.absorb(logits, first, self.softcap, kept);
                    *factors = [before, *most].map(|of| token.relative(of));
                    if let Some(at) = token.target_in(first, len) {
                        kept[at] = T::narrow(0.0);
                    }
                },
            );
            if keeps {
                largest[index * tokens..][..tokens].copy_from_slice(&most);
            }
            let d_part = &mut logits[..tokens * width];
            let left = Operand::rows(kept, tokens, len);
            T::multiply(&left, &Operand::columns(piece, width, len), d_part, width, false);
            rows_with(&factors, d_part, width, d_rows, |to, [earlier, now], part| {
                *to = *to * earlier + part * now;
            });
        }
        self.finish(&statistics, scale, d_rows);
        statistics
    }

    /// Turns sums of exponentials times the head into gradients.
    fn finish(&self, statistics: &[Statistics], scale: f64, d_rows: &mut [f32]) {
        for (token, d_row) in statistics.iter().zip(d_rows.chunks_exact_mut(self.width)) {
            let factor = token.factor(token.max(), scale);
            let gradient = token.target_gradient(self.softcap, scale);
            let entry = &self.weight[token.target() * self.width..][..self.width];
            let each = d_row.iter_mut().zip(entry);
            each.for_each(|(d, x)| *d = *d * factor + x.wide() * gradient);
        }
    }
}

/// `take(to, factor, from)` for each element of rows of `width`, with one factor a row.
pub(super) fn rows_with<A: Real, B: Send, F: Copy + Sync>(
    factors: &[F],
    from: &[A],
    width: usize,
    to: &mut [B],
    take: impl Fn(&mut B, F, f32) + Sync + Copy,
) {
    tasks::rows(width, [to], |first, [to]| {
        let rows = to.chunks_exact_mut(width).zip(from[first * width..].chunks_exact(width));
        for (factor, (to, from)) in factors[first..].iter().zip(rows) {
            simd::vectorized(|| {
                to.iter_mut().zip(from).for_each(|(to, from)| take(to, *factor, from.wide()));
            });
        }
    });
}

fn both<B>(lens: [usize; 2], buffer: impl Fn(usize) -> Result<B>) -> Result<[B; 2]> {
    Ok([buffer(lens[0])?, buffer(lens[1])?])
}

impl Losses {
    fn extend(&mut self, statistics: &[Statistics]) {
        self.of_token.extend(statistics.iter().map(Statistics::loss));
        self.num_correct += statistics.iter().filter(|token| token.is_correct()).count();
    }
}
