//! A mean, and how far off it may be.

use serde::{Deserialize, Serialize};

use super::distributions::{NORMAL_97_5, t_97_5};

/// A mean with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The mean; `None` of no values, and where one of them is not finite.
    pub value: Option<f64>,
    /// Lower end of the interval; `None` of fewer than two values, and of graded ones that do not
    /// differ, which tell nothing of how they spread.
    pub low: Option<f64>,
    /// Upper end, likewise.
    pub high: Option<f64>,
    /// How many values there are.
    pub count: usize,
}

impl Summary {
    /// Of scores from 0 to 1: Wilson's interval where all of them are 0 or 1, else that of Student's
    /// t, cut to 0 and 1.
    pub fn of(scores: &[f64]) -> Self {
        if scores.iter().all(|score| is_binary(*score)) {
            let hits = scores.iter().filter(|score| **score == 1.0).count();
            return Self::of_hits(hits, scores.len());
        }
        let summary = Self::of_any(scores);
        let cut = |end: Option<f64>| end.map(|end| end.clamp(0.0, 1.0));
        Self { low: cut(summary.low), high: cut(summary.high), ..summary }
    }

    /// Of `hits` scores of 1 among `count`, all others 0, with the score interval of Wilson (1927).
    pub fn of_hits(hits: usize, count: usize) -> Self {
        if count == 0 {
            return Self { value: None, low: None, high: None, count };
        }
        let n = count as f64;
        let value = Some(hits as f64 / n);
        if count == 1 {
            return Self { value, low: None, high: None, count };
        }
        let share = hits as f64 / n;
        let square = NORMAL_97_5 * NORMAL_97_5;
        let middle = (share + square / (2.0 * n)) / (1.0 + square / n);
        let variance = share * (1.0 - share) / n + square / (4.0 * n * n);
        let half = NORMAL_97_5 * variance.sqrt() / (1.0 + square / n);
        // Rounding must not shut out what is possible.
        let low = if hits == 0 { 0.0 } else { (middle - half).max(0.0) };
        let high = if hits >= count { 1.0 } else { (middle + half).min(1.0) };
        Self { value, low: Some(low), high: Some(high), count }
    }

    /// Of numbers of any size, with the interval of Student's t.
    pub fn of_any(values: &[f64]) -> Self {
        let count = values.len();
        let unknown = Self { value: None, low: None, high: None, count };
        let Some(Spread { mean, standard_error }) = Spread::of(values) else { return unknown };
        let half = standard_error.map(|error| t_97_5(count as f64 - 1.0) * error);
        let (low, high) = (half.map(|half| mean - half), half.map(|half| mean + half));
        Self { value: Some(mean), low, high, count }
    }
}

pub(super) fn is_binary(score: f64) -> bool {
    score == 0.0 || score == 1.0
}

/// A mean and the standard error of it.
pub(super) struct Spread {
    pub(super) mean: f64,
    /// `None` of fewer than two values, and of equal ones.
    pub(super) standard_error: Option<f64>,
}

impl Spread {
    /// `None` of no values, and where one is not finite.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let differ = values.iter().any(|value| *value != values[0]);
        if !differ {
            return Some(Self { mean: values[0], standard_error: None });
        }
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (squares / (n - 1.0) / n).sqrt();
        Some(Self { mean, standard_error: Some(error).filter(|error| error.is_finite()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_scores_have_no_interval() {
        let summary = |value, count| Summary { value, low: None, high: None, count };
        assert_eq!(Summary::of(&[]), summary(None, 0));
        assert_eq!(Summary::of(&[1.0]), summary(Some(1.0), 1));
        assert_eq!(Summary::of(&[0.3]), summary(Some(0.3), 1));
        assert_eq!(Summary::of(&[0.3; 7]), summary(Some(0.3), 7));
        assert_eq!(Summary::of(&[0.3, f64::NAN]), summary(None, 2));
        assert_eq!(Summary::of_any(&[]), summary(None, 0));
    }

    #[test]
    fn hits_have_wilsons_interval() {
        let none = Summary::of(&[0.0; 10]);
        assert_eq!((none.value, none.low), (Some(0.0), Some(0.0)));
        // z² / (n + z²), by the formula for no hits.
        assert!((none.high.unwrap() - 0.277_532_799_862_889_1).abs() < 1e-12);
        let all = Summary::of_hits(10, 10);
        assert_eq!(all.high, Some(1.0));
        assert!((all.low.unwrap() - (1.0 - none.high.unwrap())).abs() < 1e-12);
        assert_eq!(Summary::of(&[1.0, 0.0, 1.0]), Summary::of_hits(2, 3));
    }

    #[test]
    fn graded_scores_have_students_interval_within_0_and_1() {
        let graded = Summary::of(&[0.2, 0.4, 0.6]);
        // 0.4 ± 4.302652729911275 · 0.2 / √3
        assert!((graded.value.unwrap() - 0.4).abs() < 1e-15);
        assert!((graded.high.unwrap() - 0.896_827_542_346_438_9).abs() < 1e-9);
        assert_eq!(graded.low, Some(0.0));
        let any = Summary::of_any(&[0.2, 0.4, 0.6]);
        assert!((any.low.unwrap() + 0.096_827_542_346_438_9).abs() < 1e-9);
    }
}
