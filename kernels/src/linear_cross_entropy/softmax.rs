//! The vector loops over one token's logits, a piece of the vocabulary at a time.
//!
//! A piece is read twice while it is in the cache: for its largest logit, and for the sum of
//! `exp(logit − largest)`. The same exponentials, times the soft-cap's slope, are the gradient up
//! to one factor a piece that is known at the end (Milakov and Gimelshein 2018, "Online normalizer
//! calculation for softmax"), so they are what the gradients are made of. Rounded to bf16 they err
//! by 2⁻⁹, however large the logits are.

use pulp::{Simd, WithSimd};

use crate::cpu::Real;
use crate::simd::{self, exp, exp2};

/// Partial results that a loop keeps side by side: four AVX-512 registers.
const LANES: usize = 64;

/// What is known of a token's softmax after some pieces of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statistics {
    target: usize,
    target_logit: f32,
    max: f32,
    argmax: usize,
    /// Of `exp(logit − max)`.
    sum: f64,
}

impl Statistics {
    pub(super) fn new(target: u32) -> Self {
        let max = f32::NEG_INFINITY;
        Self { target: target as usize, target_logit: 0.0, max, argmax: usize::MAX, sum: 0.0 }
    }

    /// The same of each of `targets`.
    pub(super) fn of_all(targets: &[u32]) -> Vec<Self> {
        targets.iter().map(|target| Self::new(*target)).collect()
    }

    /// The largest logit so far.
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    /// What turns sums of exponentials relative to `to` into sums relative to the largest logit.
    pub(super) fn relative(&self, to: f32) -> f32 {
        (to - self.max).exp()
    }

    /// Takes in the logits of the entries from `first` on, which are capped in place, and returns
    /// the largest. `kept`, if it is not empty, gets `exp(logit − largest)` times the slope.
    pub(super) fn absorb<T: Real>(
        &mut self,
        logits: &mut [f32],
        first: usize,
        softcap: Option<f32>,
        kept: &mut [T],
    ) -> f32 {
        let (largest, sum) = simd::dispatch(Piece { logits: &mut *logits, softcap, kept });
        if let Some(logit) = self.target.checked_sub(first).and_then(|at| logits.get(at)) {
            self.target_logit = *logit;
        }
        let before = self.max;
        if largest > before {
            self.max = largest;
            let place = logits.iter().position(|x| *x == largest).unwrap_or(0);
            self.argmax = first + place;
        }
        let relative = |max: f32| f64::from(max - self.max).exp();
        let earlier = if self.sum > 0.0 { self.sum * relative(before) } else { self.sum };
        self.sum = earlier + f64::from(sum) * relative(largest);
        largest
    }

    pub(super) fn log_sum_exp(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    /// The cross entropy, in nats.
    pub(super) fn loss(&self) -> f64 {
        self.log_sum_exp() - f64::from(self.target_logit)
    }

    /// Whether the target is the first of the largest logits.
    pub(super) fn is_correct(&self) -> bool {
        self.argmax == self.target
    }

    /// The factor that turns what [`absorb`](Self::absorb) kept of a piece, whose largest logit it
    /// returned, into the gradient of the loss times `scale`, but for the target's entry.
    pub(super) fn factor(&self, largest: f32, scale: f64) -> f32 {
        ((f64::from(largest) - self.log_sum_exp()).exp() * scale) as f32
    }

    /// The entry that should be likely.
    pub(super) fn target(&self) -> usize {
        self.target
    }

    /// The target's entry of a piece of `len` entries from `first` on, if it is there.
    pub(super) fn target_in(&self, first: usize, len: usize) -> Option<usize> {
        self.target.checked_sub(first).filter(|at| *at < len)
    }

    /// The target's entry of the gradient of the loss times `scale`.
    pub(super) fn target_gradient(&self, softcap: Option<f32>, scale: f64) -> f32 {
        let slope = softcap.map_or(1.0, |cap| slope(self.target_logit, cap));
        ((-self.loss()).exp_m1() * scale) as f32 * slope
    }
}

/// Caps the logits, and gives the largest and the sum of `exp(logit − largest)`.
struct Piece<'a, T> {
    logits: &'a mut [f32],
    softcap: Option<f32>,
    kept: &'a mut [T],
}

impl<T: Real> WithSimd for Piece<'_, T> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (f32, f32) {
        let Self { logits, softcap, kept } = self;
        if let Some(cap) = softcap {
            soft_cap(logits, cap);
        }
        let largest = maximum(logits);
        let sum = match (kept.is_empty(), softcap) {
            (true, _) => sum_of_exp(logits, largest),
            (_, None) => exponentials(logits, largest, |_| 1.0, kept),
            (_, Some(cap)) => exponentials(logits, largest, |x| slope(x, cap), kept),
        };
        (largest, sum)
    }
}

/// `cap · tanh(x / cap)` (Gemma 2).
#[inline(always)]
pub(super) fn soft_cap(logits: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    for x in logits {
        *x = cap * tanh(*x * inverse);
    }
}

/// The derivative of the soft-cap by what it returned.
#[inline(always)]
pub(super) fn slope(capped: f32, cap: f32) -> f32 {
    let tanh = capped / cap;
    1.0 - tanh * tanh
}

/// Near 0 Lambert's continued fraction, cut after x⁷; elsewhere from the exponential.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let above = ((square + 378.0) * square + 17_325.0) * square + 135_135.0;
    let below = ((28.0 * square + 3_150.0) * square + 62_370.0) * square + 135_135.0;
    let magnitude = x.abs();
    let power = exp(2.0 * if magnitude > 10.0 { 10.0 } else { magnitude });
    let near = magnitude < 0.6;
    let above = if near { x * above } else { (power - 1.0).copysign(x) };
    above / if near { below } else { power + 1.0 }
}

/// The lanes in one, upper half onto lower half.
#[inline(always)]
fn folded(mut lanes: [f32; LANES], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low = of(*low, *high));
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn maximum(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *x);
        }
    }
    rest.iter().fold(folded(lanes, larger), |a, b| larger(a, *b))
}

/// `exp(logit − largest)`, as a power of 2.
#[inline(always)]
fn power(logit: f32, largest: f32) -> f32 {
    exp2((logit - largest) * std::f32::consts::LOG2_E)
}

#[inline(always)]
fn sum_of_exp(logits: &[f32], largest: f32) -> f32 {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += power(*x, largest);
        }
    }
    rest.iter().fold(folded(lanes, |a, b| a + b), |sum, x| sum + power(*x, largest))
}

/// The same, and each exponential times `slope` of its logit is kept.
#[inline(always)]
fn exponentials<T: Real>(
    logits: &[f32],
    largest: f32,
    slope: impl Fn(f32) -> f32,
    kept: &mut [T],
) -> f32 {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let (kept_chunks, kept_rest) = kept.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for (chunk, kept) in chunks.iter().zip(kept_chunks) {
        for ((lane, x), kept) in lanes.iter_mut().zip(chunk).zip(kept) {
            let power = power(*x, largest);
            *lane += power;
            *kept = T::narrow(power * slope(*x));
        }
    }
    let mut sum = folded(lanes, |a, b| a + b);
    for (x, kept) in rest.iter().zip(kept_rest) {
        let power = power(*x, largest);
        sum += power;
        *kept = T::narrow(power * slope(*x));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_within_three_units_in_the_last_place() {
        for i in -120_000..=120_000 {
            let x = i as f32 * 1e-4;
            let (got, expected) = (f64::from(tanh(x)), f64::from(x).tanh());
            let unit = expected.abs() * f64::from(f32::EPSILON);
            assert!((got - expected).abs() <= 3.0 * unit, "tanh({x}) = {got}, not {expected}");
        }
        assert_eq!((tanh(1e30), tanh(f32::NEG_INFINITY), tanh(1e-30)), (1.0, -1.0, 1e-30));
        assert!(tanh(f32::NAN).is_nan());
    }

    /// Pieces of any lengths give what the whole row gives in f64, whether they are kept or not.
    #[test]
    fn pieces_add_up_to_the_softmax_of_the_whole() {
        let row: Vec<f32> = (0..777u32).map(|i| (i * i % 1013) as f32 * 0.02 - 8.0).collect();
        let (target, cap, scale) = (400, 6.0, 0.25);
        let capped: Vec<f64> = row.iter().map(|x| 6.0 * (f64::from(*x) / 6.0).tanh()).collect();
        let log_sum_exp = capped.iter().map(|x| x.exp()).sum::<f64>().ln();
        for piece in [1, 63, 64, 200, 777] {
            let mut logits = row.clone();
            let mut kept = vec![0f32; row.len()];
            let (mut statistics, mut unkept) = (Statistics::new(target), Statistics::new(target));
            let mut largest = vec![];
            for (index, piece_logits) in logits.chunks_mut(piece).enumerate() {
                let first = index * piece;
                unkept.absorb::<f32>(&mut piece_logits.to_vec(), first, Some(cap), &mut []);
                let kept = &mut kept[first..][..piece_logits.len()];
                largest.push(statistics.absorb(piece_logits, first, Some(cap), kept));
            }
            assert_eq!(unkept.loss().to_bits(), statistics.loss().to_bits());
            let loss = log_sum_exp - capped[target as usize];
            assert!((statistics.loss() - loss).abs() < 1e-5);
            for (index, kept) in kept.chunks_mut(piece).enumerate() {
                let factor = statistics.factor(largest[index], scale);
                for kept in kept.iter_mut() {
                    *kept *= factor;
                }
                if let Some(at) = statistics.target_in(index * piece, kept.len()) {
                    kept[at] = statistics.target_gradient(Some(cap), scale);
                }
            }
            for (i, got) in kept.iter().enumerate() {
                let one = if i == target as usize { 1.0 } else { 0.0 };
                let slope = 1.0 - (capped[i] / 6.0).powi(2);
                let expected = ((capped[i] - log_sum_exp).exp() - one) * slope * scale;
                assert!((f64::from(*got) - expected).abs() < 1e-6, "{i}: {got} {expected}");
            }
        }
    }

    #[test]
    fn the_first_of_the_largest_is_the_one_that_counts() {
        for (target, correct) in [(1, true), (3, false), (0, false)] {
            let mut statistics = Statistics::new(target);
            for (first, piece) in [(0, [1.0f32, 5.0]), (2, [4.0, 5.0])] {
                statistics.absorb::<f32>(&mut piece.clone(), first, None, &mut []);
            }
            assert_eq!(statistics.is_correct(), correct);
        }
    }

    #[test]
    fn what_is_not_a_number_stays_that() {
        let mut statistics = Statistics::new(0);
        statistics.absorb::<f32>(&mut [1.0, f32::NAN], 0, None, &mut []);
        statistics.absorb::<f32>(&mut [2.0, 0.0], 2, None, &mut []);
        assert!(statistics.loss().is_nan());
    }
}
