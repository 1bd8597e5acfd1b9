//! Talking to a running daemon: one JSON object a line, over a Unix socket.
//!
//! The socket lies in `control/`, a folder that only its owner may enter. Both sides check that it
//! is so, and who is at the other end: the daemon talks to its own user and to root, a command to
//! the folder's owner and to root.

mod client;
mod conversation;
mod peer;
mod protocol;
mod server;
mod socket;

pub use client::ask;
pub(crate) use conversation::answer_text;
pub use protocol::{LiveStatus, Request, Response};
pub use server::{ControlServer, Handler};
pub use socket::Distrust;

use std::io;
use std::path::{Path, PathBuf};

/// Why a daemon could not be talked to, or could not listen.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon is running on {}", state_dir.display())]
    NotRunning {
        /// The state directory.
        state_dir: PathBuf,
    },
    /// The folder of the socket could not be made or closed to others.
    #[error("cannot prepare the folder {} for the control socket", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket could not be listened on.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket is there, but could not be connected to.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon did not answer on {}", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An answer that is not understood.
    #[error("the daemon's answer on {} is not understood", path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl ControlError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRunning { state_dir } => {
                Some(format!("`chandler run --dir {}` starts one", state_dir.display()))
            }
            Self::Folder { path, source } | Self::Listen { path, source } => {
                Some(distrust_hint(path, source))
            }
            Self::Connect { path, source } => {
                Some(distrust_hint(path.parent().unwrap_or(path), source))
            }
            Self::Silent { .. } => {
                Some("`chandler status` says what it is doing; its logs are in logs/".to_owned())
            }
            Self::Garbled { .. } => {
                Some("the daemon may be of another version; stop it with a signal".to_owned())
            }
        }
    }
}

/// What to do about a folder or a socket that cannot be used, of which `folder` is the folder.
fn distrust_hint(folder: &Path, source: &io::Error) -> String {
    let shown = folder.display();
    match source.get_ref().and_then(|inner| inner.downcast_ref::<Distrust>()) {
        Some(Distrust::Open { .. }) => {
            format!("`chmod 700 {shown}` closes it, as the daemon does when it starts")
        }
        Some(Distrust::NoFolder | Distrust::NoSocket) => {
            format!("remove {shown} and start the daemon again, which makes it anew")
        }
        Some(Distrust::Foreign { owner, .. }) => {
            format!("be user {owner}, or use a state directory of your own")
        }
        Some(Distrust::Impostor { .. }) => {
            format!("somebody else put a socket there: look at {shown} before going on")
        }
        None => format!("check the owner and mode of {shown}"),
    }
}
