//! The parent's side: start, watch, kill.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chandler_data::BuildProgress;

use super::SUBCOMMAND;
use super::confine::{Confinement, STACK_BYTES};
use super::error::{End, ReadThing, WorkerError};
use super::protocol::{Errand, PreviewRow, Reading, Report, SetRead, Stage, Tokenized, Work};
use crate::config::LimitsConfig;

/// How often the wishes of others are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Of a single report; a row of a preview is the largest.
const MAX_REPORT_BYTES: u64 = 1 << 30;
/// Reports that wait to be looked at.
const REPORTS_WAITING: usize = 16;
/// Of what the child says on standard error, where the runtime tells how it dies.
const LAST_WORDS_BYTES: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

/// How a worker is watched.
pub(crate) struct Supervision<'a> {
    pub(crate) limits: &'a LimitsConfig,
    /// Whether it is no longer wanted.
    pub(crate) stop: &'a dyn Fn() -> bool,
    /// Is called once the model's files have proven harmless.
    pub(crate) proven: &'a dyn Fn(),
    /// Is told how far the records are.
    pub(crate) reading: &'a dyn Fn(&BuildProgress),
}

/// What a worker handed over.
#[derive(Debug)]
pub(crate) enum Handed {
    Tokenized(Tokenized),
    SetRead(SetRead),
    Asked(Vec<u32>),
    /// The SHA-256 of the tokenizer that it stands ready with.
    Standing(String),
    Previewed,
}

/// Has a worker do `work` on a model's tokenizer and template; rows of a preview go to `row`.
pub(crate) fn send(
    model_folder: PathBuf,
    vocab_size: Option<usize>,
    work: Work,
    supervision: &Supervision,
    row: &mut dyn FnMut(PreviewRow),
) -> Result<Handed, WorkerError> {
    let confinement = confinement(supervision.limits, &work);
    let errand = Errand { confinement, model_folder, vocab_size, work };
    let worker = Worker::start(&errand).map_err(|source| WorkerError::Start { source })?;
    let mut watch = Watch::new(supervision, &errand, Stage::default());
    let handed = watch.until_done(&worker.reports, row);
    let over = worker.end(handed.is_err());
    match handed {
        Ok(Some(handed)) => Ok(handed),
        Ok(None) => Err(watch.ended(&over.map_err(|source| WorkerError::Start { source })?)),
        Err(error) => Err(error),
    }
}

pub(super) fn confinement(limits: &LimitsConfig, work: &Work) -> Confinement {
    let wanted = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads.max(wanted.unwrap_or(0)) as u64;
    let files = match work {
        Work::Tokenize { files, .. } => files.clone(),
        Work::Preview { file, .. } => vec![file.clone()],
        Work::ReadSet { set, .. } => vec![set.file.clone()],
        Work::Ask { .. } | Work::Stand => vec![],
    };
    let bytes: u64 = files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let for_files = limits.cpu_seconds_per_mib * (bytes / MIB) as f64;
    let cpu_seconds = limits.stall_seconds * threads as f64 + for_files;
    Confinement {
        memory_bytes: limits.worker_memory.bytes().unwrap_or(u64::MAX >> 1),
        cpu_seconds: cpu_seconds.ceil().max(1.0) as u64,
        threads,
    }
}

/// A running child and the threads that listen to it.
pub(super) struct Worker {
    pub(super) child: Child,
    /// Open for as long as the child may live.
    pub(super) input: Option<ChildStdin>,
    pub(super) reports: Receiver<io::Result<Report>>,
    last_words: JoinHandle<String>,
}

/// How a child ended.
pub(super) struct Over {
    status: ExitStatus,
    last_words: String,
}

impl Worker {
    pub(super) fn start(errand: &Errand) -> io::Result<Self> {
        let mut child = Command::new(this_program()?)
            .arg0("chandler")
            .arg(SUBCOMMAND)
            .env("RUST_MIN_STACK", STACK_BYTES.to_string())
            // Signals that a terminal sends to the daemon's group are for the daemon.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (input, output, errors) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (sender, reports) = sync_channel(REPORTS_WAITING);
        std::thread::spawn(move || output.map(|output| listen(BufReader::new(output), &sender)));
        let last_words = std::thread::spawn(move || {
            let mut text = vec![];
            if let Some(mut errors) = errors {
                let _ = errors.by_ref().take(LAST_WORDS_BYTES).read_to_end(&mut text);
                let _ = io::copy(&mut errors, &mut io::sink());
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut worker = Self { child, input, reports, last_words };
        let mut line = serde_json::to_vec(errand)?;
        line.push(b'\n');
        // A child that is dead already is found out by its reports, which end.
        if let Some(Err(error)) = worker.input.as_mut().map(|input| input.write_all(&line))
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            let _ = worker.end(true);
            return Err(error);
        }
        Ok(worker)
    }

    /// Waits for the child, which is killed first if it is not to go on.
    pub(super) fn end(mut self, kill: bool) -> io::Result<Over> {
        if kill {
            self.child.kill()?;
        }
        // Whoever still speaks to us speaks to nobody, and ends.
        drop(self.reports);
        let status = self.child.wait()?;
        drop(self.input.take());
        let last_words = self.last_words.join().unwrap_or_default();
        Ok(Over { status, last_words })
    }
}

/// The program that runs, even where its file was replaced since.
fn this_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    std::env::current_exe()
}

/// Passes on what a child says, line by line, until it says no more or nobody listens.
fn listen(mut output: impl BufRead, to: &SyncSender<io::Result<Report>>) {
    loop {
        let mut line = vec![];
        let read = output.by_ref().take(MAX_REPORT_BYTES).read_until(b'\n', &mut line);
        let report = match read {
            Ok(0) => return,
            Ok(_) => serde_json::from_slice(&line).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        let garbled = report.is_err();
        if to.send(report).is_err() || garbled {
            return;
        }
    }
}

/// The watch over one child.
pub(super) struct Watch<'a> {
    supervision: &'a Supervision<'a>,
    errand: &'a Errand,
    stage: Stage,
    reading: Reading,
    /// For how long it gave no sign of life.
    idle: Duration,
}

impl<'a> Watch<'a> {
    pub(super) fn new(supervision: &'a Supervision, errand: &'a Errand, stage: Stage) -> Self {
        let (reading, idle) = (Reading::default(), Duration::ZERO);
        Self { supervision, errand, stage, reading, idle }
    }

    /// Listens until the child hands over what it made; `None` where it ended before.
    pub(super) fn until_done(
        &mut self,
        reports: &Receiver<io::Result<Report>>,
        row: &mut dyn FnMut(PreviewRow),
    ) -> Result<Option<Handed>, WorkerError> {
        let garbled = |reason: String| WorkerError::Garbled { reason };
        loop {
            if (self.supervision.stop)() {
                return Err(WorkerError::Stopped);
            }
            let waits = Instant::now();
            match reports.recv_timeout(TICK) {
                Ok(Ok(report)) => match self.heard(report, row)? {
                    Some(handed) => return Ok(Some(handed)),
                    None => self.idle = Duration::ZERO,
                },
                Ok(Err(error)) => return Err(garbled(error.to_string())),
                // A machine that slept, or a process that was stopped, counts as one tick.
                Err(RecvTimeoutError::Timeout) => self.idle += waits.elapsed().min(2 * TICK),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
            let most = self.supervision.limits.stall_seconds;
            if self.idle.as_secs_f64() > most {
                let end = End::Stalled { seconds: most.to_string() };
                return Err(WorkerError::Ended { read: self.read(), end });
            }
        }
    }

    fn heard(
        &mut self,
        report: Report,
        row: &mut dyn FnMut(PreviewRow),
    ) -> Result<Option<Handed>, WorkerError> {
        match report {
            Report::Stage(stage) => {
                self.stage = stage;
                if stage != Stage::Model {
                    (self.supervision.proven)();
                }
            }
            Report::Reading(reading) => {
                self.reading = reading;
                (self.supervision.reading)(&reading.now);
            }
            Report::Note(text) => tracing::warn!("{text}"),
            Report::Row(made) => row(*made),
            Report::Tokenized(made) => {
                let peak = made.peak_bytes;
                tracing::debug!(peak_bytes = peak, "the process that read the files is done");
                return Ok(Some(Handed::Tokenized(made)));
            }
            Report::SetRead(read) => return Ok(Some(Handed::SetRead(read))),
            Report::Asked(ids) => return Ok(Some(Handed::Asked(ids))),
            Report::Standing { tokenizer_sha256 } => {
                return Ok(Some(Handed::Standing(tokenizer_sha256)));
            }
            Report::Previewed => return Ok(Some(Handed::Previewed)),
            Report::Refused(refusal) => {
                let cause = refusal.os_error.map(io::Error::from_raw_os_error);
                return Err(WorkerError::Refused { refusal: Box::new(refusal), cause });
            }
        }
        Ok(None)
    }

    /// What the child was reading when it was last heard.
    fn read(&self) -> ReadThing {
        let files = match &self.errand.work {
            Work::Tokenize { files, .. } => files.as_slice(),
            Work::Preview { file, .. } => std::slice::from_ref(file),
            Work::Ask { .. } | Work::Stand | Work::ReadSet { .. } => &[],
        };
        let file = files.get(self.reading.now.file);
        let of_the_file = match &self.errand.work {
            Work::Tokenize { questions: Some(questions), .. } => questions.prompts.is_none(),
            _ => false,
        };
        match (self.stage, file) {
            (Stage::Model, _) => ReadThing::Model { folder: self.errand.model_folder.clone() },
            (Stage::Records, Some(file)) => {
                ReadThing::Lines { file: file.clone(), lines: self.reading.now.lines }
            }
            (Stage::Questions, Some(file)) if of_the_file => {
                ReadThing::Lines { file: file.clone(), lines: (0, 0) }
            }
            (Stage::Records | Stage::Questions, _) => ReadThing::Prompt,
        }
    }

    /// What a child's end means that handed over nothing.
    pub(super) fn ended(&self, over: &Over) -> WorkerError {
        let confinement = &self.errand.confinement;
        let end = match (over.status.signal(), over.status.code()) {
            _ if over.last_words.contains("memory allocation of") => {
                End::Memory { bytes: confinement.memory_bytes }
            }
            _ if over.last_words.contains("has overflowed its stack") => End::Stack,
            (Some(signal), _) if signal == signal_hook::consts::SIGXCPU => {
                End::CpuTime { seconds: confinement.cpu_seconds }
            }
            (Some(signal), _) if signal == signal_hook::consts::SIGKILL => End::Killed,
            (Some(signal), _) => End::Crashed { signal },
            (None, code) => End::Exited { code: code.unwrap_or(-1) },
        };
        WorkerError::Ended { read: self.read(), end }
    }
}
