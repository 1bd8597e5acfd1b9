//! The child's side: confine, read, tell.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chandler_data::{
    BuildProgress, DataError, DataOptions, Dataset, SourceLines, TextPipeline, split_held_out,
};
use chandler_vram::HostMeter;
use tracing_subscriber::fmt::MakeWriter;

use super::preview::Wanted;
use super::protocol::{
    Errand, HeldOut, Question, QuestionsFrom, Reading, Refusal, Report, Stage, Tokenized, Work,
};
use crate::engine::EngineError;
use crate::exit::Exit;

/// How often a sign of life is told on.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Does the errand on standard input.
pub(crate) fn serve() -> Exit {
    let out = Out::default();
    match receive().and_then(|errand| errand.confinement.enter().map(|()| errand)) {
        Err(error) => {
            let _ = writeln!(io::stderr(), "the reading process cannot begin: {error}");
            Exit::Error
        }
        Ok(errand) => {
            quiet(&out);
            let report = work(&errand, &out).unwrap_or_else(|error| Report::Refused(error.into()));
            out.send(&report);
            Exit::Ok
        }
    }
}

/// Reads the errand, and from then on ends this process when the parent's end of the pipe closes.
fn receive() -> io::Result<Errand> {
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
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        let _ = input.read_to_end(&mut vec![]);
        std::process::exit(Exit::Interrupted.code().into());
    })?;
    Ok(errand)
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

fn work(errand: &Errand, out: &Out) -> Result<Report, EngineError> {
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
        Work::Ask { record } => Ok(Report::Asked(pipeline.question(record, errand.vocab_size)?.0)),
        Work::Preview { file, options, rows, pieces, most_text } => {
            let send = |row| out.send(&Report::Row(Box::new(row)));
            let wanted = Wanted { rows: *rows, pieces: *pieces, most_text: *most_text };
            super::preview::rows(&pipeline, file, options, wanted, &out.beats(), &send)?;
            Ok(Report::Previewed)
        }
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

impl QuestionsFrom {
    /// The questions, and whether the model is trained on their rows.
    fn questions(
        &self,
        pipeline: &TextPipeline,
        all: &Dataset,
        options: &DataOptions,
        beats: &Beats,
    ) -> Result<(Vec<Question>, bool), EngineError> {
        let question = |line: &String| -> Result<Question, DataError> {
            beats.beat(BuildProgress::default());
            let (prompt_ids, reference) = pipeline.question(line, options.vocab_size)?;
            Ok(Question { prompt_ids, reference })
        };
        if let Some(path) = &self.prompts {
            // What is wrong with these is no fault of a training file.
            let of_configuration = |error: DataError| EngineError::Json {
                path: path.clone(),
                expected: "a file of records, one a line (eval.prompts)",
                reason: error.to_string(),
            };
            let lines = self.lines_of(path, options).map_err(of_configuration)?;
            let asked = lines.iter().map(|line| question(line).map_err(of_configuration));
            let mut questions = asked.collect::<Result<Vec<_>, _>>()?;
            questions.retain(|question| !question.prompt_ids.is_empty());
            return Ok((questions, false));
        }
        let (rows, trained) = self.held_out.rows(all);
        let lines = source_lines(pipeline, &rows, self.samples, options, beats)?;
        // What can be learned can nearly always be asked; a row of which that is not so is no
        // reason to refuse its file.
        let tell = |error: &DataError| tracing::warn!("a row is not asked in evaluations: {error}");
        let asked = lines.iter().map(question).filter_map(|asked| asked.inspect_err(tell).ok());
        let mut questions: Vec<Question> = asked.collect();
        questions.retain(|question| !question.prompt_ids.is_empty());
        // A row is cut there; a prompt that is longer would take time without bound.
        questions.retain(|question| question.prompt_ids.len() <= options.max_length);
        Ok((questions, trained))
    }

    fn lines_of(&self, path: &Path, options: &DataOptions) -> Result<Vec<String>, DataError> {
        let lines = SourceLines::open(path, options.max_line_bytes)?.take(self.samples);
        lines.map(|line| Ok(line.map(|(_, text)| text)?)).collect()
    }
}

impl HeldOut {
    /// The rows that are asked, and whether they are trained on.
    fn rows(self, all: &Dataset) -> (Dataset, bool) {
        match self {
            Self::All => (all.clone(), false),
            Self::Share { share, seed } => {
                let (train, held_out) = split_held_out(all.len(), share, seed);
                let trained = held_out.is_empty();
                (all.select(if trained { &train } else { &held_out }), trained)
            }
        }
    }
}

/// The lines that the first rows come from, which must still be those that were tokenized.
fn source_lines(
    pipeline: &TextPipeline,
    rows: &Dataset,
    count: usize,
    options: &DataOptions,
    beats: &Beats,
) -> Result<Vec<String>, EngineError> {
    let first: Vec<usize> = (0..rows.len().min(count)).collect();
    let alive = || beats.beat(BuildProgress::default());
    let lines = rows.source_lines(&first, options.max_line_bytes, &alive)?;
    for (row, line) in first.iter().zip(&lines) {
        let path = rows.source(*row).map_or_else(Default::default, |source| source.0.to_owned());
        let kept = rows.row(*row);
        let kept = kept.map_err(|source| DataError::Read { path: path.clone(), source })?;
        let example = pipeline.example(line, options);
        let same = example.is_ok_and(|example| example.input_ids.starts_with(&kept.input_ids));
        if !same {
            return Err(DataError::Changed { path }.into());
        }
    }
    Ok(lines)
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
