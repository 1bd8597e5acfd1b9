//! `chandler bench checkpoint`: what checkpoints cost that are written while training goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chandler_durable::{Removal, remove_folder_meanwhile};
use chandler_model::CausalLm;
use chandler_trainer::{BoxError, Control, Observer, StepMetrics, TrainSettings, Trainer};
use chandler_vram::{Bytes, Ledger};
use clap::Args;
use serde::Serialize;

use super::report;
use super::train::RunArgs;
use crate::engine::EngineError;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

/// Stretches of training, by turns without checkpoints and with them.
const STRETCHES: usize = 4;

#[derive(Debug, Args)]
pub(in crate::commands) struct CheckpointArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Seconds from one checkpoint to the next
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    every: f64,
    /// Seconds of each of four stretches: without checkpoints, with them, without, with
    #[arg(long, value_name = "S", default_value_t = 120.0)]
    stretch: f64,
    /// Where they are written, on the disk that is meant [default: a new folder in this one]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    model: String,
    checkpoint_bytes: u64,
    checkpoints: usize,
    tokens_per_s_without: f64,
    tokens_per_s_with: f64,
    /// Part of the speed that they take.
    cost: f64,
    /// Part of the time in which a step waited for a copy to be made.
    stalled: f64,
    /// What the first copy of the run took, in memory fresh from the operating system; it is not
    /// among the others.
    first_wait_s: f64,
    /// The longest that a step waited for a copy to be made.
    longest_wait_s: f64,
    /// From a copy to the manifest on the disk.
    longest_write_s: f64,
}

pub(super) fn checkpoint(args: &CheckpointArgs) -> Result<Exit, Failure> {
    let made = tempfile::tempdir_in(args.folder.as_deref().unwrap_or(Path::new(".")));
    let folder = made.map_err(|error| {
        Failure::new(Exit::Error, error, Some("name a folder with --folder".to_owned()))
    })?;
    let model = args.run.model.build()?;
    let name = args.run.model.shape.name();
    let rows = args.run.rows(model.config().vocab_size);
    let (choice, _) = args.run.plan(&model)?;
    // It ends with the last stretch.
    let settings = TrainSettings { max_steps: Some(u64::MAX >> 1), ..args.run.settings(&choice) };
    let mut trainer =
        Trainer::new(model, &rows, settings, &Ledger::new()).map_err(EngineError::Train)?;
    let every = Duration::from_secs_f64(args.every);
    let mut watch = Watch::new(folder.path(), every, Duration::from_secs_f64(args.stretch));
    trainer.train(&mut watch).map_err(EngineError::Train)?;
    let found = watch.found(name);
    if args.json {
        report::print_line(&found)?;
    } else {
        output::print(&found.text())?;
    }
    Ok(Exit::Ok)
}

/// Asks for the checkpoints, and takes the times.
struct Watch<'a> {
    folder: &'a Path,
    every: Duration,
    length: Duration,
    /// Tokens and time of each stretch.
    stretches: Vec<(u64, Duration)>,
    tokens_at_begin: u64,
    tokens: u64,
    begun: Option<Instant>,
    last: Option<Instant>,
    /// Since when the next step waits for the copy of a checkpoint.
    copying: Option<Instant>,
    /// When each checkpoint was asked for that is not yet whole, by its step.
    asked: BTreeMap<u64, Instant>,
    bytes: u64,
    /// How long the first copy took.
    first: Option<Duration>,
    waits: Vec<Duration>,
    writes: Vec<Duration>,
    /// The one before, which goes when the next is there.
    written: Option<PathBuf>,
    removal: Option<Removal>,
}

impl<'a> Watch<'a> {
    fn new(folder: &'a Path, every: Duration, length: Duration) -> Self {
        Self {
            folder,
            every,
            length,
            stretches: vec![],
            tokens_at_begin: 0,
            tokens: 0,
            begun: None,
            last: None,
            copying: None,
            asked: BTreeMap::new(),
            bytes: 0,
            first: None,
            waits: vec![],
            writes: vec![],
            written: None,
            removal: None,
        }
    }

    fn has_checkpoints(&self) -> bool {
        self.stretches.len() % 2 == 1
    }

    fn found(&self, model: String) -> Found {
        let speed = |with: usize| {
            let part = self.stretches.iter().skip(with).step_by(2);
            let (tokens, seconds) = part.fold((0, 0.0), |(tokens, seconds), (more, time)| {
                (tokens + more, seconds + time.as_secs_f64())
            });
            tokens as f64 / seconds
        };
        let with_checkpoints: f64 =
            self.stretches.iter().skip(1).step_by(2).map(|(_, time)| time.as_secs_f64()).sum();
        let waited: f64 = self.waits.iter().map(Duration::as_secs_f64).sum();
        let longest = |all: &[Duration]| all.iter().max().map_or(0.0, Duration::as_secs_f64);
        let (without, with) = (speed(0), speed(1));
        Found {
            model,
            checkpoint_bytes: self.bytes,
            checkpoints: self.writes.len(),
            tokens_per_s_without: without,
            tokens_per_s_with: with,
            cost: 1.0 - with / without,
            stalled: waited / with_checkpoints,
            first_wait_s: self.first.map_or(0.0, |first| first.as_secs_f64()),
            longest_wait_s: longest(&self.waits),
            longest_write_s: longest(&self.writes),
        }
    }
}

impl Observer for Watch<'_> {
    fn at_boundary(&mut self, step: u64, _: &CausalLm) -> Result<Control, BoxError> {
        let now = Instant::now();
        let Some(begun) = self.begun else {
            // The first step finds nothing where it will be, and the first copy no memory.
            let is_first = step > 0 && self.asked.is_empty() && self.written.is_none();
            if is_first {
                self.copying = Some(now);
                self.asked.insert(step, now);
                return Ok(Control::Checkpoint);
            }
            if self.written.is_some() {
                (self.begun, self.tokens_at_begin) = (Some(now), self.tokens);
            }
            return Ok(Control::Continue);
        };
        if now - begun >= self.length {
            self.stretches.push((self.tokens - self.tokens_at_begin, now - begun));
            (self.begun, self.tokens_at_begin, self.last) = (Some(now), self.tokens, None);
            if self.stretches.len() == STRETCHES {
                return Ok(Control::Stop);
            }
        }
        let is_due = self.last.is_none_or(|last| now - last >= self.every);
        if self.has_checkpoints() && is_due {
            (self.last, self.copying) = (Some(now), Some(now));
            self.asked.insert(step, now);
            return Ok(Control::Checkpoint);
        }
        Ok(Control::Continue)
    }

    fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError> {
        let step = (metrics.num_tokens - self.tokens) as f64 / metrics.tokens_per_s;
        self.tokens = metrics.num_tokens;
        if let Some(since) = self.copying.take() {
            let wait = since.elapsed().saturating_sub(Duration::from_secs_f64(step));
            match self.first {
                None => self.first = Some(wait),
                Some(_) => self.waits.push(wait),
            }
        }
        Ok(())
    }

    fn checkpoint_path(&mut self, step: u64) -> Result<Option<PathBuf>, BoxError> {
        let is_wanted = self.stretches.len() < STRETCHES;
        Ok(is_wanted.then(|| self.folder.join(format!("checkpoint-{step}"))))
    }

    fn has_room_for_copy(&mut self, bytes: u64) -> bool {
        self.bytes = self.bytes.max(bytes);
        true
    }

    fn checkpoint_written(&mut self, step: u64, path: &Path) -> Result<(), BoxError> {
        let asked = self.asked.remove(&step).filter(|_| self.written.is_some());
        self.writes.extend(asked.map(|asked| asked.elapsed()));
        if let Some(before) = self.written.replace(path.to_owned()) {
            self.removal = Some(remove_folder_meanwhile(&before)?);
        }
        Ok(())
    }
}

impl Found {
    fn text(&self) -> String {
        let Self { model, checkpoints, tokens_per_s_without: without, .. } = self;
        format!(
            "{model}: {checkpoints} checkpoints of {}\n\
             without them {without:.1} tokens/s, with them {:.1}: they cost {:.1} %\n\
             copies held training up for {:.1} % of the time, the longest for {:.2} s, the run's \
             first, which is not counted, for {:.2} s; the longest until one was whole on the disk \
             {:.1} s\n",
            Bytes(self.checkpoint_bytes),
            self.tokens_per_s_with,
            100.0 * self.cost,
            100.0 * self.stalled,
            self.longest_wait_s,
            self.first_wait_s,
            self.longest_write_s,
        )
    }
}
