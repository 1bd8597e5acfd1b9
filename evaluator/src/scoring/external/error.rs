//! How having answers scored by a program can fail.

use std::fmt;
use std::io;
use std::process::ExitStatus;

/// Why a program gave no score. What it said or was told is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// No program was named.
    #[error("the command of a scorer must name a program")]
    NoProgram,
    /// A limit makes no sense.
    #[error("{limit} must be more than 0 and not too large; it is {value}")]
    Limit {
        /// The limit.
        limit: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// It could not be started.
    #[error("the scorer {program} cannot be started: {source}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ended, or closed its output, before it gave a score.
    #[error("the scorer {program} ended without a score{}", Ending(*.status))]
    Died {
        /// The program.
        program: String,
        /// How it ended; `None` where it had to be killed.
        status: Option<ExitStatus>,
    },
    /// It took too long over an answer.
    #[error("the scorer {program} gave no score within {seconds} s")]
    TooSlow {
        /// The program.
        program: String,
        /// What it was given.
        seconds: f64,
    },
    /// It took too long over all answers together.
    #[error("the scorer {program} has used up its {seconds} s for all answers")]
    TotalTime {
        /// The program.
        program: String,
        /// What it was given.
        seconds: f64,
    },
    /// A line did not end.
    #[error("the scorer {program} said a line of more than {limit_bytes} bytes")]
    ReplyTooLong {
        /// The program.
        program: String,
        /// Most that a line may have.
        limit_bytes: usize,
    },
    /// It said what is no reply.
    #[error(
        "the scorer {program} said a line that is neither a number nor an object with a score: \
         {reason}"
    )]
    Garbled {
        /// The program.
        program: String,
        /// What is wrong.
        reason: String,
    },
    /// It gave a number that is no score. It goes on.
    #[error("the scorer {program} gave {value}, which is not from 0 to 1")]
    NotAScore {
        /// The program.
        program: String,
        /// The number.
        value: f64,
    },
    /// It spoke without having been asked, so that no reply can be told from another.
    #[error("the scorer {program} said more lines than it was asked for")]
    OutOfTurn {
        /// The program.
        program: String,
    },
    /// A pipe failed.
    #[error("the scorer {program} cannot be talked to: {source}")]
    Talk {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It was not to go on.
    #[error("scoring was stopped")]
    Stopped,
    /// It was ended by an earlier error.
    #[error("the scorer {program} is not running any more")]
    Over {
        /// The program.
        program: String,
    },
}

impl ExternalError {
    /// Whether no further answer can be scored.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::NotAScore { .. })
    }
}

/// How a process ended, where that is known.
struct Ending(Option<ExitStatus>);

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.map_or(Ok(()), |status| write!(f, " ({status})"))
    }
}
