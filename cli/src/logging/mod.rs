//! Logs: lines for people on the terminal, JSON lines in `logs/`, and the progress line.

mod colour;
mod progress;
mod terminal;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, fmt};

pub use colour::colour_is_wanted;
pub use progress::{Progress, StepProgress, duration_in_words, grouped};
pub use terminal::{Terminal, TerminalLine};

use crate::config::{LogConfig, LogFormat, LogRotation};
use crate::visible::visible_json;

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `log.level` is no filter.
    #[error("`log.level` is \"{level}\", which is no log filter")]
    Level {
        /// The value.
        level: String,
        /// What the parser says.
        #[source]
        source: ParseError,
    },
    /// `log.level` has a word that is neither a level nor one of this program's modules: it would mute
    /// everything else.
    #[error("`log.level` is \"{level}\", and \"{word}\" is no level")]
    NoLevel {
        /// The value.
        level: String,
        /// The word.
        word: String,
    },
    /// The log file could not be opened.
    #[error("cannot write logs into {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        #[source]
        source: InitError,
    },
    /// Logs were already set up.
    #[error("logs were set up twice")]
    Twice {
        /// The cause.
        #[source]
        source: TryInitError,
    },
}

impl LoggingError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Level { .. } | Self::NoLevel { .. } => Some(
                "use error, warn, info, debug or trace, or a filter such as \
                 info,chandler_trainer=debug"
                    .to_owned(),
            ),
            Self::Folder { folder, .. } => {
                Some(format!("check the owner and mode of {}", folder.display()))
            }
            Self::Twice { .. } => None,
        }
    }
}

/// A filter takes any word for the name of a module.
fn check_words(level: &str) -> Result<(), LoggingError> {
    let is_known = |word: &&str| {
        word.is_empty()
            || word.contains(['=', '[', ':'])
            || word.starts_with("chandler")
            || word.parse::<LevelFilter>().is_ok()
    };
    match level.split(',').map(str::trim).find(|word| !is_known(word)) {
        None => Ok(()),
        Some(word) => Err(LoggingError::NoLevel { level: level.to_owned(), word: word.to_owned() }),
    }
}

/// Sets up logs for the whole process: the terminal, and `folder` if one is given.
pub fn init(
    config: &LogConfig,
    terminal: &Terminal,
    folder: Option<&Path>,
) -> Result<(), LoggingError> {
    check_words(&config.level)?;
    let filter = || {
        EnvFilter::builder()
            .parse(&config.level)
            .map_err(|source| LoggingError::Level { level: config.level.clone(), source })
    };
    let on_terminal = match config.format {
        LogFormat::Human => fmt::layer()
            .with_writer(terminal.clone())
            .with_ansi(terminal.has_colour())
            .with_target(false)
            .with_timer(LocalTime)
            .with_filter(filter()?)
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(terminal.for_json())
            .with_filter(filter()?)
            .boxed(),
    };
    let in_file = match folder {
        Some(folder) => Some(
            fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(VisibleJson(log_files(config, folder)?))
                .with_filter(filter()?),
        ),
        None => None,
    };
    tracing_subscriber::registry()
        .with(on_terminal)
        .with(in_file)
        .try_init()
        .map_err(|source| LoggingError::Twice { source })
}

fn log_files(config: &LogConfig, folder: &Path) -> Result<RollingFileAppender, LoggingError> {
    let rotation = match config.rotation {
        LogRotation::Daily => Rotation::DAILY,
        LogRotation::Hourly => Rotation::HOURLY,
        LogRotation::Never => Rotation::NEVER,
    };
    RollingFileAppender::builder()
        .rotation(rotation)
        .filename_prefix("chandler")
        .filename_suffix("jsonl")
        .max_log_files(config.keep_files)
        .build(folder)
        .map_err(|source| LoggingError::Folder { folder: folder.to_owned(), source })
}

/// Writes lines of JSON in which nothing acts on a terminal that shows them.
struct VisibleJson<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for VisibleJson<M> {
    type Writer = VisibleJson<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        VisibleJson(self.0.make_writer())
    }
}

/// A line comes in one piece.
impl<W: Write> Write for VisibleJson<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(visible_json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The local time of day.
struct LocalTime;

impl FormatTime for LocalTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", jiff::ZonedDateTime::now().strftime("%H:%M:%S"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_named() {
        for good in ["info", "WARN", "off", "info,chandler_trainer=debug", "chandler_cli", ""] {
            assert!(check_words(good).is_ok(), "{good}");
        }
        for (bad, word) in [("verbose", "verbose"), ("info, quiet", "quiet")] {
            let words = check_words(bad).unwrap_err().to_string();
            assert_eq!(words, format!("`log.level` is \"{bad}\", and \"{word}\" is no level"));
        }
    }
}
