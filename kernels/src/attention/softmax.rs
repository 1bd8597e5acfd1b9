//! The loops between the products, over blocks of scores `[keys, lanes]`.
//!
//! The softmax is the online one (Milakov and Gimelshein, 2018, arXiv:1805.02867): sums are relative
//! to the largest score so far, and scaled down when a larger one comes.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::strip::{Rule, Strip};
use crate::cpu::Real;
use crate::gemm::{MOST_LANES, SerialKernel};
use crate::simd::{self, exp2};

/// Below every score, yet finite, so that its difference to itself is 0.
const LOWEST: f32 = -1e30;

/// One value a lane.
pub(super) type Lanes = [f32; MOST_LANES];

/// What is known of each lane's softmax so far.
#[derive(Debug, Clone)]
pub(super) struct Online {
    positions: [u32; MOST_LANES],
    /// The largest score.
    pub(super) max: Lanes,
    /// `Σ exp(score − max)`.
    pub(super) sum: Lanes,
    /// Factor that the last block put on earlier sums.
    pub(super) rescale: Lanes,
}

impl Online {
    pub(super) fn new(strip: &Strip) -> Self {
        Self {
            positions: strip.positions(),
            max: [LOWEST; MOST_LANES],
            sum: [0.0; MOST_LANES],
            rescale: [1.0; MOST_LANES],
        }
    }

    /// Whether earlier sums keep their scale.
    pub(super) fn keeps(&self) -> bool {
        self.rescale.iter().all(|factor| *factor == 1.0)
    }

    /// Hides what a lane does not see of the keys from position `first` on.
    #[inline(always)]
    fn hide(&self, scores: &mut [f32], lanes: usize, first: usize, window: usize) {
        for (row, key) in scores.chunks_exact_mut(lanes).zip(first as u32..) {
            for (score, position) in row.iter_mut().zip(&self.positions) {
                // A key that comes later is a very large distance away.
                let visible = position.wrapping_sub(key) < window as u32;
                *score = if visible { *score } else { f32::NEG_INFINITY };
            }
        }
    }

    /// Takes in the largest scores of a block; `factor` times a score is the exponent of 2.
    #[inline(always)]
    fn raise(&mut self, scores: &[f32], lanes: usize, factor: f32) {
        let mut max = self.max;
        for row in scores.chunks_exact(lanes) {
            for (max, score) in max.iter_mut().zip(row) {
                *max = if *score > *max { *score } else { *max };
            }
        }
        let lanes = self.max.iter_mut().zip(max).take(lanes);
        for ((old, new), (sum, rescale)) in lanes.zip(self.sum.iter_mut().zip(&mut self.rescale)) {
            *rescale = exp2((*old - new) * factor);
            *sum *= *rescale;
            *old = new;
        }
    }
}

impl Rule {
    /// The exponent of 2 for each unit of a product `q · k`, or of a capped score.
    pub(super) fn factor(&self) -> f32 {
        self.softcap.map_or(self.scale, |_| 1.0) * std::f32::consts::LOG2_E
    }

    /// Where there is a cap, products become capped scores.
    #[inline(always)]
    fn cap(&self, scores: &mut [f32]) {
        if let Some(cap) = self.softcap {
            let inside = self.scale / cap;
            for score in scores {
                *score = cap * tanh(*score * inside);
            }
        }
    }
}

/// Turns a block of products into probabilities relative to `online.max`, in the order of a right
/// panel for sums over the keys. `first` is the position of the first key where some lane does not
/// see all of the block.
pub(super) fn probabilities<K: SerialKernel<T>, T: Real>(
    scores: &mut [f32],
    first: Option<usize>,
    rule: &Rule,
    online: &mut Online,
    panel: &mut [K::Unit],
) {
    let kernel = PhantomData::<fn(K, T)>;
    simd::dispatch(Probabilities { scores, first, rule, online, panel, kernel });
}

// Loops this long are only certain to reach the vector instructions as a type whose method is
// always inlined; a closure may stay a function of its own.
struct Probabilities<'a, K: SerialKernel<T>, T: Real> {
    scores: &'a mut [f32],
    first: Option<usize>,
    rule: &'a Rule,
    online: &'a mut Online,
    panel: &'a mut [K::Unit],
    kernel: PhantomData<fn(K, T)>,
}

impl<K: SerialKernel<T>, T: Real> WithSimd for Probabilities<'_, K, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { scores, first, rule, online, panel, .. } = self;
        let factor = rule.factor();
        rule.cap(scores);
        if let Some(first) = first {
            online.hide(scores, K::NR, first, rule.window);
        }
        online.raise(scores, K::NR, factor);
        let max = online.max.map(|max| max * factor);
        let mut sum = online.sum;
        let keys = scores.chunks_exact(K::DEPTH * K::NR);
        for (scores, units) in keys.zip(panel.chunks_exact_mut(K::NR)) {
            for lane in 0..K::NR {
                let p = exp2(scores[lane].mul_add(factor, -max[lane]));
                if K::DEPTH == 2 {
                    let q = exp2(scores[K::NR + lane].mul_add(factor, -max[lane]));
                    sum[lane] += p + q;
                    units[lane] = K::unit(T::narrow(p), Some(T::narrow(q)));
                } else {
                    sum[lane] += p;
                    units[lane] = K::unit(T::narrow(p), None);
                }
            }
        }
        online.sum = sum;
    }
}

/// A factor on each lane.
pub(super) fn scale_lanes(sums: &mut [f32], lanes: usize, factor: &Lanes) {
    crate::simd::vectorized(|| {
        for row in sums.chunks_exact_mut(lanes) {
            row.iter_mut().zip(factor).for_each(|(sum, factor)| *sum *= factor);
        }
    });
}

/// What the first half of the backward pass leaves of a block, `[keys, lanes]` each.
pub(super) struct Weights<'a> {
    /// Products `q · k`; then probabilities, relative to the largest score so far.
    pub(super) p: &'a mut [f32],
    /// Products `dy · v`.
    pub(super) dp: &'a [f32],
    /// The soft-cap's derivative, where there is a cap.
    pub(super) slope: &'a mut [f32],
}

/// The softmax of a block for the backward pass. `mean` becomes `Σ p · dp` over the keys so far,
/// relative as `online.sum` is.
pub(super) fn weigh<K: SerialKernel<T>, T: Real>(
    block: Weights,
    first: Option<usize>,
    rule: &Rule,
    online: &mut Online,
    mean: &mut Lanes,
) {
    let kernel = PhantomData::<fn(K, T)>;
    simd::dispatch(Weigh { block, first, rule, online, mean, kernel });
}

struct Weigh<'a, K: SerialKernel<T>, T: Real> {
    block: Weights<'a>,
    first: Option<usize>,
    rule: &'a Rule,
    online: &'a mut Online,
    mean: &'a mut Lanes,
    kernel: PhantomData<fn(K, T)>,
}

impl<K: SerialKernel<T>, T: Real> WithSimd for Weigh<'_, K, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { block, first, rule, online, mean, .. } = self;
        let Weights { p, dp, slope } = block;
        let factor = rule.factor();
        rule.cap(p);
        if let Some(cap) = rule.softcap {
            for (slope, score) in slope.iter_mut().zip(p.iter()) {
                let tanh = score / cap;
                *slope = 1.0 - tanh * tanh;
            }
        }
        if let Some(first) = first {
            online.hide(p, K::NR, first, rule.window);
        }
        online.raise(p, K::NR, factor);
        let max = online.max.map(|max| max * factor);
        let (mut sum, mut total) = (online.sum, *mean);
        for (total, rescale) in total.iter_mut().zip(online.rescale) {
            *total *= rescale;
        }
        for (p, dp) in p.chunks_exact_mut(K::NR).zip(dp.chunks_exact(K::NR)) {
            for lane in 0..K::NR {
                let value = exp2(p[lane].mul_add(factor, -max[lane]));
                sum[lane] += value;
                total[lane] = value.mul_add(dp[lane], total[lane]);
                p[lane] = value;
            }
        }
        (online.sum, *mean) = (sum, total);
    }
}

/// Where a block's probabilities and score gradients go, as the three products read them.
pub(super) struct Gradients<'a, T, U> {
    /// `P`, a line of lanes for each key.
    pub(super) p: &'a mut [T],
    /// `dS`, a line of lanes for each key.
    pub(super) ds: &'a mut [T],
    /// `dS` as a right panel for sums over the keys.
    pub(super) panel: &'a mut [U],
}

/// What the first half of the backward pass knows of each row at its end.
pub(super) struct Sums<'a> {
    pub(super) online: &'a Online,
    /// What a block's probabilities are relative to.
    pub(super) max: &'a Lanes,
    /// `Σ p · dp`.
    pub(super) mean: &'a Lanes,
}

/// `P = p / Σ p` and `dS = P ∘ (dP − Σ P ∘ dP) ∘ slope · scale`.
pub(super) fn gradients<K: SerialKernel<T>, T: Real>(
    block: Weights,
    sums: &Sums,
    rule: &Rule,
    to: Gradients<T, K::Unit>,
) {
    let kernel = PhantomData::<fn(K)>;
    simd::dispatch(Differentiate { block, sums, rule, to, kernel });
}

struct Differentiate<'a, K: SerialKernel<T>, T: Real> {
    block: Weights<'a>,
    sums: &'a Sums<'a>,
    rule: &'a Rule,
    to: Gradients<'a, T, K::Unit>,
    kernel: PhantomData<fn(K)>,
}

impl<K: SerialKernel<T>, T: Real> WithSimd for Differentiate<'_, K, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { block, sums, rule, to, .. } = self;
        let Weights { p, dp, slope } = block;
        let (factor, scale, capped) = (rule.factor(), rule.scale, rule.softcap.is_some());
        let (mut share, mut mean) = (*sums.max, *sums.mean);
        for lane in 0..K::NR {
            let inverse = 1.0 / sums.online.sum[lane];
            share[lane] = exp2((share[lane] - sums.online.max[lane]) * factor) * inverse;
            mean[lane] *= inverse;
        }
        let lines = to.p.chunks_exact_mut(K::NR).zip(to.ds.chunks_exact_mut(K::NR));
        let values = p.chunks_exact(K::NR).zip(dp.chunks_exact(K::NR));
        for (key, ((p_line, ds_line), (p, dp))) in lines.zip(values).enumerate() {
            for lane in 0..K::NR {
                let p = p[lane] * share[lane];
                let slope = if capped { slope[key * K::NR + lane] * scale } else { scale };
                p_line[lane] = T::narrow(p);
                ds_line[lane] = T::narrow(p * (dp[lane] - mean[lane]) * slope);
            }
        }
        let lines = to.ds.chunks_exact(K::DEPTH * K::NR);
        for (lines, units) in lines.zip(to.panel.chunks_exact_mut(K::NR)) {
            for lane in 0..K::NR {
                let second = (K::DEPTH == 2).then(|| lines[K::NR + lane]);
                units[lane] = K::unit(lines[lane], second);
            }
        }
    }
}

/// `tanh x` within 5 units in the last place: by its series near 0 (Cephes, tanhf), else by `2ˣ`.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let y = (-5.704_988_7e-3f32).mul_add(square, 2.063_908_8e-2);
    let y = y.mul_add(square, -5.373_971_6e-2);
    let y = y.mul_add(square, 1.333_144_2e-1);
    let y = y.mul_add(square, -3.333_328e-1);
    let near = (y * square).mul_add(x, x);
    let e = exp2(-2.0 * std::f32::consts::LOG2_E * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_within_units_in_the_last_place() {
        for step in 0..200_000 {
            let x = -10.5 * (step as f32 / 2e5);
            let exact = f64::from(x).tanh();
            let error = f64::from(tanh(x)) - exact;
            assert!(error.abs() <= 3e-7 * exact.abs(), "tanh {x}: {error:e} of {exact}");
            assert!(tanh(-x) == -tanh(x) && tanh(40.0) == 1.0);
        }
    }
}
