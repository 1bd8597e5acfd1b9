//! The loops over one piece of the cache, in lanes of a fixed number, so that every CPU adds in
//! the same order.

use pulp::{Simd, WithSimd};

use crate::attention::Params;
use crate::cpu::Real;
use crate::simd;

const LANES: usize = 16;
type Lanes = [f32; LANES];

/// Keys that are gone through together.
const KEYS: usize = 4;

/// One group of query heads over one piece.
pub(super) struct Attend<'a, T> {
    /// `[G, D]`.
    pub(super) q: &'a [T],
    /// `[S, D]`.
    pub(super) keys: &'a [T],
    /// `[S, D]`.
    pub(super) values: &'a [T],
    pub(super) dim: usize,
    pub(super) params: Params,
    /// `[S]`, to work in.
    pub(super) scores: &'a mut [f32],
    /// `[G, 2 + D]`: for each head its largest score, the sum of the exponentials, and the sum of
    /// the values that they weigh.
    pub(super) partial: &'a mut [f32],
}

impl<T: Real> WithSimd for Attend<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { q, keys, values, dim, params, scores, partial } = self;
        for (q, partial) in q.chunks_exact(dim).zip(partial.chunks_exact_mut(dim + 2)) {
            let (statistics, sums) = partial.split_at_mut(2);
            score(q, keys, params.scale as f32, scores);
            if let Some(cap) = params.softcap {
                let cap = cap as f32;
                for score in scores.iter_mut() {
                    *score = tanh(*score / cap) * cap;
                }
            }
            let max = largest(scores);
            for score in scores.iter_mut() {
                *score = simd::exp(*score - max);
            }
            statistics.copy_from_slice(&[max, sum(scores)]);
            weighted_sum(scores, values, sums);
        }
    }
}

/// `scores[j] = scale · q · keys[j]`.
#[inline(always)]
fn score<T: Real>(q: &[T], keys: &[T], scale: f32, scores: &mut [f32]) {
    let dim = q.len();
    let (together, rest) = scores.as_chunks_mut::<KEYS>();
    let mut from = 0;
    for scores in together {
        *scores = dots(q, tokens::<T, KEYS>(&keys[from..], dim));
        from += KEYS * dim;
    }
    for score in rest {
        [*score] = dots(q, tokens(&keys[from..], dim));
        from += dim;
    }
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

/// The first `N` of tokens that lie one after the other.
#[inline(always)]
fn tokens<T, const N: usize>(of: &[T], dim: usize) -> [&[T]; N] {
    let mut tokens = [&of[..0]; N];
    for (j, token) in tokens.iter_mut().enumerate() {
        *token = &of[j * dim..][..dim];
    }
    tokens
}

#[inline(always)]
fn dots<T: Real, const N: usize>(q: &[T], keys: [&[T]; N]) -> [f32; N] {
    let mut sums = [[0f32; LANES]; N];
    let (q_whole, q_rest) = q.as_chunks::<LANES>();
    for (at, q) in q_whole.iter().enumerate() {
        let q = widened(q);
        for j in 0..N {
            let key = widened(&keys[j].as_chunks::<LANES>().0[at]);
            for lane in 0..LANES {
                sums[j][lane] = q[lane].mul_add(key[lane], sums[j][lane]);
            }
        }
    }
    let mut dots = [0f32; N];
    for j in 0..N {
        let rest = &keys[j][q_whole.len() * LANES..];
        for (lane, (q, key)) in q_rest.iter().zip(rest).enumerate() {
            sums[j][lane] = q.wide().mul_add(key.wide(), sums[j][lane]);
        }
        dots[j] = total(sums[j]);
    }
    dots
}

#[inline(always)]
fn widened<T: Real>(values: &[T; LANES]) -> Lanes {
    let mut wide = [0f32; LANES];
    for lane in 0..LANES {
        wide[lane] = values[lane].wide();
    }
    wide
}

/// `sums [D] = Σ_j weights[j] · values[j]`.
#[inline(always)]
fn weighted_sum<T: Real>(weights: &[f32], values: &[T], sums: &mut [f32]) {
    let dim = sums.len();
    sums.fill(0.0);
    let (together, rest) = weights.as_chunks::<KEYS>();
    let mut from = 0;
    for weights in together {
        add(weights, tokens(&values[from..], dim), sums);
        from += KEYS * dim;
    }
    for weight in rest {
        add(&[*weight], tokens(&values[from..], dim), sums);
        from += dim;
    }
}

#[inline(always)]
fn add<T: Real, const N: usize>(weights: &[f32; N], values: [&[T]; N], sums: &mut [f32]) {
    let (whole, rest) = sums.as_chunks_mut::<LANES>();
    let done = whole.len() * LANES;
    for (at, whole) in whole.iter_mut().enumerate() {
        let mut sums = *whole;
        for j in 0..N {
            let values = widened(&values[j].as_chunks::<LANES>().0[at]);
            for lane in 0..LANES {
                sums[lane] = weights[j].mul_add(values[lane], sums[lane]);
            }
        }
        *whole = sums;
    }
    for (at, sum) in rest.iter_mut().enumerate() {
        for j in 0..N {
            *sum = weights[j].mul_add(values[j][done + at].wide(), *sum);
        }
    }
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            lanes[lane] = if values[lane] > lanes[lane] { values[lane] } else { lanes[lane] };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            lanes[lane] += values[lane];
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        lanes[lane] += value;
    }
    total(lanes)
}

/// Folded by halves.
#[inline(always)]
fn total(lanes: Lanes) -> f32 {
    let (mut eight, mut four) = ([0f32; 8], [0f32; 4]);
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// `1 − 2/(e^2x + 1)`, and the Taylor series where that would cancel.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let series = (-17.0 / 315.0 * square + 2.0 / 15.0) * square - 1.0 / 3.0;
    let near = x * (series * square + 1.0);
    let far = 1.0 - 2.0 / (simd::exp(2.0 * x) + 1.0);
    if square < 0.04 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_close_everywhere() {
        for i in -40_000..40_000 {
            let x = i as f32 * 5e-4;
            let expected = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - expected).abs();
            assert!(error <= 5e-7 * expected.abs() + 1e-12, "{x}: {error:e}");
        }
    }
}
