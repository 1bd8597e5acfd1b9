//! TensorBoard event files: while a run goes on, or from the database afterwards.
//!
//! A file is records one after the other, each appended by a single write: what a process that is
//! killed leaves behind is whole but for its last record, and readers pass over a torn one.

mod event;
mod framing;
mod shown;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chandler_durable::{RealFs, create_folder_all, write_with};

use super::ExportError;
use crate::config::Config;
use crate::store::{EvalRow, EvalSample, RunSummary, StepRow, Store};

/// Steps that are read from the database at a time.
const STEPS_AT_ONCE: usize = 4096;

/// The event file of a run that goes on, begun with its first step or evaluation.
///
/// A run does without it where it cannot be written: that is said once in the log.
#[derive(Debug)]
pub struct EventFile {
    folder: PathBuf,
    state: Writing,
}

#[derive(Debug)]
enum Writing {
    NotYet,
    To(File),
    GivenUp,
}

impl EventFile {
    /// A file in `folder`, which is made if it is missing, where `log.tensorboard` asks for one.
    pub fn wanted(config: &Config, folder: PathBuf) -> Option<Self> {
        config.log.tensorboard.then_some(Self { folder, state: Writing::NotYet })
    }

    /// Adds a step.
    pub fn step(&mut self, row: &StepRow) {
        self.push(&event::summary(now(), row.step, &shown::of_step(row)));
    }

    /// Adds an evaluation and its samples.
    pub fn evaluated(&mut self, row: &EvalRow, samples: &[EvalSample]) {
        self.push(&event::summary(now(), row.step, &shown::of_evaluation(row, samples)));
    }

    fn push(&mut self, record: &[u8]) {
        if matches!(self.state, Writing::NotYet) {
            self.state = match begin(&self.folder) {
                Ok(file) => Writing::To(file),
                Err(error) => self.give_up(&error),
            };
        }
        if let Writing::To(file) = &mut self.state
            && let Err(error) = file.write_all(&framing::framed(record))
        {
            self.state = self.give_up(&error);
        }
    }

    fn give_up(&self, error: &dyn std::error::Error) -> Writing {
        let place = self.folder.display();
        tracing::warn!("this run writes no more events for TensorBoard to {place}: {error}");
        Writing::GivenUp
    }
}

fn begin(folder: &Path) -> Result<File, ExportError> {
    create_folder_all(&RealFs, folder)?;
    let now = now();
    let name = format!("events.out.tfevents.{:010}.chandler.{}", now as u64, std::process::id());
    let path = folder.join(name);
    chandler_durable::write(&path, &framing::framed(&event::file_version(now)))?;
    let file = OpenOptions::new().append(true).open(&path);
    file.map_err(|source| ExportError::Io { to: path, source })
}

/// Seconds since 1970.
fn now() -> f64 {
    jiff::Timestamp::now().as_nanosecond() as f64 / 1e9
}

/// Writes the event file of a run to `folder`, whole or not at all, and says how many steps and
/// evaluations it holds.
///
/// The database has no times of steps: a step's is that of the run's begin plus the seconds that
/// its own and the earlier steps took, where they are known.
pub(super) fn write_run(
    store: &Store,
    run: &RunSummary,
    folder: &Path,
) -> Result<(PathBuf, u64), ExportError> {
    create_folder_all(&RealFs, folder)?;
    let begin = run.started_at.parse::<jiff::Timestamp>();
    let begin = begin.map_or(0.0, |begin| begin.as_nanosecond() as f64 / 1e9);
    let path = folder.join(format!("events.out.tfevents.{:010}.chandler", begin as u64));
    let mut failed = None;
    let written = write_with(&RealFs, &path, |file| {
        let mut events = Events { file, time: begin, count: 0 };
        events.push(&event::file_version(begin))?;
        match events.run(store, run.id) {
            Err(ExportError::Io { source, .. }) => Err(source),
            Err(error) => {
                failed = Some(error);
                Err(io::Error::other("the database did not answer"))
            }
            Ok(()) => Ok(events.count),
        }
    });
    match (failed, written) {
        (Some(error), _) => Err(error),
        (None, written) => Ok((path, written?)),
    }
}

/// The events of one run on their way into a file.
struct Events<'a> {
    file: &'a mut dyn Write,
    /// Of the newest step.
    time: f64,
    count: u64,
}

impl Events<'_> {
    fn run(&mut self, store: &Store, run_id: i64) -> Result<(), ExportError> {
        let mut evals = store.evals(run_id)?.into_iter().peekable();
        let (mut last, mut tokens) = (0, 0);
        loop {
            let steps = store.steps_with_layers(run_id, last, STEPS_AT_ONCE)?;
            let Some(newest) = steps.last().map(|row| row.step) else { break };
            for row in &steps {
                // Evaluations stand before the first step that comes after them.
                while let Some(eval) = evals.next_if(|eval| eval.step < row.step) {
                    self.evaluation(store, run_id, &eval)?;
                }
                let new = row.num_tokens.saturating_sub(tokens) as f64;
                tokens = row.num_tokens;
                self.time += row.tokens_per_s.filter(|speed| *speed > 0.0).map_or(0.0, |s| new / s);
                self.add(row.step, &shown::of_step(row))?;
            }
            last = newest;
        }
        evals.try_for_each(|eval| self.evaluation(store, run_id, &eval))
    }

    fn evaluation(
        &mut self,
        store: &Store,
        run_id: i64,
        eval: &EvalRow,
    ) -> Result<(), ExportError> {
        let samples = store.eval_samples(run_id, eval.step)?;
        self.add(eval.step, &shown::of_evaluation(eval, &samples))
    }

    fn add(&mut self, step: u64, values: &[(String, event::Shown)]) -> Result<(), ExportError> {
        self.count += 1;
        Ok(self.push(&event::summary(self.time, step, values))?)
    }

    fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.file.write_all(&framing::framed(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepRow {
        StepRow {
            step,
            loss: 1.5,
            grad_norm: 2.0,
            lr: 2e-5,
            num_tokens: step * 100,
            mean_token_accuracy: None,
            tokens_per_s: Some(50.0),
            peak_bytes: Some(1 << 30),
            memory: [(chandler_vram::Category::Weights, 7)].into_iter().collect(),
            layers: vec![],
        }
    }

    fn times_and_steps(bytes: &[u8]) -> Vec<f64> {
        let time = |record: &&[u8]| f64::from_le_bytes(record[1..9].try_into().unwrap());
        framing::records(bytes).iter().map(time).collect()
    }

    #[test]
    fn a_run_in_the_database_becomes_one_file_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let id = store.begin_run(None, 1, &Config::default()).unwrap();
        for number in 1..=3 {
            store.record_step(id, &step(number)).unwrap();
        }
        let eval = |step| EvalRow { step, loss: Some(1.0), ..EvalRow::default() };
        store.record_eval(id, &eval(0), &[]).unwrap();
        store.record_eval(id, &eval(3), &[]).unwrap();
        let run = store.run_summaries(i64::MAX, 1, None).unwrap().remove(0);
        let place = folder.path().join("runs");
        let (path, count) = write_run(&store, &run, &place).unwrap();
        assert_eq!(count, 5);
        let times = times_and_steps(&std::fs::read(path).unwrap());
        let since: Vec<f64> = times.iter().map(|time| (time - times[0]).round()).collect();
        // The file's own, before the first step, two seconds a step, after the last.
        assert_eq!(since, [0.0, 0.0, 2.0, 4.0, 6.0, 6.0]);
    }

    #[test]
    fn a_file_that_cannot_be_written_any_more_is_done_without() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("runs/run-1");
        let mut config = Config::default();
        assert!(EventFile::wanted(&config, folder.clone()).is_none());
        config.log.tensorboard = true;
        let mut events = EventFile::wanted(&config, folder.clone()).unwrap();
        assert!(!folder.exists(), "a run that never comes to a step leaves nothing");
        events.step(&step(1));
        let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        // Whatever was written is there without anything being closed or flushed.
        assert_eq!(framing::records(&std::fs::read(&file).unwrap()).len(), 2);
        events.state = Writing::To(OpenOptions::new().write(true).open("/dev/full").unwrap());
        events.step(&step(2));
        assert!(matches!(events.state, Writing::GivenUp));
        events.step(&step(3));
        assert_eq!(framing::records(&std::fs::read(&file).unwrap()).len(), 2);
    }
}
