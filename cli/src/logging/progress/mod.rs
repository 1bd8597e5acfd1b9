//! The progress line: what is downloaded, read, loaded, learned, answered or saved, on one line at
//! the bottom of a terminal, or as a line in the log now and then where there is no terminal.

mod bar;
mod step;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chandler_evaluator::Answering;
use chandler_vram::Bytes;
use indicatif::ProgressBar;

use self::bar::Kind;
pub use self::step::{StepProgress, duration_in_words, grouped};
use super::terminal::Terminal;

/// How often something is logged where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of what is going on. One thing at a time is shown; clones show in the same place.
#[derive(Debug, Clone)]
pub struct Progress {
    terminal: Terminal,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    last_plain: Option<Instant>,
    /// What the line shows, and since when.
    shown: Option<(Kind, String, Instant)>,
    /// The run whose line comes back after an evaluation.
    run: String,
}

impl Progress {
    /// Progress on this terminal.
    pub fn new(terminal: &Terminal) -> Self {
        Self { terminal: terminal.clone(), state: Arc::default() }
    }

    /// Begins a run of `total` steps on `name`.
    pub fn begin(&self, name: &str, total: u64) {
        let mut state = self.state();
        state.last_plain = None;
        name.clone_into(&mut state.run);
        drop(state);
        self.show(Kind::Training, name, total, |bar| bar.set_position(0), String::new);
    }

    /// Shows a step.
    pub fn step(&self, progress: &StepProgress) {
        let run = self.state().run.clone();
        let StepProgress { step, total_steps, .. } = *progress;
        if step == total_steps {
            self.state().last_plain = None;
        }
        let update = |bar: &ProgressBar| {
            bar.set_message(progress.line());
            bar.set_position(step);
        };
        let plain = || format!("step {step}/{total_steps}  {}", progress.line());
        self.show(Kind::Training, &run, total_steps, update, plain);
    }

    /// Shows how far the reading of a training file has come, in records and bytes.
    pub fn reading(&self, name: &str, records: u64, done: u64, total: u64) {
        let update = |bar: &ProgressBar| {
            bar.set_message(format!("{} records", grouped(records as f64)));
            bar.set_position(done);
        };
        let plain = || format!("reading {name}: {records} records, {}", share(done, total));
        self.show(Kind::Reading, name, total, update, plain);
    }

    /// Shows how many bytes of a file have been downloaded.
    pub fn download(&self, file: &str, done: u64, total: Option<u64>) {
        let update = |bar: &ProgressBar| bar.set_position(done);
        let plain = || match total {
            Some(total) => format!("downloading {file}: {}", of_bytes(done, total)),
            None => format!("downloading {file}: {}", Bytes(done)),
        };
        self.show(Kind::Download, file, total.unwrap_or(done), update, plain);
    }

    /// Shows how many bytes of a file have been uploaded.
    pub fn upload(&self, file: &str, done: u64, total: u64) {
        let update = |bar: &ProgressBar| bar.set_position(done);
        let plain = || format!("uploading {file}: {}", of_bytes(done, total));
        self.show(Kind::Upload, file, total, update, plain);
    }

    /// Shows how many bytes of a model's weights are in memory.
    pub fn loading(&self, done: u64, total: u64) {
        let update = |bar: &ProgressBar| bar.set_position(done);
        let plain = || format!("loading the model: {}", of_bytes(done, total));
        self.show(Kind::Loading, "model", total, update, plain);
    }

    /// Shows how many prompts of an evaluation are answered.
    pub fn evaluating(&self, now: Answering) {
        let Answering { answered, prompts, new_tokens } = now;
        let since = match &self.state().shown {
            Some((Kind::Evaluating, _, since)) => since.elapsed().as_secs_f64(),
            _ => 0.0,
        };
        let speed = if since > 0.0 {
            format!("{} tokens/s", grouped(new_tokens as f64 / since))
        } else {
            String::new()
        };
        let update = |bar: &ProgressBar| {
            bar.set_message(speed.clone());
            bar.set_position(answered as u64);
        };
        let plain = || format!("evaluating: {answered} of {prompts} prompts answered  {speed}");
        self.show(Kind::Evaluating, "evaluation", prompts as u64, update, plain);
    }

    /// Shows how many rows or questions of an evaluation are scored.
    pub fn scoring(&self, what: &str, done: usize, total: usize) {
        let update = |bar: &ProgressBar| bar.set_position(done as u64);
        let plain = || format!("scoring {what}: {done} of {total}");
        self.show(Kind::Scoring, what, total as u64, update, plain);
    }

    /// Shows how many bytes of a model or checkpoint are written.
    pub fn saving(&self, name: &str, done: u64, total: u64) {
        let update = |bar: &ProgressBar| bar.set_position(done);
        let plain = || format!("saving the {name}: {}", of_bytes(done, total));
        self.show(Kind::Saving, name, total.max(done), update, plain);
    }

    /// Takes the line away.
    pub fn end(&self) {
        self.state().shown = None;
        self.terminal.show(None);
    }

    /// Changes the line, which is begun anew where it was about something else; without a terminal,
    /// logs what is `plain` now and then, unless it is nothing.
    fn show(
        &self,
        kind: Kind,
        name: &str,
        total: u64,
        update: impl Fn(&ProgressBar),
        plain: impl Fn() -> String,
    ) {
        let mut state = self.state();
        let known = matches!(&state.shown, Some((shown, of, _)) if *shown == kind && of == name);
        if !known {
            state.shown = Some((kind, name.to_owned(), Instant::now()));
        }
        if !self.terminal.is_interactive() {
            let words = plain();
            let is_long = |since: Instant| since.elapsed() >= PLAIN_INTERVAL;
            // What is usually over at once is worth a line only where it is not.
            let quick = matches!(kind, Kind::Loading | Kind::Evaluating | Kind::Saving);
            let goes_on = state.shown.as_ref().is_some_and(|(_, _, since)| is_long(*since));
            let due = state.last_plain.is_none_or(is_long) && (goes_on || !quick);
            if due && !words.is_empty() {
                state.last_plain = Some(Instant::now());
                tracing::info!("{words}");
            }
            return;
        }
        let update = |bar: &ProgressBar| {
            bar.set_length(total);
            update(bar);
        };
        if !known || !self.terminal.with_bar(update) {
            let bar = kind.bar(name, total);
            update(&bar);
            self.terminal.show(Some(bar));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn share(done: u64, total: u64) -> String {
    format!("{:.0} %", done as f64 * 100.0 / total.max(1) as f64)
}

fn of_bytes(done: u64, total: u64) -> String {
    format!("{} of {}", share(done, total), Bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line is about one thing at a time, and comes back to the run.
    #[test]
    fn an_evaluation_takes_the_place_of_the_run_and_gives_it_back() {
        let progress = Progress::new(&Terminal::stderr());
        let shown = || progress.state().shown.as_ref().map(|(kind, name, _)| (*kind, name.clone()));
        let step = StepProgress {
            step: 1,
            total_steps: 9,
            loss: 1.0,
            lr: 0.1,
            tokens_per_s: None,
            eta_s: None,
            memory_bytes: None,
        };
        progress.begin("a.jsonl", 9);
        progress.step(&step);
        assert_eq!(shown(), Some((Kind::Training, "a.jsonl".to_owned())));
        progress.evaluating(Answering { answered: 1, prompts: 4, new_tokens: 20 });
        assert_eq!(shown().map(|(kind, _)| kind), Some(Kind::Evaluating));
        progress.saving("checkpoint", 5, 10);
        progress.step(&step);
        assert_eq!(shown(), Some((Kind::Training, "a.jsonl".to_owned())));
        progress.end();
        assert_eq!(shown(), None);
    }

    #[test]
    fn shares_of_nothing_are_shares() {
        assert_eq!(share(0, 0), "0 %");
        assert_eq!(of_bytes(1 << 19, 1 << 20), "50 % of 1.00 MiB");
    }
}
