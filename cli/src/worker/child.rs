//! The child's side: confine, read, tell.

use std::io::{self, BufRead, BufReader, Write};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chandler_data::{BuildProgress, ChatExtras, DataError, Dataset, TextPipeline};
use chandler_vram::HostMeter;
use tracing_subscriber::fmt::MakeWriter;

use super::preview::Wanted;
use super::protocol::{Errand, Query, Reading, Refusal, Report, Stage, Tokenized, Work};
use crate::engine::EngineError;
use crate::exit::Exit;

/// How often a sign of life is told on.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Does the errand on standard input.
pub(crate) fn serve() -> Exit {
    let out = Out::default();
    let received = receive().and_then(|received| received.0.confinement.enter().map(|()| received));
    match received {
        Err(error) => {
            let _ = writeln!(io::stderr(), "the reading process cannot begin: {error}");
            Exit::Error
        }
        Ok((errand, lines)) => {
            quiet(&out);
            let report = work(&errand, &lines, &out);
            out.send(&report.unwrap_or_else(|error| Report::Refused(error.into())));
            Exit::Ok
        }
    }
}

/// Reads the errand. From then on this process ends when the parent's end of the pipe closes; lines
/// that come before are handed on.
fn receive() -> io::Result<(Errand, Receiver<String>)> {
    // Whoever means to end the daemon signals its whole group; when to end this is its own affair.
    for signal in
        [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP]
    {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let mut input = BufReader::new(io::stdin());
    let mut line = String::new();
    input.read_line(&mut line)?;
    let errand = serde_json::from_str(&line)?;
    let (sender, lines) = channel();
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        for line in input.lines().map_while(Result::ok) {
            // Whoever is not asked anything has let go of its end.
            let _ = sender.send(line);
        }
        std::process::exit(Exit::Interrupted.code().into());
    })?;
    Ok((errand, lines))
}

/// Log lines go to the parent; a panic's words may hold a record's, and go nowhere.
fn quiet(out: &Out) {
    std::panic::set_hook(Box::new(|_| {}));
    let layer = tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_writer(out.clone());
    let _ = layer.try_init();
}

fn work(errand: &Errand, lines: &Receiver<String>, out: &Out) -> Result<Report, EngineError> {
    out.send(&Report::Stage(Stage::Model));
    // The process ends behind this: nobody has to take a vocabulary apart first.
    let pipeline = ManuallyDrop::new(TextPipeline::open(&errand.model_folder)?);
    pipeline.probe()?;
    out.send(&Report::Stage(Stage::Records));
    match &errand.work {
        Work::Tokenize { files, sha256, options, cache_folder, questions } => {
            let beats = out.beats();
            let progress = |now| beats.beat(now);
            let rows = Dataset::open(files, &pipeline, options, cache_folder, &progress);
            let rows = rows.map_err(|error| gone(error, sha256.is_some()))?;
            if let (Some(expected), [found], [path]) = (sha256, rows.file_hashes(), &files[..])
                && expected != found
            {
                return Err(DataError::Changed { path: path.clone() }.into());
            }
            out.send(&Report::Stage(Stage::Questions));
            let asked = match questions {
                Some(from) => from.questions(&pipeline, &rows, options, &beats)?,
                None => (vec![], false),
            };
            Ok(Report::Tokenized(Tokenized {
                cache_file: rows.cache_file().to_owned(),
                tokenizer_sha256: pipeline.tokenizer().hash().to_owned(),
                questions: asked.0,
                questions_are_trained: asked.1,
                peak_bytes: HostMeter::new().read_host().peak_rss,
            }))
        }
        Work::ReadSet { set, options, cache_folder } => {
            out.send(&Report::Stage(Stage::Questions));
            Ok(Report::SetRead(set.read(&pipeline, options, cache_folder, &out.beats())?))
        }
        Work::Ask { record } => {
            let question = pipeline.question(record, errand.vocab_size, None)?;
            Ok(Report::Asked(question.prompt_ids))
        }
        Work::Stand => Ok(stand(&pipeline, errand.vocab_size, lines, out)),
        Work::Preview { file, options, rows, pieces, most_text } => {
            let send = |row| out.send(&Report::Row(Box::new(row)));
            let wanted = Wanted { rows: *rows, pieces: *pieces, most_text: *most_text };
            super::preview::rows(&pipeline, file, options, wanted, &out.beats(), &send)?;
            Ok(Report::Previewed)
        }
    }
}

/// Answers one query after the other; the process ends when no more can come.
fn stand(
    pipeline: &TextPipeline,
    vocab_size: Option<usize>,
    lines: &Receiver<String>,
    out: &Out,
) -> Report {
    out.send(&Report::Standing { tokenizer_sha256: pipeline.tokenizer().hash().to_owned() });
    for line in lines {
        let ids = serde_json::from_str(&line)
            .map_err(|error| DataError::Record { reason: error.to_string() })
            .and_then(|query| ids_of(pipeline, query, vocab_size));
        let refused = |error| Report::Refused(EngineError::from(error).into());
        out.send(&ids.map_or_else(refused, Report::Asked));
    }
    Report::Previewed
}

fn ids_of(
    pipeline: &TextPipeline,
    query: Query,
    vocab_size: Option<usize>,
) -> Result<Vec<u32>, DataError> {
    let ids = match query {
        Query::Text(text) => pipeline.text_ids(&text)?,
        Query::Chat { messages, tools, template_kwargs } => {
            pipeline.prompt_ids(&messages, &ChatExtras { tools, template_kwargs })?
        }
    };
    match vocab_size {
        Some(vocab_size) => match ids.iter().find(|id| **id as usize >= vocab_size) {
            Some(id) => Err(DataError::TokenOutOfVocabulary { id: *id, vocab_size }),
            None => Ok(ids),
        },
        None => Ok(ids),
    }
}

/// A file that could be hashed and cannot be read any more was changed.
fn gone(error: DataError, was_hashed: bool) -> DataError {
    match error {
        DataError::Read { path, source }
            if was_hashed
                && matches!(
                    source.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::InvalidInput
                ) =>
        {
            DataError::Changed { path }
        }
        error => error,
    }
}

/// Standard output as a line of reports. Clones are the same line.
#[derive(Debug, Clone, Default)]
pub(super) struct Out(Arc<Mutex<()>>);

impl Out {
    pub(super) fn send(&self, report: &Report) {
        let Ok(mut line) = serde_json::to_vec(report) else { return };
        line.push(b'\n');
        let _one_at_a_time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A parent that is gone ends this process by another way.
        let _ = io::stdout().lock().write_all(&line);
        let _ = io::stdout().lock().flush();
    }

    /// Signs of life that are told now and then.
    fn beats(&self) -> Beats {
        let beats = Beats::default();
        let (told, out) = (beats.clone(), self.clone());
        let tell = move || {
            let mut before = 0;
            loop {
                std::thread::sleep(TELL_EVERY);
                let now = told.reading();
                if now.beats != before {
                    before = now.beats;
                    out.send(&Report::Reading(now));
                }
            }
        };
        // Without the thread, nothing is told, and the parent ends this as stalled.
        let _ = std::thread::Builder::new().name("progress".to_owned()).spawn(tell);
        beats
    }
}

/// Counts signs of life, and keeps the newest. Clones are the same count.
#[derive(Debug, Clone, Default)]
pub(super) struct Beats {
    count: Arc<AtomicU64>,
    newest: Arc<Mutex<BuildProgress>>,
}

impl Beats {
    pub(super) fn beat(&self, now: BuildProgress) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if (now.file, now.lines, now.records) >= (newest.file, newest.lines, newest.records) {
            *newest = now;
        }
    }

    fn reading(&self) -> Reading {
        let now = *self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        Reading { now, beats: self.count.load(Ordering::Relaxed) }
    }
}

/// A log line on its way to the parent.
pub(super) struct Note<'a> {
    out: &'a Out,
    text: Vec<u8>,
}

impl Write for Note<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Note<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text).trim().to_owned();
        self.out.send(&Report::Note(text));
    }
}

impl<'a> MakeWriter<'a> for Out {
    type Writer = Note<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Note { out: self, text: vec![] }
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        let (message, hint, exit) = (error.to_string(), error.hint(), error.exit());
        let job = crate::daemon::JobError::from(error);
        let system = job.error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        let os_error = system.and_then(io::Error::raw_os_error);
        Self { message, hint, exit, fault: job.fault, bad_lines: job.bad_lines, os_error }
    }
}
