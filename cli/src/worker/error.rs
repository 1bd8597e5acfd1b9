//! How reading what strangers wrote can end, whose fault that is, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use chandler_vram::Bytes;

use super::protocol::Refusal;
use crate::daemon::Fault;
use crate::exit::Exit;

/// Why the worker did not do its errand.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It was not to go on.
    #[error("reading was stopped")]
    Stopped,
    /// It could not be started.
    #[error("the process that reads files cannot be started: {source}")]
    Start {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("{}", .refusal.message)]
    Refused {
        /// What it said.
        refusal: Box<Refusal>,
        /// The operating system's answer, where that was the cause.
        #[source]
        cause: Option<io::Error>,
    },
    /// It came to an end of its own.
    #[error("{read} cannot be used: {end}")]
    Ended {
        /// What it was reading.
        read: ReadThing,
        /// How it ended.
        end: End,
    },
    /// Its tokenizer is not that of the one before it, so that its ids mean other words.
    #[error("the tokenizer in {} was changed meanwhile", folder.display())]
    OtherTokenizer {
        /// The model's folder.
        folder: PathBuf,
    },
    /// It said what no worker says.
    #[error("the process that reads files spoke out of turn: {reason}")]
    Garbled {
        /// What was wrong.
        reason: String,
    },
}

/// What a worker was reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadThing {
    /// The tokenizer and the chat template of a model.
    Model {
        /// The model's folder.
        folder: PathBuf,
    },
    /// Lines of a training file.
    Lines {
        /// The file.
        file: PathBuf,
        /// The first and the last of those that were in hand, from 1.
        lines: (u64, u64),
    },
    /// What an evaluation or an answer begins with.
    Prompt,
}

/// How a worker ended, if not by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nothing came of it for so long.
    Stalled {
        /// In seconds.
        seconds: String,
    },
    /// It took more CPU time than it may.
    CpuTime {
        /// In seconds.
        seconds: u64,
    },
    /// It took more memory than it may.
    Memory {
        /// In bytes.
        bytes: u64,
    },
    /// It called itself too deeply.
    Stack,
    /// It crashed.
    Crashed {
        /// The signal.
        signal: i32,
    },
    /// Somebody else, such as the kernel, killed it.
    Killed,
    /// It left without a word.
    Exited {
        /// Its exit code.
        code: i32,
    },
}

impl fmt::Display for ReadThing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model { folder } => {
                write!(f, "the tokenizer or the chat template in {}", folder.display())
            }
            Self::Lines { file, lines: (_, 0) } => write!(f, "{}", file.display()),
            Self::Lines { file, lines: (first, last) } if first == last => {
                write!(f, "line {first} of {}", file.display())
            }
            Self::Lines { file, lines: (first, last) } => {
                write!(f, "one of the lines {first} to {last} of {}", file.display())
            }
            Self::Prompt => f.write_str("a prompt"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled { seconds } => {
                write!(f, "nothing came of reading it for {seconds} s (limits.stall_seconds)")
            }
            Self::CpuTime { seconds } => write!(
                f,
                "reading it took more than {seconds} s of CPU time (limits.cpu_seconds_per_mib)"
            ),
            Self::Memory { bytes } => {
                let bytes = Bytes(*bytes);
                write!(f, "reading it takes more than {bytes} of memory (limits.worker_memory)")
            }
            Self::Stack => f.write_str("reading it nests too deeply"),
            Self::Crashed { signal } => write!(f, "reading it crashed (signal {signal})"),
            Self::Killed => f.write_str("the process that read it was killed"),
            Self::Exited { code } => write!(f, "the process that read it ended with code {code}"),
        }
    }
}

impl WorkerError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Stopped => None,
            Self::Start { .. } => {
                Some("look at the limits of this user (`ulimit -a`) and the free memory".to_owned())
            }
            Self::Refused { refusal, .. } => refusal.hint.clone(),
            Self::Ended { end: End::Killed, .. } => {
                Some("look whether the kernel ran out of memory (`dmesg`)".to_owned())
            }
            Self::Ended { read: ReadThing::Model { .. }, .. } => Some(
                "use the files that the model's authors published; where they are right, raise the \
                 key named"
                    .to_owned(),
            ),
            Self::Ended { .. } => Some(
                "take the line out, or raise the key named if it is an honest one; the model's \
                 tokenizer and chat template may be to blame too"
                    .to_owned(),
            ),
            Self::OtherTokenizer { .. } => {
                Some("try again: model and tokenizer are then read together".to_owned())
            }
            Self::Garbled { .. } => Some("this is a defect of chandler; please report it".to_owned()),
        }
    }

    /// The code that a command ends with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Refused { refusal, .. } => refusal.exit,
            Self::Ended { end: End::Killed, .. } => Exit::Error,
            Self::Ended { read: ReadThing::Lines { .. }, .. } => Exit::BadData,
            _ => Exit::Error,
        }
    }

    /// Whose fault it is.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Refused { refusal, .. } => refusal.fault,
            Self::Stopped
            | Self::Garbled { .. }
            | Self::OtherTokenizer { .. }
            | Self::Ended { end: End::Killed | End::Exited { .. }, .. } => Fault::Attempt,
            Self::Ended { read: ReadThing::Lines { .. }, .. } => Fault::File,
            Self::Start { .. } | Self::Ended { .. } => Fault::Setup(Exit::Error),
        }
    }
}
