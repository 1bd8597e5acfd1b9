//! An evaluation worse than the best so far.

use std::collections::BTreeMap;

use chandler_evaluator::Better;

use super::{Alert, AlertKind};

/// Compares each value of a metric with its best.
#[derive(Debug, Clone)]
pub struct EvalRegression {
    margin: f64,
    metrics: BTreeMap<String, Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    best: f64,
    has_spoken: bool,
}

impl EvalRegression {
    /// Speaks where a value is worse than the best by more than `margin`, a part of the best; 0
    /// never speaks.
    pub fn new(margin: f64) -> Self {
        Self { margin, metrics: BTreeMap::new() }
    }

    /// Takes in a value of a metric, evaluated before the step after `step`.
    pub fn see(&mut self, step: u64, metric: &str, value: f64, better: Better) -> Option<Alert> {
        if !value.is_finite() {
            return Some(Alert::not_finite(metric, step));
        }
        let Some(seen) = self.metrics.get_mut(metric) else {
            let first = Seen { best: value, has_spoken: false };
            self.metrics.insert(metric.to_owned(), first);
            return None;
        };
        let worse_by = match better {
            Better::Lower => value - seen.best,
            Better::Higher => seen.best - value,
        };
        if worse_by < 0.0 {
            seen.best = value;
        }
        let allowed = self.margin * seen.best.abs();
        if worse_by <= allowed / 2.0 {
            seen.has_spoken = false;
        }
        let speaks = self.margin > 0.0 && worse_by > allowed && !seen.has_spoken;
        if !speaks {
            return None;
        }
        seen.has_spoken = true;
        Some(Alert {
            alert: AlertKind::EvalRegression,
            metric: metric.to_owned(),
            value: Some(value),
            expected: Some(seen.best),
            step: Some(step),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alerts(better: Better, values: &[f64]) -> Vec<u64> {
        let mut detector = EvalRegression::new(0.1);
        let steps = values.iter().enumerate();
        steps
            .filter_map(|(step, value)| detector.see(step as u64, "m", *value, better)?.step)
            .collect()
    }

    #[test]
    fn worse_than_the_best_by_the_margin_is_told_until_it_recovers() {
        use Better::{Higher, Lower};
        assert_eq!(alerts(Lower, &[2.0, 1.5, 1.0, 1.05, 1.09]), [0_u64; 0]);
        assert_eq!(alerts(Lower, &[2.0, 1.0, 1.2, 1.3, 1.08, 1.2, 1.04, 1.2]), [2, 7]);
        assert_eq!(alerts(Higher, &[0.2, 0.8, 0.75, 0.6, 0.5, 0.8, 0.7]), [3, 6]);
        assert_eq!(alerts(Higher, &[0.0, 0.0, 0.0]), [0_u64; 0]);
    }

    #[test]
    fn metrics_are_told_apart_and_what_is_no_number_is_told() {
        let mut detector = EvalRegression::new(0.1);
        assert_eq!(detector.see(0, "loss", 1.0, Better::Lower), None);
        assert_eq!(detector.see(0, "exact_match", 0.1, Better::Higher), None);
        let alert = detector.see(4, "loss", 2.0, Better::Lower).unwrap();
        assert_eq!((alert.value, alert.expected), (Some(2.0), Some(1.0)));
        let alert = detector.see(8, "loss", f64::NAN, Better::Lower).unwrap();
        assert_eq!(alert.alert, AlertKind::NotFinite);
        assert_eq!(detector.see(9, "exact_match", 0.2, Better::Higher), None);
        let mut off = EvalRegression::new(0.0);
        assert_eq!(off.see(0, "loss", 1.0, Better::Lower), None);
        assert_eq!(off.see(1, "loss", 9.0, Better::Lower), None);
    }
}
