//! Alerts: what somebody would want to be woken for.
//!
//! The detectors are arithmetic on series of readings and know neither clock nor database. Each has
//! two thresholds, one to speak and a lower one to be ready to speak again, so that one incident is
//! one alert.
//!
//! ```text
//! usual.rs            median and spread of the last readings
//! loss_spike.rs       a loss far above the usual ones
//! throughput.rs       fewer tokens a second than this run is used to, for some time
//! eval_regression.rs  an evaluation worse than the best so far
//! stuck.rs            no step for many times as long as one takes
//! run.rs              all that is watched of one run, and how it is recorded
//! ```

mod eval_regression;
mod loss_spike;
mod run;
mod stuck;
mod throughput;
mod usual;

use std::fmt;

use serde::Serialize;

pub use eval_regression::EvalRegression;
pub use loss_spike::LossSpike;
pub use run::{RunAlerts, record};
pub use stuck::{Standing, Stuck};
pub use throughput::ThroughputDrop;

/// The kind of event that an alert is in the database.
pub const EVENT_KIND: &str = "alert";

/// What kind of thing is out of the ordinary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// A loss far above the usual ones.
    LossSpike,
    /// A loss, a gradient norm or a score that is NaN or infinite.
    NotFinite,
    /// Fewer tokens a second than usual.
    ThroughputDrop,
    /// An evaluation worse than the best so far.
    EvalRegression,
    /// No step for too long.
    Stuck,
}

/// One alert; what is not known or no number is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// What kind of thing it is.
    pub alert: AlertKind,
    /// What was measured: `loss`, `grad_norm`, `tokens_per_s`, `seconds`, or the name of a score.
    pub metric: String,
    /// What was read.
    pub value: Option<f64>,
    /// What it should be near, in the unit of the value.
    pub expected: Option<f64>,
    /// At which step.
    pub step: Option<u64>,
}

impl Alert {
    /// An alert about a value that is no number.
    pub fn not_finite(metric: &str, step: u64) -> Self {
        Self {
            alert: AlertKind::NotFinite,
            metric: metric.to_owned(),
            value: None,
            expected: None,
            step: Some(step),
        }
    }
}

impl fmt::Display for Alert {
    /// One sentence, which begins with the word alert.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), short);
        let (value, expected) = (number(self.value), number(self.expected));
        let metric = &self.metric;
        match self.alert {
            AlertKind::LossSpike => {
                write!(f, "alert: the loss is {value}, where {expected} is usual")?;
            }
            AlertKind::NotFinite => write!(f, "alert: {metric} is NaN or infinite")?,
            AlertKind::ThroughputDrop => {
                write!(f, "alert: {value} tokens/s, where {expected} are usual")?;
            }
            AlertKind::EvalRegression => {
                write!(f, "alert: {metric} of the evaluation is {value}, and was {expected}")?;
            }
            AlertKind::Stuck => {
                write!(f, "alert: nothing has moved for {value} s; a step takes {expected} s")?;
            }
        }
        match self.step {
            Some(step) => write!(f, " (step {step})"),
            None => Ok(()),
        }
    }
}

/// Four significant digits, as people read them.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 || size == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_a_sentence_and_an_object() {
        let alert = Alert {
            alert: AlertKind::LossSpike,
            metric: "loss".to_owned(),
            value: Some(9.12345),
            expected: Some(2.0),
            step: Some(120),
        };
        assert_eq!(alert.to_string(), "alert: the loss is 9.123, where 2.000 is usual (step 120)");
        assert_eq!(
            serde_json::json!(alert),
            serde_json::json!({
                "alert": "loss_spike", "metric": "loss", "value": 9.12345, "expected": 2.0,
                "step": 120
            })
        );
        let nan = Alert::not_finite("grad_norm", 3);
        assert_eq!(nan.to_string(), "alert: grad_norm is NaN or infinite (step 3)");
        assert!(serde_json::json!(nan)["value"].is_null());
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<_> = [12_345.6, 99.96, 0.5, 0.0, 0.001_234].map(short).into();
        assert_eq!(shown, ["12346", "100.0", "0.500", "0.000", "1.23e-3"]);
    }
}
