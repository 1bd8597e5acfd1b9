//! What can be wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// The built-in default.
    #[default]
    Default,
    /// A line of a configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: String,
    },
    /// A flag of its own, such as `--model`.
    Flag {
        /// The flag, with its dashes.
        flag: &'static str,
    },
    /// `--set section.key=value`.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env { name } => write!(f, "environment variable {name}"),
            Self::Flag { flag } => f.write_str(flag),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// A key that does not exist.
    #[error("unknown key `{key}` ({origin})")]
    UnknownKey {
        /// The key as written, dotted.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// The most similar key that exists.
        nearest: Option<String>,
    },
    /// A section that was given a value, as in `train = 3`.
    #[error("`{section}` is a section, not a key ({origin})")]
    SectionAsKey {
        /// The section.
        section: String,
        /// Where it was written.
        origin: Origin,
    },
    /// A value of the wrong type.
    #[error("`{key}` is {found}, expected {expected} ({origin})")]
    WrongType {
        /// The key.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// What the key accepts, in words.
        expected: String,
        /// What was found, in words.
        found: String,
    },
    /// A word that is not among those to choose from.
    #[error("`{key}` is \"{value}\", expected {expected} ({origin})")]
    NotAChoice {
        /// The key.
        key: String,
        /// The word.
        value: String,
        /// Where it was written.
        origin: Origin,
        /// The words, listed.
        expected: String,
        /// The most similar word.
        nearest: Option<String>,
    },
    /// A number outside its bounds.
    #[error("`{key}` is {value}, expected {expected} ({origin})")]
    OutOfRange {
        /// The key.
        key: String,
        /// The number as written.
        value: String,
        /// Where it was written.
        origin: Origin,
        /// The bounds in words.
        expected: String,
    },
    /// A `--set` that is not `section.key=value`.
    #[error("`--set {text}` is not of the form section.key=value")]
    MalformedSet {
        /// The text after `--set`.
        text: String,
    },
    /// Values that do not go together.
    #[error("`{key}` {what} ({origin})")]
    Conflict {
        /// The key that has to change.
        key: &'static str,
        /// What is wrong, as the rest of the sentence.
        what: String,
        /// Where the key was written.
        origin: Origin,
        /// What to do.
        advice: String,
    },
}

impl Problem {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { nearest: Some(nearest), .. } => {
                Some(format!("did you mean `{nearest}`?"))
            }
            Self::NotAChoice { nearest: Some(nearest), .. } => {
                Some(format!("did you mean \"{nearest}\"?"))
            }
            Self::UnknownKey { .. } => {
                Some("`chandler config reference` lists every key".to_owned())
            }
            Self::SectionAsKey { section, .. } => {
                Some(format!("write `[{section}]` and its keys below it"))
            }
            Self::MalformedSet { .. } => Some("for example --set train.learning_rate=1e-4".into()),
            Self::Conflict { advice, .. } => Some(advice.clone()),
            Self::WrongType { .. } | Self::OutOfRange { .. } | Self::NotAChoice { .. } => Some(
                "`chandler config reference` gives type, range and choices of every key".into(),
            ),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// The values are wrong; all problems are listed, not just the first.
    #[error("{}", listed(problems))]
    Invalid {
        /// What is wrong, in the order of the layers.
        problems: Vec<Problem>,
    },
    /// The layers passed every check and yet do not make a configuration.
    #[error("the configuration could not be put together")]
    Merge {
        /// The cause.
        #[source]
        source: Box<figment::Error>,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some("`chandler init` writes one with every key explained".into()),
            Self::Syntax { .. } | Self::Merge { .. } => None,
            Self::Invalid { problems } => {
                let hints: Vec<String> = problems.iter().filter_map(Problem::hint).collect();
                (!hints.is_empty()).then(|| hints.join("; "))
            }
        }
    }
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n       ")
}
