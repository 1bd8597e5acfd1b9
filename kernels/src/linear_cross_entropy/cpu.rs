//! The head and the loss on the CPU: chunks of tokens by pieces of the vocabulary.
//!
//! For each chunk, one pass over the vocabulary makes the logits of a piece, takes them into the
//! statistics of their tokens and keeps their exponentials; a second pass multiplies these by the
//! head and by the hidden states. A piece is worked on while
//! it is in the cache, and only the exponentials of a chunk exist at a time.

use candle_core::{DType, Result, bail};
use rayon::prelude::*;

use super::again::Again;
use super::softmax::Statistics;
use super::{Losses, Trained};
use crate::cpu::Real;
use crate::gemm::{self, Operand, Output};
use crate::rehearsal::Rehearsal;
use crate::scratch::Scratch;
use crate::{simd, tasks};

/// What chunks are cut for where products take the same buffers whatever their size: what these
/// take on up to 16 threads.
const CONSTANT_BYTES: usize = 13 << 20;
/// Entries of the vocabulary in a piece.
pub(super) const PIECE: usize = 2048;
/// Bytes of workspace that the chunks of tokens are cut for.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Tokens of a chunk are a multiple of this: whole panels of the products.
const PANEL: usize = 12;
/// Tokens of a chunk with gradients, at most.
const MOST_TOKENS: usize = 4096;
/// Tokens of a chunk without gradients, of which no exponentials are kept.
const FORWARD_TOKENS: usize = 1536;
/// What a product packs at a time: rows of the left side, columns of the right side, elements
/// along the summed dimension; and what it rounds rows and columns up to a multiple of, at most.
const PACKED_ROWS: usize = 2048;
const PACKED_COLUMNS: usize = 1024;
const PACKED_DEPTH: usize = 4096;
const PACKED_PANEL: usize = 32;

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

/// Elements of the buffers for a chunk of `tokens`.
struct Buffers {
    /// Hidden states; exponentials, of all the vocabulary where they are kept; hidden states times
    /// a piece's factors, where that is so.
    narrow: [usize; 3],
    /// Logits of a piece, or what it adds to the gradients of the hidden states; and these, f32.
    wide: [usize; 2],
    /// The panels that the products pack, left and right, where their size depends on the product.
    packed: [usize; 2],
    /// Bytes of the products' buffers, where their size depends on the threads alone.
    constant: Option<usize>,
}

impl Buffers {
    fn new(tokens: usize, vocab: usize, width: usize, dtype: DType) -> Self {
        let piece = vocab.min(PIECE);
        let packed = |len: usize, depth: usize| {
            (len + PACKED_PANEL - 1) * depth.min(PACKED_DEPTH).next_multiple_of(2)
        };
        let left = |len: usize, depth| packed(len.min(PACKED_ROWS), depth);
        let right = |len: usize, depth| packed(len.min(PACKED_COLUMNS), depth);
        let lefts = [left(tokens, width), left(tokens, piece), left(piece, tokens)];
        let rights = [right(piece, width), right(width, piece), right(width, tokens)];
        let largest = |of: [usize; 3]| of.into_iter().fold(0, usize::max);
        let constant = gemm::constant_buffer_bytes(dtype);
        let (kept, scaled) = if computes_again(dtype) { (piece, 0) } else { (vocab, width) };
        Self {
            narrow: [tokens * width, tokens * kept, tokens * scaled],
            wide: [tokens * piece.max(width), tokens * width],
            packed: if constant.is_some() { [0; 2] } else { [largest(lefts), largest(rights)] },
            constant,
        }
    }

    fn bytes(&self, dtype: DType) -> usize {
        self.bytes_of_size(dtype) + self.constant.unwrap_or(0)
    }

    /// What does not depend on the threads, or a bound on it, so that chunks do not either.
    fn bytes_on_any_threads(&self, dtype: DType) -> usize {
        let constant = if self.constant.is_some() { CONSTANT_BYTES } else { 0 };
        self.bytes_of_size(dtype) + constant
    }

    fn bytes_of_size(&self, dtype: DType) -> usize {
        let sum = |of: &[usize]| of.iter().sum::<usize>();
        dtype.size_in_bytes() * sum(&self.narrow)
            + gemm::packed_element_bytes(dtype) * sum(&self.packed)
            + 4 * sum(&self.wide)
    }

    /// The panels in words of 4 bytes, whatever the kernels pack into them.
    fn packed_words(&self, dtype: DType) -> [usize; 2] {
        self.packed.map(|len| (len * gemm::packed_element_bytes(dtype)).div_ceil(4))
    }
}

/// Whether the backward pass computes the logits again, rather than keep their exponentials.
fn computes_again(dtype: DType) -> bool {
    gemm::outruns_memory(dtype)
}

/// Tokens of a chunk with gradients, of `tokens` in all: as many whole panels as the workspace
/// holds.
pub(super) fn chunk_tokens(tokens: usize, vocab: usize, width: usize, dtype: DType) -> usize {
    let buffers = |tokens: usize| Buffers::new(tokens, vocab, width, dtype);
    let fits =
        |panels: &usize| buffers(panels * PANEL).bytes_on_any_threads(dtype) <= WORKSPACE_BYTES;
    let most = tokens.div_ceil(PANEL).min(MOST_TOKENS / PANEL);
    (2..=most).rev().find(fits).unwrap_or(1) * PANEL
}

/// Takes the buffers of [`Head::losses`] over `tokens`, and gives them back.
pub(super) fn rehearse_losses<T: Real>(pool: &mut Rehearsal, [tokens, vocab, width]: [usize; 3]) {
    let tokens = FORWARD_TOKENS.min(tokens);
    let piece = vocab.min(PIECE);
    let taken = [pool.take::<T>(tokens * width), pool.take::<f32>(tokens * piece)];
    gemm::rehearse(pool, [tokens, piece, width], T::DTYPE);
    pool.give_all(taken);
}

/// Takes the buffers of [`Head::gradients`] over `tokens`, and gives them back.
pub(super) fn rehearse_gradients<T: Real>(
    pool: &mut Rehearsal,
    [tokens, vocab, width]: [usize; 3],
    trains: bool,
) {
    let tokens = tokens.min(chunk_tokens(tokens, vocab, width, T::DTYPE));
    let buffers = Buffers::new(tokens, vocab, width, T::DTYPE);
    let packed = buffers.packed_words(T::DTYPE);
    let Buffers { narrow, wide, .. } = buffers;
    let mut taken: Vec<_> = narrow.map(|len| pool.take::<T>(len)).into();
    taken.extend(wide.map(|len| pool.take::<f32>(len)));
    let packed = packed.map(|len| pool.take::<u32>(len));
    pool.give_all(packed);
    let piece = vocab.min(PIECE);
    gemm::rehearse(pool, [tokens, piece, width], T::DTYPE);
    gemm::rehearse(pool, [tokens, width, piece], T::DTYPE);
    if trains {
        gemm::rehearse(pool, [piece, width, tokens], T::DTYPE);
    }
    pool.give_all(taken);
}

/// Bytes of workspace of [`Head::gradients`] over `tokens`.
pub(super) fn workspace_bytes(tokens: usize, vocab: usize, width: usize, dtype: DType) -> usize {
    let chunk = tokens.min(chunk_tokens(tokens, vocab, width, dtype));
    Buffers::new(chunk, vocab, width, dtype).bytes(dtype)
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
        for chunk in trained.chunks(tokens) {
            let rows = self.gather(chunk.0, &mut rows);
            let statistics = self.pass(rows, chunk.1, &mut logits, &mut [], &mut [])?;
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
        mut d_weight: Option<&mut [G]>,
    ) -> Result<Losses> {
        let (vocab, width) = (self.vocab(), self.width);
        let tokens = trained.rows.len();
        let tokens = tokens.min(chunk_tokens(tokens, vocab, width, T::DTYPE));
        let buffers = Buffers::new(tokens, vocab, width, T::DTYPE);
        let packed = buffers.packed_words(T::DTYPE);
        let Buffers { narrow, wide, .. } = buffers;
        let [rows, kept, scaled] = narrow.map(Scratch::<T>::request);
        let (mut rows, mut kept, mut scaled) = (rows?, kept?, scaled?);
        let [mut logits, mut d_rows] = both(wide, Scratch::<f32>::request)?;
        // Left in the pool, so that all products use these two and no smaller ones come to lie
        // beside them.
        drop(both(packed, Scratch::<u32>::request)?);
        let mut largest = vec![0.0; tokens * vocab.div_ceil(PIECE)];
        let mut all = Losses::default();
        for chunk in trained.chunks(tokens) {
            let rows = self.gather(chunk.0, &mut rows);
            let d_rows = &mut d_rows[..rows.len()];
            let d_weight = d_weight.as_deref_mut();
            let statistics = if computes_again(T::DTYPE) {
                let statistics = self.pass(rows, chunk.1, &mut logits, &mut [], &mut [])?;
                let (logits, d_logits) = (&mut logits[..], &mut kept[..]);
                let buffers = Again { rows, logits, d_logits, d_rows };
                self.backward_again(&statistics, loss_scale, buffers, d_weight)?;
                statistics
            } else {
                let kept = &mut kept[..chunk.0.len() * vocab];
                let statistics = self.pass(rows, chunk.1, &mut logits, kept, &mut largest)?;
                let (scaled, d_part) = (&mut scaled[..rows.len()], &mut logits[..rows.len()]);
                let mut buffers = Backward { rows, scaled, d_part, d_rows };
                self.backward(&statistics, kept, &largest, loss_scale, &mut buffers, d_weight)?;
                statistics
            };
            for (row, d_row) in chunk.0.iter().zip(d_rows.chunks_exact(width)) {
                let to = &mut d_hidden[*row as usize * width..][..width];
                to.iter_mut().zip(d_row).for_each(|(to, d)| *to = T::narrow(*d));
            }
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

    /// The statistics of the tokens `rows [C, E]`. `kept`, if it is not empty, gets the
    /// exponentials of each piece `[C, piece]`, and `largest` its largest logits `[C]`.
    fn pass(
        &self,
        rows: &[T],
        targets: &[u32],
        logits: &mut [f32],
        kept: &mut [T],
        largest: &mut [f32],
    ) -> Result<Vec<Statistics>> {
        let tokens = targets.len();
        let left = Operand::rows(rows, tokens, self.width);
        let mut statistics: Vec<_> = targets.iter().map(|t| Statistics::new(*t)).collect();
        for (index, piece) in self.weight.chunks(PIECE * self.width).enumerate() {
            let len = piece.len() / self.width;
            let first = index * PIECE;
            let logits = &mut logits[..tokens * len];
            multiply(&left, &Operand::rows(piece, len, self.width), logits, len, false)?;
            let each = statistics.par_iter_mut().zip(logits.par_chunks_exact_mut(len));
            if kept.is_empty() {
                each.for_each(|(token, logits)| {
                    token.absorb::<T>(logits, first, self.softcap, &mut []);
                });
                continue;
            }
            let kept = kept[first * tokens..][..tokens * len].par_chunks_exact_mut(len);
            let largest = largest[index * tokens..][..tokens].par_iter_mut();
            each.zip(kept).zip(largest).for_each(|(((token, logits), kept), largest)| {
                *largest = token.absorb(logits, first, self.softcap, kept);
            });
        }
        Ok(statistics)
    }

    /// `d_rows [C, E] = d_logits · W` and `d_weight += d_logitsᵀ · rows`.
    ///
    /// A piece's d_logits are what was kept of it times one factor a token, but for the target's
    /// entry. So the factors are put on the other side of the products, which is narrower, and the
    /// targets' entries are added by themselves.
    fn backward<G: Output>(
        &self,
        statistics: &[Statistics],
        kept: &mut [T],
        largest: &[f32],
        scale: f64,
        buffers: &mut Backward<T>,
        mut d_weight: Option<&mut [G]>,
    ) -> Result<()> {
        let (tokens, width) = (statistics.len(), self.width);
        let Backward { rows, scaled, d_part, d_rows } = buffers;
        d_rows.fill(0.0);
        for (index, piece) in self.weight.chunks(PIECE * width).enumerate() {
            let len = piece.len() / width;
            let first = index * PIECE;
            let kept = &mut kept[first * tokens..][..tokens * len];
            let mut factors = largest[index * tokens..][..tokens].to_vec();
            for (token, (factor, kept)) in
                statistics.iter().zip(factors.iter_mut().zip(kept.chunks_exact_mut(len)))
            {
                *factor = token.factor(*factor, scale);
                if let Some(at) = token.target_in(first, len) {
                    kept[at] = T::narrow(0.0);
                }
            }
            let left = Operand::rows(kept, tokens, len);
            multiply(&left, &Operand::columns(piece, width, len), d_part, width, false)?;
            scale_rows(&factors, d_part, width, |sum: &mut f32, part| *sum += part, d_rows);
            if let Some(d_weight) = &mut d_weight {
                scale_rows(&factors, rows, width, |to: &mut T, row| *to = T::narrow(row), scaled);
                let left = Operand::columns(kept, len, tokens);
                let to = &mut d_weight[first * width..][..len * width];
                multiply(&left, &Operand::columns(scaled, width, tokens), to, width, true)?;
            }
        }
        let rows = rows.chunks_exact(width).zip(d_rows.chunks_exact_mut(width));
        for (token, (row, d_row)) in statistics.iter().zip(rows) {
            let gradient = token.target_gradient(self.softcap, scale);
            let at = token.target() * width;
            let entry = self.weight[at..at + width].iter();
            d_row.iter_mut().zip(entry).for_each(|(d, x)| *d += x.wide() * gradient);
            if let Some(d_weight) = &mut d_weight {
                let sums: Vec<f32> = row.iter().map(|x| x.wide() * gradient).collect();
                G::store(&mut d_weight[at..at + width], &sums, true);
            }
        }
        Ok(())
    }
}

/// `take(to, factor · from)` for each element of rows of `width`, with one factor a row.
fn scale_rows<A: Real, B: Send>(
    factors: &[f32],
    from: &[A],
    width: usize,
    take: impl Fn(&mut B, f32) + Sync + Copy,
    to: &mut [B],
) {
    tasks::rows(width, [to], |first, [to]| {
        let rows = to.chunks_exact_mut(width).zip(from[first * width..].chunks_exact(width));
        for (factor, (to, from)) in factors[first..].iter().zip(rows) {
            simd::vectorized(|| {
                to.iter_mut().zip(from).for_each(|(to, from)| take(to, from.wide() * factor));
            });
        }
    });
}

/// What the backward pass of a chunk of tokens works with, `[C, E]` each.
struct Backward<'a, T> {
    /// The hidden states.
    rows: &'a [T],
    /// The same, times a piece's factors.
    scaled: &'a mut [T],
    /// What a piece adds to `d_rows`.
    d_part: &'a mut [f32],
    /// Gradients of the hidden states.
    d_rows: &'a mut [f32],
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

pub(super) fn multiply<T: Real, O: Output>(
    left: &Operand<T>,
    right: &Operand<T>,
    out: &mut [O],
    row_stride: usize,
    add: bool,
) -> Result<()> {
    if !T::multiply(left, right, out, row_stride, add) {
        bail!("no product of {:?} on this CPU", T::DTYPE);
    }
    Ok(())
}
