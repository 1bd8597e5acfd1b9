//! Why an export ended without a file.

use std::io;
use std::path::PathBuf;

use chandler_durable::DurableError;

use crate::exit::Exit;
use crate::store::StoreError;

/// Why something was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no run with this number.
    #[error("there is no run {id}")]
    NoSuchRun {
        /// The number asked for.
        id: i64,
    },
    /// The database did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be written whole.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// Whoever reads does not take what is written.
    #[error("cannot write {}: {source}", to.display())]
    Io {
        /// The file, or `-` for standard output.
        to: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Parquet on a screen.
    #[error("Parquet is no text, and standard output is a terminal")]
    BinaryToTerminal,
}

impl ExportError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchRun { .. } => {
                Some("leave --run away for all runs, or name a job with --job".to_owned())
            }
            Self::Store(error) => error.hint(),
            Self::Durable(error) => error.hint(),
            Self::Io { .. } => None,
            Self::BinaryToTerminal => Some("name a file, or take --format csv".to_owned()),
        }
    }

    /// The code that a command ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoSuchRun { .. } | Self::BinaryToTerminal => Exit::Usage,
            Self::Durable(error) if error.is_out_of_space() => Exit::NoSpace,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Exit::NoSpace,
            _ => Exit::Error,
        }
    }
}

impl From<io::Error> for ExportError {
    fn from(source: io::Error) -> Self {
        Self::Io { to: PathBuf::from("-"), source }
    }
}
