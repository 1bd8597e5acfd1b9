//! The gradient of the head, of exponentials that a chunk has kept, or, where products are faster
//! than memory, of logits that are computed a second time: then nothing of a chunk is kept but its
//! statistics, and all tokens go through a piece of the vocabulary while its gradient is in the cache.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::buffers::PIECE;
use super::cpu::{Chunk, Head, rows_with};
use super::softmax::{Statistics, slope, soft_cap};
use crate::cpu::Real;
use crate::gemm::{Operand, Output};
use crate::simd;

impl<T: Real> Head<'_, T> {
    /// `d_weight += d_logitsᵀ · rows` by what was kept.
    ///
    /// A piece's d_logits are that times one factor a token, but for the target's entry. So the
    /// factors are put on the other side of the product, which is narrower, and the targets' entries
    /// are added by themselves.
    pub(super) fn add_of_kept<G: Output>(
        &self,
        statistics: &[Statistics],
        scale: f64,
        buffers: &mut Chunk<T>,
        d_weight: &mut [G],
    ) {
        let (tokens, width) = (statistics.len(), self.width);
        let Chunk { rows, kept, largest, scaled, .. } = buffers;
        let scaled = &mut scaled[..rows.len()];
        for (index, piece) in self.pieces() {
            let (first, len) = (index * PIECE, piece.len() / width);
            let of_piece = largest[index * tokens..][..tokens].iter().zip(statistics);
            let factors: Vec<_> =
                of_piece.map(|(most, token)| token.factor(*most, scale)).collect();
            rows_with(&factors, rows, width, scaled, |to: &mut T, factor, row| {
                *to = T::narrow(row * factor);
            });
            let left = Operand::columns(&kept[first * tokens..][..tokens * len], len, tokens);
            let to = &mut d_weight[first * width..][..len * width];
            T::multiply(&left, &Operand::columns(scaled, width, tokens), to, width, true);
        }
        for (token, row) in statistics.iter().zip(rows.chunks_exact(width)) {
            let gradient = token.target_gradient(self.softcap, scale);
            let sums: Vec<f32> = row.iter().map(|x| x.wide() * gradient).collect();
            G::store(&mut d_weight[token.target() * width..][..width], &sums, true);
        }
    }

    /// `d_weight += d_logitsᵀ · rows` by logits that are computed again.
    pub(super) fn add_of_logits<G: Output>(
        &self,
        statistics: &[Statistics],
        scale: f64,
        buffers: &mut Chunk<T>,
        d_weight: &mut [G],
    ) {
        let (tokens, width) = (statistics.len(), self.width);
        let Chunk { rows, logits, kept, .. } = buffers;
        for (index, piece) in self.pieces() {
            let (first, len) = (index * PIECE, piece.len() / width);
            let (logits, d_logits) = (&mut logits[..tokens * len], &mut kept[..tokens * len]);
            self.logits(rows, piece, logits);
            let each = logits.par_chunks_exact_mut(len).zip(d_logits.par_chunks_exact_mut(len));
            each.zip(statistics).for_each(|((logits, d_logits), token)| {
                token.gradient(logits, first, self.softcap, scale, d_logits);
            });
            let left = Operand::columns(d_logits, len, tokens);
            let to = &mut d_weight[first * width..][..len * width];
            T::multiply(&left, &Operand::columns(rows, width, tokens), to, width, true);
        }
    }
}

impl Statistics {
    /// The gradient of the loss times `scale` by the logits of the entries from `first` on, which
    /// are capped in place.
    fn gradient<T: Real>(
        &self,
        logits: &mut [f32],
        first: usize,
        softcap: Option<f32>,
        scale: f64,
        to: &mut [T],
    ) {
        let log_sum_exp = self.log_sum_exp() as f32;
        let target = self.target_in(first, logits.len());
        simd::dispatch(Gradient { logits, softcap, log_sum_exp, scale: scale as f32, to });
        if let Some(target) = target {
            to[target] = T::narrow(self.target_gradient(softcap, scale));
        }
    }
}

struct Gradient<'a, T> {
    logits: &'a mut [f32],
    softcap: Option<f32>,
    log_sum_exp: f32,
    scale: f32,
    to: &'a mut [T],
}

impl<T: Real> WithSimd for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { logits, softcap, log_sum_exp, scale, to } = self;
        let probability = |logit: f32| simd::exp2((logit - log_sum_exp) * std::f32::consts::LOG2_E);
        if let Some(cap) = softcap {
            soft_cap(logits, cap);
            for (to, logit) in to.iter_mut().zip(logits) {
                *to = T::narrow(probability(*logit) * scale * slope(*logit, cap));
            }
        } else {
            for (to, logit) in to.iter_mut().zip(logits) {
                *to = T::narrow(probability(*logit) * scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_gradient_of_the_whole() {
        let row: Vec<f32> = (0..777u32).map(|i| (i * i % 1013) as f32 * 0.02 - 8.0).collect();
        let (target, scale) = (400, 0.25);
        for (cap, piece) in [(None, 777), (None, 100), (Some(6.0), 64)] {
            let of = |x: f64| cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
            let capped: Vec<f64> = row.iter().map(|x| of(f64::from(*x))).collect();
            let log_sum_exp = capped.iter().map(|x| x.exp()).sum::<f64>().ln();
            let mut statistics = Statistics::new(target);
            for (index, logits) in row.chunks(piece).enumerate() {
                statistics.absorb::<f32>(&mut logits.to_vec(), index * piece, cap, &mut []);
            }
            for (index, logits) in row.chunks(piece).enumerate() {
                let mut got = vec![0f32; logits.len()];
                let first = index * piece;
                statistics.gradient(&mut logits.to_vec(), first, cap, scale, &mut got);
                for (i, got) in (first..).zip(got) {
                    let one = if i == target as usize { 1.0 } else { 0.0 };
                    let slope = cap.map_or(1.0, |cap| 1.0 - (capped[i] / f64::from(cap)).powi(2));
                    let expected = ((capped[i] - log_sum_exp).exp() - one) * slope * scale;
                    assert!((f64::from(got) - expected).abs() < 1e-6, "{i}: {got} {expected}");
                }
            }
        }
    }
}
