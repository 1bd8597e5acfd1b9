//! Fewer tokens a second than this run is used to, for some time.

use std::time::Duration;

use super::usual::{Thinned, Window};
use super::{Alert, AlertKind};

/// Readings of the whole run that say what is usual.
const MOST: usize = 512;
/// Steps before anything can be called unusual.
const FEWEST: u64 = 32;
/// Steps whose median is the speed now.
const NOW: usize = 8;

/// Compares the median speed of the last steps with that of the whole run.
#[derive(Debug, Clone)]
pub struct ThroughputDrop {
    share: f64,
    lasting: Duration,
    all: Thinned,
    now: Window,
    slow_since: Option<Duration>,
    has_spoken: bool,
}

impl ThroughputDrop {
    /// Speaks where the speed has been below the usual one by more than `share` of it for `lasting`;
    /// a share of 0 never speaks.
    pub fn new(share: f64, lasting: Duration) -> Self {
        Self {
            share,
            lasting,
            all: Thinned::new(MOST),
            now: Window::new(NOW),
            slow_since: None,
            has_spoken: false,
        }
    }

    /// Takes in the speed of a step that was made before this process began.
    pub fn recall(&mut self, tokens_per_s: f64) {
        if tokens_per_s.is_finite() {
            self.all.push(tokens_per_s);
        }
    }

    /// Takes in the tokens a second of a step that ended at `at`, on any clock that only goes
    /// forward.
    pub fn see(&mut self, step: u64, tokens_per_s: f64, at: Duration) -> Option<Alert> {
        if !tokens_per_s.is_finite() {
            return None;
        }
        self.now.push(tokens_per_s);
        let usual = self.all.median().filter(|_| self.all.seen() >= FEWEST);
        self.all.push(tokens_per_s);
        let (usual, now) = (usual?, self.now.median()?);
        if self.now.len() < NOW || self.share <= 0.0 {
            return None;
        }
        if now > usual * (1.0 - self.share / 2.0) {
            self.has_spoken = false;
        }
        if now >= usual * (1.0 - self.share) {
            self.slow_since = None;
            return None;
        }
        let since = *self.slow_since.get_or_insert(at);
        if self.has_spoken || at.saturating_sub(since) < self.lasting {
            return None;
        }
        self.has_spoken = true;
        Some(Alert {
            alert: AlertKind::ThroughputDrop,
            metric: "tokens_per_s".to_owned(),
            value: Some(now),
            expected: Some(usual),
            step: Some(step),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps, one a second, at which a series of speeds raises alerts.
    fn alerts(series: impl Fn(u64) -> f64) -> Vec<u64> {
        let mut detector = ThroughputDrop::new(0.5, Duration::from_secs(60));
        (1..=2000)
            .filter(|step| detector.see(*step, series(*step), Duration::from_secs(*step)).is_some())
            .collect()
    }

    /// Speeds of rows that are of different lengths.
    fn speed(step: u64) -> f64 {
        1000.0 + 300.0 * ((step * 7919 % 101) as f64 / 50.0 - 1.0)
    }

    #[test]
    fn short_and_slight_drops_are_silent() {
        assert_eq!(alerts(speed), [0_u64; 0]);
        let hiccups = |step| if step % 50 < 3 { 10.0 } else { speed(step) };
        assert_eq!(alerts(hiccups), [0_u64; 0]);
        let half_a_minute = |step| if (500..530).contains(&step) { 100.0 } else { speed(step) };
        assert_eq!(alerts(half_a_minute), [0_u64; 0]);
        let slight = |step| if step > 500 { 0.7 * speed(step) } else { speed(step) };
        assert_eq!(alerts(slight), [0_u64; 0]);
        let slow_start = |step| if step < 20 { 50.0 } else { speed(step) };
        assert_eq!(alerts(slow_start), [0_u64; 0]);
    }

    #[test]
    fn a_lasting_drop_is_told_once_each_time() {
        let lasting = |step| if step > 500 { 0.3 * speed(step) } else { speed(step) };
        let told = alerts(lasting);
        assert!(told.len() == 1 && (560..580).contains(&told[0]), "{told:?}");
        let twice = |step| match step {
            501..=700 | 1001..=1200 => 0.3 * speed(step),
            _ => speed(step),
        };
        let told = alerts(twice);
        assert!(told.len() == 2 && told[1] > 1060, "{told:?}");
    }

    #[test]
    fn what_was_usual_before_a_restart_still_is() {
        let mut detector = ThroughputDrop::new(0.5, Duration::ZERO);
        for _ in 0..40 {
            detector.recall(1000.0);
        }
        let told: Vec<u64> = (1..20)
            .filter(|step| detector.see(*step, 100.0, Duration::from_secs(*step)).is_some())
            .collect();
        assert_eq!(told, [8], "as soon as there are enough steps");
    }
}
