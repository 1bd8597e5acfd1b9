//! The text of strangers, read by a worker: see [`crate::worker`].

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use chandler_data::{DataError, DataOptions, Dataset, Question, Tokenizer};
use chandler_durable::{RealFs, is_there, sweep_temporaries};

use super::EngineError;
use crate::config::{Config, LimitsConfig};
use crate::logging::Progress;
use crate::worker::{
    Handed, HeldOut, PreviewRow, QuestionsFrom, SetRead, SetToRead, Supervision, Tokenized, Work,
    WorkerError, send,
};

/// A model whose tokenizer and chat template are used, and what holds while they are.
pub(crate) struct Reader<'a> {
    pub(crate) limits: &'a LimitsConfig,
    pub(crate) model_folder: &'a Path,
    /// Rows of the model's embedding table, where they matter.
    pub(crate) vocab_size: Option<usize>,
    /// Whether what is read is no longer wanted.
    pub(crate) stop: &'a dyn Fn() -> bool,
    pub(crate) progress: &'a Progress,
}

/// Training files that have become tokens.
pub(crate) struct Text {
    pub(crate) rows: Dataset,
    pub(crate) tokenizer: ProvenTokenizer,
    pub(crate) questions: Vec<Question>,
    /// Whether the model is trained on the questions' rows, so that a match proves nothing.
    pub(crate) questions_are_trained: bool,
}

type Loading = JoinHandle<Result<Tokenizer, DataError>>;

/// A tokenizer that a worker used without harm, on its way into this process.
pub(crate) struct ProvenTokenizer {
    folder: PathBuf,
    sha256: String,
    loading: Option<Loading>,
}

impl ProvenTokenizer {
    /// SHA-256 of its file.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The tokenizer, once it is loaded.
    pub(crate) fn wait(self) -> Result<Tokenizer, EngineError> {
        let loading = self.loading.unwrap_or_else(|| load(&self.folder));
        let path = self.folder.join("tokenizer.json");
        // The library's own panics are caught where it is called.
        let loaded = loading.join().map_err(|_| DataError::Changed { path: path.clone() })??;
        if loaded.hash() != self.sha256 {
            return Err(DataError::Changed { path }.into());
        }
        Ok(loaded)
    }
}

fn load(folder: &Path) -> Loading {
    let folder = folder.to_owned();
    std::thread::spawn(move || Tokenizer::open(&folder))
}

impl<'a> Reader<'a> {
    /// A reader that nobody stops.
    pub(crate) fn new(config: &'a Config, model_folder: &'a Path, progress: &'a Progress) -> Self {
        let (limits, stop) = (&config.limits, &(|| false));
        Self { limits, model_folder, vocab_size: None, stop, progress }
    }

    /// Tokenizes files into `cache_folder`, unless they are there; `sha256` is what the only file
    /// must have.
    pub(crate) fn tokenize(
        &self,
        files: &[PathBuf],
        sha256: Option<&str>,
        options: &DataOptions,
        cache_folder: &Path,
        questions: Option<QuestionsFrom>,
    ) -> Result<Text, EngineError> {
        let work = Work::Tokenize {
            files: files.to_vec(),
            sha256: sha256.map(str::to_owned),
            options: options.clone(),
            cache_folder: cache_folder.to_owned(),
            questions,
        };
        // Who only counts tokens reads no answers.
        let reads_answers = matches!(&work, Work::Tokenize { questions: Some(_), .. });
        let loading = RefCell::new(None);
        // What the worker could load, this process can; it does so while the worker goes on.
        let load = || {
            if reads_answers {
                loading.borrow_mut().get_or_insert_with(|| load(self.model_folder));
            }
        };
        // A worker that was killed leaves a half-written cache behind, under a temporary name.
        // Whoever holds this folder's lock is the only one to write there.
        if is_there(cache_folder)? {
            sweep_temporaries(&RealFs, cache_folder)?;
        }
        let made = self.send(work, files, &load, &mut |_| {});
        if made.is_err() {
            // What stays now goes with the next file; why this one failed is the news.
            let _ = sweep_temporaries(&RealFs, cache_folder);
        }
        let Handed::Tokenized(made) = made? else { return Err(out_of_turn()) };
        let Tokenized { cache_file, tokenizer_sha256, questions, questions_are_trained, .. } = made;
        let tokenizer = ProvenTokenizer {
            folder: self.model_folder.to_owned(),
            sha256: tokenizer_sha256,
            loading: loading.into_inner(),
        };
        let rows = Dataset::reopen(&cache_file, files)?;
        Ok(Text { rows, tokenizer, questions, questions_are_trained })
    }

    /// Reads an eval set.
    pub(crate) fn read_set(
        &self,
        set: SetToRead,
        options: &DataOptions,
        cache_folder: &Path,
    ) -> Result<SetRead, EngineError> {
        let file = set.file.clone();
        let (options, cache_folder) = (options.clone(), cache_folder.to_owned());
        let work = Work::ReadSet { set, options, cache_folder };
        match self.send(work, &[file], &|| {}, &mut |_| {})? {
            Handed::SetRead(read) => Ok(read),
            _ => Err(out_of_turn()),
        }
    }

    /// The ids of a record's prompt.
    pub(crate) fn ask(&self, record: String) -> Result<Vec<u32>, EngineError> {
        match self.send(Work::Ask { record }, &[], &|| {}, &mut |_| {})? {
            Handed::Asked(ids) => Ok(ids),
            _ => Err(out_of_turn()),
        }
    }

    /// Hands the first rows of a file to `row`, with their trained stretches where `pieces`.
    pub(crate) fn preview(
        &self,
        file: &Path,
        options: &DataOptions,
        rows: usize,
        pieces: bool,
        row: &mut dyn FnMut(PreviewRow),
    ) -> Result<(), EngineError> {
        let (file, options) = (file.to_owned(), options.clone());
        let work = Work::Preview { file, options, rows, pieces, most_text: None };
        self.send(work, &[], &|| {}, row).map(drop)
    }

    fn send(
        &self,
        work: Work,
        files: &[PathBuf],
        proven: &dyn Fn(),
        row: &mut dyn FnMut(PreviewRow),
    ) -> Result<Handed, EngineError> {
        let sizes = files.iter().filter_map(|file| Some(file.metadata().ok()?.len()));
        let total: u64 = sizes.sum();
        let name = |file: usize| {
            let name = files.get(file).and_then(|path| path.file_name());
            name.unwrap_or_default().to_string_lossy().into_owned()
        };
        let supervision = Supervision {
            limits: self.limits,
            stop: self.stop,
            proven,
            reading: &|now| {
                self.progress.reading(&name(now.file), now.records, now.bytes, total);
            },
        };
        let handed = send(self.model_folder.to_owned(), self.vocab_size, work, &supervision, row);
        if !files.is_empty() {
            self.progress.end();
        }
        Ok(handed?)
    }
}

/// The questions of a configuration: those of `eval.prompts`, else the first rows held out.
pub(crate) fn questions_from(config: &Config, held_out: HeldOut) -> QuestionsFrom {
    let eval = &config.eval;
    QuestionsFrom {
        prompts: eval.prompts.clone(),
        samples: eval.samples,
        held_out,
        system: eval.system.clone(),
        keep_records: false,
    }
}

fn out_of_turn() -> EngineError {
    let reason = "it handed over something else".to_owned();
    EngineError::Worker(Box::new(WorkerError::Garbled { reason }))
}
