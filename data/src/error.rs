use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why text did not become tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A file of tokens could not be written.
    #[error(transparent)]
    Write(#[from] chandler_durable::DurableError),

    /// Tokens could not be written to the cache.
    #[error("cannot keep the tokens on disk: {source}")]
    Keep {
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A file is larger than its like may be.
    #[error("{} is larger than {max_bytes} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The most that is read.
        max_bytes: u64,
    },

    /// A training file is not what it was when it was hashed.
    #[error("{} was changed after it was hashed", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },

    /// A cache file that was finished a moment ago cannot be used.
    #[error("the tokens in {} cannot be used", path.display())]
    BadCache {
        /// Which.
        path: PathBuf,
    },

    /// A file has no record at all.
    #[error("{} holds no record", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },

    /// A Parquet file that cannot be read to its end.
    #[error("{} is not a sound Parquet file: {place}{reason}", path.display())]
    BadParquet {
        /// Which.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong.
        reason: String,
    },

    /// Lines that cannot be used, where none may be.
    #[error("{}", bad_lines(lines, *count))]
    BadLines {
        /// The first of them.
        lines: Vec<BadLine>,
        /// How many there are.
        count: usize,
    },

    /// Every record was cut before its first token that carries loss.
    #[error(
        "no token carries loss: all {records} records were cut at {max_length} tokens before \
         theirs began"
    )]
    NothingToLearn {
        /// Records read.
        records: usize,
        /// Tokens of a row.
        max_length: usize,
    },

    /// A model folder without a tokenizer.
    #[error("{} has no tokenizer.json", folder.display())]
    MissingTokenizer {
        /// The model folder.
        folder: PathBuf,
    },

    /// A tokenizer that cannot be loaded.
    #[error("{} cannot be used: {reason}", path.display())]
    BadTokenizer {
        /// The file.
        path: PathBuf,
        /// What the library says.
        reason: String,
    },

    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {reason}")]
    Tokenize {
        /// What it says.
        reason: String,
    },

    /// Chat data for a model without a chat template.
    #[error("the model has no chat template, and the record is a conversation")]
    MissingTemplate,

    /// A chat template that cannot be compiled.
    #[error("the chat template is not valid: {reason}")]
    BadTemplate {
        /// What the engine says.
        reason: String,
    },

    /// The chat template refused a conversation, or failed on it.
    #[error("the chat template does not render this conversation: {reason}")]
    Render {
        /// Its own words.
        reason: String,
    },

    /// The chat template does more than any template needs to.
    #[error("the chat template goes beyond what it may do: {reason}")]
    TemplateBounds {
        /// What it does.
        reason: String,
    },

    /// A record that is no record.
    #[error("{reason}")]
    Record {
        /// What is wrong.
        reason: String,
    },

    /// A token that the model has no embedding for.
    #[error("token id {id} is outside of the model's vocabulary of {vocab_size}")]
    TokenOutOfVocabulary {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
}

/// A place in a Parquet file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole, or what it says about itself.
    File,
    /// A row of a row group, both from 1; row 0 is before the first.
    Row {
        /// The row group.
        group: usize,
        /// The row in it.
        row: u64,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Row { group, row: 0 } => write!(f, "row group {group}: "),
            Self::Row { group, row } => write!(f, "row group {group}, row {row}: "),
        }
    }
}

/// A line, or a row of a Parquet file, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// The file.
    pub file: PathBuf,
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.reason)
    }
}

fn bad_lines(lines: &[BadLine], count: usize) -> String {
    let mut text = format!("{count} {} cannot be used", if count == 1 { "line" } else { "lines" });
    for line in lines {
        text.push_str("\n  ");
        text.push_str(&line.to_string());
    }
    if count > lines.len() {
        text.push_str(&format!("\n  and {} more", count - lines.len()));
    }
    text
}

impl DataError {
    /// What the person who sees the error can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } => "check that the file is there and readable by this user",
            Self::Write(error) => return error.hint(),
            Self::Keep { .. } => "free some room on the disk that holds the cache",
            Self::TooLarge { .. } => "compare it with the one that the model's authors published",
            Self::Changed { .. } => "queue it again once whoever writes to it has finished",
            Self::BadCache { .. } => {
                "remove it; it is made anew. If it comes back, look at the disk"
            }
            Self::Empty { .. } => {
                "write one JSON object a line, such as {\"prompt\": \"…\", \"completion\": \"…\"}"
            }
            Self::BadParquet { .. } => {
                "write it anew with the program that made it, or as JSON lines"
            }
            Self::BadLines { .. } => {
                "correct the lines, or set data.on_bad_line = \"skip\" to leave them out"
            }
            Self::NothingToLearn { .. } => {
                "raise data.max_length, or look at the rows with `chandler data preview`"
            }
            Self::MissingTokenizer { .. } => {
                "copy tokenizer.json and tokenizer_config.json from the model's page into the folder"
            }
            Self::BadTokenizer { .. } | Self::Tokenize { .. } => {
                "download the tokenizer's files again"
            }
            Self::MissingTemplate => {
                "put a chat_template.jinja into the model folder (the instruct variant of the model \
                 has one), or use \"text\" or plain \"prompt\" and \"completion\" records"
            }
            Self::BadTemplate { .. } => {
                "compare chat_template.jinja with the model's published one"
            }
            Self::Render { .. } => {
                "many templates want user and assistant in turn, and some have no system role"
            }
            Self::TemplateBounds { .. } => {
                "compare chat_template.jinja with the model's published one; a shorter conversation \
                 may pass"
            }
            Self::Record { .. } => {
                "a record has messages, prompt and completion, text, conversations, or instruction \
                 and output"
            }
            Self::TokenOutOfVocabulary { .. } => {
                "the tokenizer does not belong to this model; use the one from its folder"
            }
        };
        Some(hint.to_owned())
    }
}
