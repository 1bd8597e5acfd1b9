//! The newest step in words, and numbers and times as people read them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

const BYTES_PER_GIB: f64 = (1_u64 << 30) as f64;

/// The newest step, as a person wants to see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepProgress {
    /// The step, from 1.
    pub step: u64,
    /// The last step there will be.
    pub total_steps: u64,
    /// Its loss.
    pub loss: f64,
    /// Its learning rate.
    pub lr: f64,
    /// Tokens a second.
    pub tokens_per_s: Option<f64>,
    /// Seconds until the last step.
    pub eta_s: Option<f64>,
    /// Memory in use, in bytes.
    pub memory_bytes: Option<u64>,
}

impl StepProgress {
    /// Loss, rate, speed, time left and memory; what is unknown is left out.
    pub fn line(&self) -> String {
        let mut line = format!("loss {:.4}  lr {}", self.loss, short_rate(self.lr));
        if let Some(speed) = self.tokens_per_s {
            let _ = write!(line, "  {} tokens/s", grouped(speed));
        }
        if let Some(eta) = self.eta_s {
            let _ = write!(line, "  {} left", duration_in_words(eta));
        }
        if let Some(bytes) = self.memory_bytes {
            let _ = write!(line, "  {:.2} GiB", bytes as f64 / BYTES_PER_GIB);
        }
        line
    }
}

fn short_rate(rate: f64) -> String {
    format!("{rate:.2e}")
}

/// A whole number with its thousands set apart.
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in its two largest units: `2h 05m`, `3m 20s`, `7s`.
pub fn duration_in_words(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_read_well() {
        assert_eq!(duration_in_words(7.4), "7s");
        assert_eq!(duration_in_words(200.0), "3m 20s");
        assert_eq!(duration_in_words(7_500.0), "2h 05m");
        assert_eq!(duration_in_words(180_000.0), "2d 02h");
        assert_eq!(grouped(999.6), "1,000");
        assert_eq!(grouped(12.0), "12");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let mut progress = StepProgress {
            step: 1,
            total_steps: 2,
            loss: 1.23456,
            lr: 2e-5,
            tokens_per_s: None,
            eta_s: None,
            memory_bytes: None,
        };
        assert_eq!(progress.line(), "loss 1.2346  lr 2.00e-5");
        progress.tokens_per_s = Some(1500.0);
        progress.eta_s = Some(61.0);
        progress.memory_bytes = Some(3 << 29);
        assert_eq!(
            progress.line(),
            "loss 1.2346  lr 2.00e-5  1,500 tokens/s  1m 01s left  1.50 GiB"
        );
    }
}
