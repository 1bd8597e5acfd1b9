//! The tokens that top-k, top-p and min-p leave, found without sorting the vocabulary.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use chandler_model::logits;

use crate::sampling::SamplingOptions;

/// Tokens that may be drawn and their scores, divided by the temperature.
#[derive(Debug)]
pub(crate) struct Candidates {
    pub(crate) ids: Vec<u32>,
    pub(crate) scores: Vec<f64>,
}

impl Candidates {
    /// Those that the settings leave of `scores`; `None` where no setting rules any out.
    pub(crate) fn of(options: &SamplingOptions, scores: &[f32]) -> Option<Self> {
        let divisor = options.divisor();
        let mut candidates = match (options.top_k, options.top_p, options.min_p) {
            (Some(k), _, _) => Self::largest(scores, divisor, k),
            (None, Some(p), _) => return Some(Self::of_top_p(options, scores, p)),
            (None, None, Some(p)) => Self::near_the_best(scores, divisor, p),
            (None, None, None) => return None,
        };
        if let Some(p) = options.top_p {
            candidates.keep_top_p(p, 0.0, None);
        }
        if let Some(p) = options.min_p {
            candidates.keep_min_p(p);
        }
        Some(candidates)
    }

    /// Every token.
    pub(crate) fn all(scores: &[f32], divisor: f64) -> Self {
        Self::at_least(scores, divisor, f64::NEG_INFINITY)
    }

    /// `softmax` of the scores.
    pub(crate) fn probabilities(&self) -> Vec<f64> {
        let max = self.scores.iter().fold(f64::NEG_INFINITY, |max, score| max.max(*score));
        let exps: Vec<f64> = self.scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|exp| exp / sum).collect()
    }

    fn at_least(scores: &[f32], divisor: f64, least: f64) -> Self {
        let kept = scores.iter().enumerate().filter(|(_, score)| f64::from(**score) >= least);
        let pair = |(id, score): (usize, &f32)| (id as u32, f64::from(*score) / divisor);
        let (ids, scores) = kept.map(pair).unzip();
        Self { ids, scores }
    }

    /// Everything below the k-th largest score goes; ties with it stay.
    fn largest(scores: &[f32], divisor: f64, k: usize) -> Self {
        let k = k.clamp(1, scores.len().max(1));
        let mut best: BinaryHeap<Reverse<Ordered>> = BinaryHeap::with_capacity(k + 1);
        for run in scores.chunks(16) {
            let least = best.peek().filter(|_| best.len() == k).map(|least| least.0);
            let some_enter = |least: Ordered| run.iter().any(|score| *score > least.0);
            if least.is_none_or(some_enter) {
                for score in run {
                    best.push(Reverse(Ordered(*score)));
                    if best.len() > k {
                        best.pop();
                    }
                }
            }
        }
        let least = best.peek().map_or(f64::NEG_INFINITY, |least| f64::from(least.0.0));
        Self::at_least(scores, divisor, least)
    }

    /// A few more than min-p leaves.
    fn near_the_best(scores: &[f32], divisor: f64, p: f64) -> Self {
        let max = f64::from(logits::largest(scores));
        Self::at_least(scores, divisor, max + (p.ln() - 1e-3) * divisor)
    }

    /// The least probable tokens go as long as their probabilities sum to at most 1 − p; one stays.
    ///
    /// A token less probable than `(1 − p) / V` always goes, so only the others are sorted.
    fn of_top_p(options: &SamplingOptions, scores: &[f32], p: f64) -> Self {
        let divisor = options.divisor();
        let max = logits::largest(scores);
        let all = logits::sums_of_exp(scores, max, (1.0 / divisor) as f32, scores.len().max(1));
        let all: f64 = all.into_iter().sum();
        let share = (1.0 - p) / scores.len() as f64 * 0.999;
        let least = if share > 0.0 {
            f64::from(max) + (all * share).ln() * divisor
        } else {
            f64::NEG_INFINITY
        };
        let mut candidates = Self::at_least(scores, divisor, least.min(f64::from(max)));
        let kept = candidates.scores.iter().map(|score| (score - f64::from(max) / divisor).exp());
        let rest = ((all - kept.sum::<f64>()) / all).max(0.0);
        candidates.keep_top_p(p, rest, Some(f64::from(max) / divisor + all.ln()));
        if let Some(p) = options.min_p {
            candidates.keep_min_p(p);
        }
        candidates
    }

    /// `gone` is the probability of the tokens that went before, and `log_sum_exp` that of all
    /// scores, where there were others.
    fn keep_top_p(&mut self, p: f64, gone: f64, log_sum_exp: Option<f64>) {
        let probabilities: Vec<f64> = match log_sum_exp {
            Some(all) => self.scores.iter().map(|score| (score - all).exp()).collect(),
            None => self.probabilities(),
        };
        let mut ascending: Vec<usize> = (0..self.scores.len()).collect();
        let order =
            |a: &usize, b: &usize| self.scores[*a].total_cmp(&self.scores[*b]).then(a.cmp(b));
        ascending.sort_unstable_by(order);
        ascending.pop();
        let mut sum = gone;
        let goes = |index: &&usize| {
            sum += probabilities[**index];
            sum <= 1.0 - p
        };
        let mut stays = vec![true; self.scores.len()];
        for index in ascending.iter().take_while(goes) {
            stays[*index] = false;
        }
        self.keep(&stays);
    }

    fn keep_min_p(&mut self, p: f64) {
        let probabilities = self.probabilities();
        let most = probabilities.iter().fold(0.0, |most: f64, p| most.max(*p));
        let stays: Vec<bool> = probabilities.iter().map(|own| *own >= p * most).collect();
        self.keep(&stays);
    }

    fn keep(&mut self, stays: &[bool]) {
        let mut each = stays.iter();
        self.ids.retain(|_| each.next().is_some_and(|stays| *stays));
        let mut each = stays.iter();
        self.scores.retain(|_| each.next().is_some_and(|stays| *stays));
    }
}

/// f32 in their total order.
#[derive(Clone, Copy, PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax(scores: &[f64]) -> Vec<f64> {
        let all = Candidates { ids: vec![], scores: scores.to_vec() };
        all.probabilities()
    }

    /// The settings one after another over the whole vocabulary, as transformers has them.
    fn reference(options: &SamplingOptions, scores: &[f32]) -> Vec<f64> {
        let mut scores: Vec<f64> =
            scores.iter().map(|score| f64::from(*score) / options.divisor()).collect();
        if let Some(k) = options.top_k {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = sorted[k.clamp(1, scores.len()) - 1];
            scores.iter_mut().filter(|s| **s < least).for_each(|s| *s = f64::NEG_INFINITY);
        }
        if let Some(p) = options.top_p {
            let probabilities = softmax(&scores);
            let mut ascending: Vec<usize> = (0..scores.len()).collect();
            ascending.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            ascending.pop();
            let mut sum = 0.0;
            for id in ascending {
                sum += probabilities[id];
                if sum > 1.0 - p {
                    break;
                }
                scores[id] = f64::NEG_INFINITY;
            }
        }
        if let Some(p) = options.min_p {
            let probabilities = softmax(&scores);
            let most = probabilities.iter().fold(0.0, |most: f64, p| most.max(*p));
            for (score, probability) in scores.iter_mut().zip(probabilities) {
                if probability < p * most {
                    *score = f64::NEG_INFINITY;
                }
            }
        }
        softmax(&scores)
    }

    #[test]
    fn what_is_left_is_what_the_settings_leave_one_by_one() {
        let score = |i: u32, spread: f32| {
            let unit =
                (i.wrapping_mul(2_654_435_761).rotate_left(7) >> 8) as f32 / (1 << 24) as f32;
            // Some ties.
            ((unit * unit * spread) * 64.0).round() / 64.0
        };
        let ks = [None, Some(1), Some(7), Some(300), Some(5000)];
        let ps = [None, Some(0.05), Some(0.5), Some(0.9), Some(0.999), Some(1.0)];
        let min_ps = [None, Some(0.02), Some(0.4)];
        for spread in [2.0, 12.0, 40.0] {
            let scores: Vec<f32> = (0..2000).map(|i| score(i, spread)).collect();
            for temperature in [0.6, 1.0, 1.7] {
                for (top_k, top_p) in ks.iter().flat_map(|k| ps.iter().map(move |p| (*k, *p))) {
                    for min_p in min_ps {
                        let options = SamplingOptions {
                            temperature,
                            top_k,
                            top_p,
                            min_p,
                            ..SamplingOptions::default()
                        };
                        let expected = reference(&options, &scores);
                        let found = options.distribution(&scores, &[]).probabilities;
                        for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
                            let same = (*found > 0.0) == (*expected > 0.0);
                            let near = (found - expected).abs() < 1e-9;
                            assert!(same && near, "{options:?} {id}: {found} {expected}");
                        }
                    }
                }
            }
        }
    }
}
