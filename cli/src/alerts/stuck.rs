//! No step for many times as long as one takes.

use std::time::Duration;

use super::{Alert, AlertKind};

/// How a run stands at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its last step.
    pub step: Option<u64>,
    /// The median time of a step, once that is known.
    pub usual_step: Option<Duration>,
    /// How long nothing has moved.
    pub still: Duration,
    /// Whether it is to take steps: it is neither paused nor evaluating nor reading.
    pub is_training: bool,
}

/// Looks at a run from outside, since who is stuck does not say so.
#[derive(Debug, Clone)]
pub struct Stuck {
    factor: f64,
    at_least: Duration,
    has_spoken: bool,
}

impl Stuck {
    /// Speaks where nothing has moved for `factor` times a usual step, and for `at_least`; a factor
    /// of 0 never speaks.
    pub fn new(factor: f64, at_least: Duration) -> Self {
        Self { factor, at_least, has_spoken: false }
    }

    /// Looks; says each time once that a run is stuck.
    pub fn look(&mut self, standing: &Standing) -> Option<Alert> {
        let usual = standing.usual_step.filter(|_| standing.is_training && self.factor > 0.0);
        let patience = usual.map(|usual| usual.mul_f64(self.factor).max(self.at_least));
        let is_stuck = patience.is_some_and(|patience| standing.still > patience);
        let speaks = is_stuck && !self.has_spoken;
        self.has_spoken = is_stuck;
        speaks.then(|| Alert {
            alert: AlertKind::Stuck,
            metric: "seconds".to_owned(),
            value: Some(standing.still.as_secs_f64()),
            expected: usual.map(|usual| usual.as_secs_f64()),
            step: standing.step,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(still: u64) -> Standing {
        Standing {
            step: Some(7),
            usual_step: Some(Duration::from_secs(2)),
            still: Duration::from_secs(still),
            is_training: true,
        }
    }

    #[test]
    fn who_is_still_for_too_long_is_told_of_once() {
        let mut stuck = Stuck::new(20.0, Duration::from_secs(30));
        assert_eq!(stuck.look(&standing(39)), None);
        let alert = stuck.look(&standing(41)).unwrap();
        assert_eq!((alert.value, alert.expected, alert.step), (Some(41.0), Some(2.0), Some(7)));
        assert_eq!(stuck.look(&standing(100)), None);
        assert_eq!(stuck.look(&standing(1)), None, "it goes on");
        assert!(stuck.look(&standing(50)).is_some());
        let mut patient = Stuck::new(20.0, Duration::from_secs(300));
        assert_eq!(patient.look(&standing(299)), None);
    }

    #[test]
    fn who_pauses_evaluates_or_has_only_begun_is_not_stuck() {
        let mut stuck = Stuck::new(20.0, Duration::from_secs(30));
        assert_eq!(stuck.look(&Standing { is_training: false, ..standing(9999) }), None);
        assert_eq!(stuck.look(&Standing { usual_step: None, ..standing(9999) }), None);
        assert_eq!(Stuck::new(0.0, Duration::ZERO).look(&standing(9999)), None);
    }
}
