//! A loss far above the usual ones.

use super::usual::Window;
use super::{Alert, AlertKind};

/// Steps that say what is usual.
const WINDOW: usize = 64;
/// Steps before anything can be called unusual.
const FEWEST: usize = 16;
/// A spread below this part of the median is taken to be this large: losses of batches differ.
const LEAST_SPREAD: f64 = 0.05;
/// And never below this, in nats.
const LEAST_SPREAD_NATS: f64 = 0.02;
/// Calm steps that end an incident.
const CALM: u32 = 8;

/// Compares each loss with the median of those before it, in units of their spread (from the median
/// absolute deviation).
#[derive(Debug, Clone)]
pub struct LossSpike {
    factor: f64,
    window: Window,
    /// Calm steps since the last spike.
    calm: u32,
}

impl LossSpike {
    /// Speaks where a loss is above the median by more than `factor` spreads; 0 never speaks.
    pub fn new(factor: f64) -> Self {
        Self { factor, window: Window::new(WINDOW), calm: CALM }
    }

    /// Takes in the loss of a step.
    pub fn see(&mut self, step: u64, loss: f64) -> Option<Alert> {
        if !loss.is_finite() {
            return None;
        }
        let usual = self.window.median_and_deviation().filter(|_| self.window.len() >= FEWEST);
        self.window.push(loss);
        let (median, deviation) = usual?;
        let spread = deviation.max(LEAST_SPREAD * median.abs()).max(LEAST_SPREAD_NATS);
        let excess = (loss - median) / spread;
        let was_calm = self.calm >= CALM;
        self.calm = if excess < self.factor / 2.0 { self.calm.saturating_add(1) } else { 0 };
        (self.factor > 0.0 && was_calm && excess > self.factor).then(|| Alert {
            alert: AlertKind::LossSpike,
            metric: "loss".to_owned(),
            value: Some(loss),
            expected: Some(median),
            step: Some(step),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1 that only look random.
    fn noise(n: u64) -> f64 {
        let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31).wrapping_mul(0xBF58_476D);
        (mixed >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// The steps at which a series of losses raises alerts.
    fn alerts(series: impl Fn(u64) -> f64) -> Vec<u64> {
        let mut detector = LossSpike::new(10.0);
        (1..=1000).filter(|step| detector.see(*step, series(*step)).is_some()).collect()
    }

    fn course(step: u64) -> f64 {
        1.5 + 3.0 * (-(step as f64) / 100.0).exp() + 0.2 * noise(step)
    }

    #[test]
    fn a_usual_course_is_silent() {
        assert_eq!(alerts(course), [0_u64; 0]);
        // A loss that has gone to nothing, whose batches differ by factors.
        assert_eq!(alerts(|step| 0.001 + 0.01 * noise(step).abs()), [0_u64; 0]);
        // A course that falls off a cliff, and one that never moves.
        assert_eq!(alerts(|step| if step < 300 { 8.0 } else { 0.5 }), [0_u64; 0]);
        assert_eq!(alerts(|_| 2.0), [0_u64; 0]);
    }

    #[test]
    fn one_spike_is_one_alert() {
        let single = |step| if step == 500 { 12.0 } else { course(step) };
        assert_eq!(alerts(single), [500]);
        // Up and down within one incident.
        let jagged = |step| match step {
            500..=540 if step % 4 < 3 => 9.0 + noise(step),
            _ => course(step),
        };
        assert_eq!(alerts(jagged), [500]);
        let lasting = |step| if step >= 500 { 9.0 + noise(step) } else { course(step) };
        assert_eq!(alerts(lasting), [500]);
        let twice = |step| if step == 500 || step == 700 { 12.0 } else { course(step) };
        assert_eq!(alerts(twice), [500, 700]);
    }

    #[test]
    fn an_alert_says_what_was_usual() {
        let mut detector = LossSpike::new(10.0);
        for step in 1..=20 {
            assert_eq!(detector.see(step, 2.0), None);
        }
        assert_eq!(detector.see(21, f64::NAN), None, "somebody else speaks of that");
        let alert = detector.see(22, 3.5).unwrap();
        assert_eq!((alert.value, alert.expected, alert.step), (Some(3.5), Some(2.0), Some(22)));
        assert_eq!(alert.alert, AlertKind::LossSpike);
    }

    #[test]
    fn too_few_steps_and_a_factor_of_zero_say_nothing() {
        let mut detector = LossSpike::new(10.0);
        assert!((1..16).all(|step| detector.see(step, 2.0).is_none()));
        assert_eq!(detector.see(16, 50.0), None);
        let mut off = LossSpike::new(0.0);
        assert!((1..100).all(|step| off.see(step, 2.0).is_none()));
        assert_eq!(off.see(100, 50.0), None);
    }
}
