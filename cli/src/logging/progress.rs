//! The progress line: step, loss, rate, speed, time left and memory, on one line at the bottom of a
//! terminal, or as a line in the log now and then where there is no terminal.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::terminal::Terminal;
use crate::visible::visible_line;

/// How often a step is logged where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Of a file's name, which may have 255 bytes.
const NAME_CHARS: usize = 48;

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

/// The progress of the run that is going on. One at a time is shown.
#[derive(Debug, Clone)]
pub struct Progress {
    terminal: Terminal,
    last_plain: Arc<Mutex<Option<Instant>>>,
}

impl Progress {
    /// Progress on this terminal.
    pub fn new(terminal: &Terminal) -> Self {
        Self { terminal: terminal.clone(), last_plain: Arc::default() }
    }

    /// Begins a line for `name`, with `total` steps.
    pub fn begin(&self, name: &str, total: u64) {
        *self.last_plain.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if self.terminal.is_interactive() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(style())
                .with_prefix(visible_name(name));
            self.terminal.show(Some(bar));
        }
    }

    /// Shows a step.
    pub fn step(&self, progress: &StepProgress) {
        let shown = self.terminal.with_bar(|bar| {
            bar.set_length(progress.total_steps);
            bar.set_message(progress.line());
            bar.set_position(progress.step);
        });
        if !shown && self.plain_line_is_due(progress.step == progress.total_steps) {
            tracing::info!("step {}/{}  {}", progress.step, progress.total_steps, progress.line());
        }
    }

    /// Shows how far the reading of a training file has come.
    pub fn reading(&self, name: &str, records: u64, done: u64, total: u64) {
        if !self.terminal.is_interactive() {
            if self.plain_line_is_due(false) {
                let share = done as f64 * 100.0 / total.max(1) as f64;
                tracing::info!("reading {name}: {records} records, {share:.0} %");
            }
            return;
        }
        let update = |bar: &ProgressBar| {
            bar.set_prefix(visible_name(name));
            bar.set_message(format!("{} records", grouped(records as f64)));
            bar.set_position(done);
        };
        if !self.terminal.with_bar(update) {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(reading_style());
            update(&bar);
            self.terminal.show(Some(bar));
        }
    }

    /// Shows how far a download has come.
    pub fn download(&self, file: &str, done: u64, total: Option<u64>) {
        if !self.terminal.is_interactive() {
            return;
        }
        let file = &visible_name(file);
        let update = |bar: &ProgressBar| {
            if bar.prefix() != *file || bar.position() > done {
                bar.set_position(0);
                bar.set_prefix(file.clone());
            }
            bar.set_length(total.unwrap_or(done));
            bar.set_position(done);
        };
        if !self.terminal.with_bar(update) {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr())
                .with_style(download_style())
                .with_prefix(file.clone());
            self.terminal.show(Some(bar));
        }
    }

    /// Takes the line away.
    pub fn end(&self) {
        self.terminal.show(None);
    }

    fn plain_line_is_due(&self, is_last: bool) -> bool {
        let mut last = self.last_plain.lock().unwrap_or_else(PoisonError::into_inner);
        let due = is_last || last.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len}  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
}

fn reading_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes}  {msg}  {eta} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("━╸ ")
}

/// A name as the line shows it: on one line, and not all of a long one.
fn visible_name(name: &str) -> String {
    let shown: String = name.chars().take(NAME_CHARS).collect();
    let more = if shown.len() < name.len() { "…" } else { "" };
    visible_line(&shown) + more
}

fn download_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes}  {eta} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("━╸ ")
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
