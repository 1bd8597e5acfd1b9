//! What parent and child tell each other: one JSON object a line.

use std::path::PathBuf;

use chandler_data::{BuildProgress, DataOptions, Question};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::confine::Confinement;
use crate::daemon::Fault;
use crate::exit::Exit;
use crate::queue::BadLine;

/// What the child is to do, on its standard input. The pipe stays open for as long as the parent
/// lives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Errand {
    pub(crate) confinement: Confinement,
    /// Whose tokenizer and chat template are used.
    pub(crate) model_folder: PathBuf,
    /// Rows of its embedding table, where they matter.
    pub(crate) vocab_size: Option<usize>,
    pub(crate) work: Work,
}

/// The kinds of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Make a token cache.
    Tokenize {
        files: Vec<PathBuf>,
        /// Of the only file, where it was hashed before.
        sha256: Option<String>,
        options: DataOptions,
        cache_folder: PathBuf,
        questions: Option<QuestionsFrom>,
    },
    /// Read an eval set.
    ReadSet { set: SetToRead, options: DataOptions, cache_folder: PathBuf },
    /// Render and tokenize one conversation.
    Ask {
        /// A record.
        record: String,
    },
    /// Render and tokenize what is asked, one `Query` a line on standard input, until it closes.
    Stand,
    /// Show what is trained.
    Preview {
        file: PathBuf,
        options: DataOptions,
        rows: usize,
        /// Whether the trained stretches are wanted as text.
        pieces: bool,
        /// Bytes of a row's text that are wanted; `None` wants them all.
        most_text: Option<usize>,
    },
}

/// What a standing worker is asked for the token ids of.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Query {
    /// A conversation, up to where the assistant answers.
    Chat {
        messages: Vec<Value>,
        /// Tools that the template is to offer.
        tools: Option<Value>,
        /// Further arguments of the template.
        template_kwargs: Map<String, Value>,
    },
    /// A plain text, with the tokens that the tokenizer puts before it.
    Text(String),
}

impl std::fmt::Debug for Query {
    /// Without what was asked.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Chat { .. } => "Chat",
            Self::Text(_) => "Text",
        })
    }
}

/// Where the questions of an evaluation come from: a file, else the first rows held out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct QuestionsFrom {
    pub(crate) prompts: Option<PathBuf>,
    pub(crate) samples: usize,
    pub(crate) held_out: HeldOut,
    /// A message put before conversations that have none of the system's.
    pub(crate) system: Option<String>,
    /// Whether the records are wanted along with the questions.
    pub(crate) keep_records: bool,
}

/// Which rows are held out.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum HeldOut {
    /// All: nothing is trained.
    All,
    /// A share of them, chosen by a seed. If there are none, the rows that are trained on are asked.
    Share { share: f64, seed: u64 },
}

/// An eval set that is to be read: every record is asked, or has its loss taken, or both.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SetToRead {
    pub(crate) file: PathBuf,
    /// The first so many records; all where it is not said.
    pub(crate) samples: Option<usize>,
    pub(crate) system: Option<String>,
    /// Whether the records' own tokens are wanted, for their loss.
    pub(crate) tokens: bool,
    pub(crate) keep_records: bool,
}

/// An eval set that was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SetRead {
    pub(crate) questions: Vec<Question>,
    /// The last line that was asked, from 1; rows of later ones are none of the set's.
    pub(crate) last_line: u64,
    /// Where the records' tokens are kept.
    pub(crate) cache_file: Option<PathBuf>,
    /// SHA-256 of the file.
    pub(crate) sha256: String,
}

/// What the child tells, on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Stage(Stage),
    Reading(Reading),
    /// For the log.
    Note(String),
    Row(Box<PreviewRow>),
    Tokenized(Tokenized),
    SetRead(SetRead),
    Asked(Vec<u32>),
    /// It stands ready; the SHA-256 is the tokenizer's.
    Standing {
        tokenizer_sha256: String,
    },
    Previewed,
    Refused(Refusal),
}

/// What is being done, and so whose fault an end would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Tokenizer and template are read and tried on a text of ours.
    #[default]
    Model,
    /// Records are rendered and tokenized.
    Records,
    /// The questions of an evaluation are.
    Questions,
}

/// How far the records are.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) now: BuildProgress,
    /// Counts every sign of life.
    pub(crate) beats: u64,
}

/// A finished token cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tokenized {
    pub(crate) cache_file: PathBuf,
    /// Of the tokenizer that made it.
    pub(crate) tokenizer_sha256: String,
    pub(crate) questions: Vec<Question>,
    /// Whether the model is trained on the questions' rows.
    pub(crate) questions_are_trained: bool,
    pub(crate) peak_bytes: Option<u64>,
}

/// A row as `data preview` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PreviewRow {
    pub(crate) line: u64,
    pub(crate) cut: bool,
    pub(crate) text: String,
    pub(crate) input_ids: Vec<u32>,
    pub(crate) labels: Vec<i64>,
    /// Stretches of the text, and whether they are trained.
    pub(crate) pieces: Vec<(String, bool)>,
    /// Whether text is missing that was not wanted.
    pub(crate) shortened: bool,
}

/// An error of the child, as the parent repeats it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The code that a command ends with.
    pub exit: Exit,
    /// Whose fault it is.
    pub fault: Fault,
    /// The lines that cannot be used.
    pub bad_lines: Vec<BadLine>,
    /// What the operating system answered, where it was that which refused.
    pub os_error: Option<i32>,
}
