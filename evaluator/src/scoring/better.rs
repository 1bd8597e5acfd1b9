//! Which of two values of a metric is the better one.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// The direction in which a metric improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// As a loss does.
    Lower,
    /// As a score does.
    Higher,
}

impl Better {
    /// The direction of the metric with this name.
    ///
    /// Of a name in parts, `set/loss` or `eval.perplexity`, the last one counts: `loss`,
    /// `perplexity`, what ends in `_loss` or `_perplexity`, and a `gap` are better lower, all else
    /// higher.
    pub fn of_metric(name: &str) -> Self {
        let last = name.rsplit(['/', '.']).next().unwrap_or(name);
        match last.rsplit('_').next() {
            Some("loss" | "perplexity" | "gap") => Self::Lower,
            _ => Self::Higher,
        }
    }

    /// `Greater` where `a` is better. NaN is worse than every number, and equal to itself.
    pub fn compare(self, a: f64, b: f64) -> Ordering {
        match (a.is_nan(), b.is_nan()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => {
                let order = a.partial_cmp(&b).unwrap_or(Ordering::Equal);
                if self == Self::Lower { order.reverse() } else { order }
            }
        }
    }

    /// Whether `new` is better than `best` by more than `min_delta`, which is not negative.
    ///
    /// NaN never is better; every number is better than NaN.
    pub fn improves(self, new: f64, best: f64, min_delta: f64) -> bool {
        if new.is_nan() || best.is_nan() {
            return !new.is_nan();
        }
        let gain = if self == Self::Lower { best - new } else { new - best };
        gain > min_delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_fall_and_scores_rise() {
        for name in ["loss", "eval_loss", "set/loss", "eval.perplexity", "a/b.word_perplexity"] {
            assert_eq!(Better::of_metric(name), Better::Lower, "{name}");
        }
        for name in ["token_accuracy", "exact_match", "loss/chrf", "lossless", ""] {
            assert_eq!(Better::of_metric(name), Better::Higher, "{name}");
        }
        assert_eq!(Better::Lower.compare(1.0, 2.0), Ordering::Greater);
        assert_eq!(Better::Higher.compare(1.0, 2.0), Ordering::Less);
        assert_eq!(Better::Higher.compare(0.0, -0.0), Ordering::Equal);
    }

    #[test]
    fn nan_is_the_worst_either_way() {
        for better in [Better::Lower, Better::Higher] {
            for number in [f64::NEG_INFINITY, 0.0, f64::INFINITY] {
                assert_eq!(better.compare(f64::NAN, number), Ordering::Less);
                assert_eq!(better.compare(number, f64::NAN), Ordering::Greater);
                assert!(better.improves(number, f64::NAN, 1.0));
                assert!(!better.improves(f64::NAN, number, 0.0));
                assert!(!better.improves(number, number, 0.0));
            }
            assert_eq!(better.compare(f64::NAN, f64::NAN), Ordering::Equal);
            assert!(!better.improves(f64::NAN, f64::NAN, 0.0));
        }
    }

    #[test]
    fn an_improvement_exceeds_the_least_one() {
        assert!(Better::Lower.improves(1.0, 1.5, 0.4) && !Better::Lower.improves(1.0, 1.5, 0.5));
        assert!(Better::Higher.improves(1.5, 1.0, 0.4) && !Better::Higher.improves(1.5, 1.0, 0.5));
        assert!(!Better::Higher.improves(1.0, 1.5, 0.0));
    }
}
