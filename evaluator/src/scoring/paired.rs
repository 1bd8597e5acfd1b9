//! What changed between two sets of answers to the same prompts.

use serde::{Deserialize, Serialize};

use super::distributions::{NORMAL_97_5, fair_coins, t_two_sided};
use super::summary::{Spread, Summary, is_binary};

/// Scores after something less those before it, prompt by prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The mean difference with its 95 % interval: that of the paired t-test, or, where all scores
    /// are 0 or 1, that of Agresti and Min (2005), which holds for few prompts as well.
    pub difference: Summary,
    /// Probability of a difference at least as large if nothing had changed, two-sided: of the
    /// paired t-test, or of McNemar's exact test where all scores are 0 or 1. `None` where there is
    /// no interval.
    pub p_value: Option<f64>,
    /// Prompts whose score rose.
    pub up: usize,
    /// Prompts whose score stayed.
    pub same: usize,
    /// Prompts whose score fell.
    pub down: usize,
}

impl Paired {
    /// Of scores in the same order of prompts; `None` where there are not as many of both.
    pub fn of(before: &[f64], after: &[f64]) -> Option<Self> {
        if before.len() != after.len() {
            return None;
        }
        let differences: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        let up = differences.iter().filter(|difference| **difference > 0.0).count();
        let down = differences.iter().filter(|difference| **difference < 0.0).count();
        let same = differences.iter().filter(|difference| **difference == 0.0).count();
        let binary = before.iter().chain(after).all(|score| is_binary(*score));
        let (difference, p_value) = if binary && differences.len() > 1 {
            let p = fair_coins(up.min(down), up + down);
            (binary_difference(up, down, differences.len()), Some(p))
        } else {
            (Summary::of_any(&differences), t_test(&differences))
        };
        Some(Self { difference, p_value, up, same, down })
    }

    /// Whether scores rose by more than chance explains: the interval lies above 0.
    pub fn is_above(&self) -> bool {
        self.difference.low.is_some_and(|low| low > 0.0)
    }

    /// Whether scores fell by more than chance explains: the interval lies below 0.
    pub fn is_below(&self) -> bool {
        self.difference.high.is_some_and(|high| high < 0.0)
    }
}

/// The interval is Wald's with half a prompt more in each of the four cells.
fn binary_difference(up: usize, down: usize, count: usize) -> Summary {
    let n = count as f64 + 2.0;
    let (more, fewer) = (up as f64 + 0.5, down as f64 + 0.5);
    let middle = (more - fewer) / n;
    let half = NORMAL_97_5 * (more + fewer - (more - fewer).powi(2) / n).sqrt() / n;
    let value = (up as f64 - down as f64) / count as f64;
    let (low, high) = ((middle - half).max(-1.0), (middle + half).min(1.0));
    Summary { value: Some(value), low: Some(low), high: Some(high), count }
}

fn t_test(differences: &[f64]) -> Option<f64> {
    let Spread { mean, standard_error } = Spread::of(differences)?;
    Some(t_two_sided(mean / standard_error?, differences.len() as f64 - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(up: usize, same: usize, down: usize) -> Paired {
        let pairs = [(0.0, 1.0), (1.0, 1.0), (1.0, 0.0)];
        let pairs = pairs.into_iter().zip([up, same, down]);
        let pairs = pairs.flat_map(|(pair, times)| std::iter::repeat_n(pair, times));
        let (before, after): (Vec<f64>, Vec<f64>) = pairs.unzip();
        Paired::of(&before, &after).unwrap()
    }

    #[test]
    fn hits_and_misses_go_by_those_that_changed() {
        let better = binary(12, 30, 2);
        assert_eq!((better.up, better.same, better.down), (12, 30, 2));
        assert!((better.difference.value.unwrap() - 10.0 / 44.0).abs() < 1e-15);
        // (1 + 14 + 91) / 2¹³
        assert!((better.p_value.unwrap() - 106.0 / 8192.0).abs() < 1e-15);
        assert!(better.is_above() && !better.is_below());
        let worse = binary(2, 30, 12);
        assert!(worse.is_below() && !worse.is_above());
        assert_eq!(worse.p_value, better.p_value);
        let unchanged = binary(0, 10, 0);
        assert_eq!(unchanged.p_value, Some(1.0));
        let (low, high) = (unchanged.difference.low.unwrap(), unchanged.difference.high.unwrap());
        assert!(low < 0.0 && high == -low);
    }

    #[test]
    fn graded_scores_go_by_their_differences() {
        let paired = Paired::of(&[0.1, 0.2, 0.3, 0.4], &[0.3, 0.5, 0.5, 0.7]).unwrap();
        // Differences 0.2, 0.3, 0.2, 0.3: mean 0.25, standard error 0.0288675, t = 8.660254.
        assert!((paired.difference.value.unwrap() - 0.25).abs() < 1e-15);
        assert!((paired.p_value.unwrap() - 0.003_243).abs() < 1e-5, "{paired:?}");
        assert!(paired.is_above());
        assert_eq!((paired.up, paired.same, paired.down), (4, 0, 0));
    }

    #[test]
    fn what_cannot_be_known_is_none() {
        assert_eq!(Paired::of(&[0.5], &[]), None);
        for (before, after) in
            [(vec![], vec![]), (vec![1.0], vec![0.0]), (vec![0.5; 3], vec![0.6; 3])]
        {
            let paired = Paired::of(&before, &after).unwrap();
            assert_eq!((paired.difference.low, paired.p_value), (None, None));
            assert!(!paired.is_above() && !paired.is_below());
        }
        let paired = Paired::of(&[0.5, f64::NAN], &[0.5, 0.5]).unwrap();
        assert_eq!((paired.difference.value, paired.p_value), (None, None));
    }
}
