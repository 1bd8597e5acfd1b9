//! Why a model did not get to the hub.

use std::io;
use std::path::PathBuf;

use crate::ModelError;

/// Why a model did not get to the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// Something else than `owner/name`.
    #[error("{id:?} is no name of a repository on the hub")]
    BadId {
        /// What was given.
        id: String,
    },
    /// Nobody said who pushes.
    #[error("no token for the hub was found")]
    NoToken,
    /// `HF_HUB_OFFLINE` is set.
    #[error("HF_HUB_OFFLINE is set")]
    Offline,
    /// The folder has no file of a model.
    #[error("{} has no file of a model", folder.display())]
    NothingThere {
        /// The folder.
        folder: PathBuf,
    },
    /// A small file that is too large to stand in a commit.
    #[error("{file} is too large to be kept as a small file")]
    TooLarge {
        /// The file's name.
        file: String,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file that does not belong to the folder.
    #[error(transparent)]
    Folder(#[from] ModelError),
    /// No answer.
    #[error("the hub cannot be reached for {id}: {source}")]
    Unreachable {
        /// The repository.
        id: String,
        /// What the client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// 401: the token is not known.
    #[error("the hub does not know this token")]
    UnknownToken,
    /// 403: the token may not do that.
    #[error("the hub does not let this token write to {id}: {said}")]
    Forbidden {
        /// The repository.
        id: String,
        /// The hub's words.
        said: String,
    },
    /// 404: there is no such thing.
    #[error("the hub has no {id}, or does not show it to this token")]
    NotFound {
        /// The repository.
        id: String,
    },
    /// Any other refusal.
    #[error("the hub answers {status} for {id}: {said}")]
    Answered {
        /// The repository.
        id: String,
        /// The status.
        status: u16,
        /// The hub's words.
        said: String,
    },
    /// An answer that is not understood.
    #[error("the hub's answer for {id} is not understood: {reason}")]
    BadAnswer {
        /// The repository.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl PushError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::BadId { .. } => "write it as owner/name, of letters, digits, -, _ and .",
            Self::NoToken => {
                "set HF_TOKEN to a token that may write \
                 (https://huggingface.co/settings/tokens), or log in with `hf auth login`"
            }
            Self::Offline => "unset HF_HUB_OFFLINE",
            Self::NothingThere { .. } => {
                "name a folder with config.json and safetensors with --model"
            }
            Self::TooLarge { .. } => {
                "a .gitattributes in the repository that keeps such files by LFS lets it through"
            }
            Self::Read { .. } => "check that the file is there and readable by this user",
            Self::Folder(error) => return error.hint(),
            Self::Unreachable { .. } => {
                "check the network and HF_ENDPOINT; what was uploaded is not uploaded again"
            }
            Self::UnknownToken => {
                "check HF_TOKEN, or make a new one: https://huggingface.co/settings/tokens"
            }
            Self::Forbidden { .. } => {
                "take a token that may write, and check the owner in the repository's name"
            }
            Self::NotFound { .. } => "check the spelling; a token sees what its owner may see",
            Self::Answered { status: 409 | 412, .. } => {
                "somebody else has changed the repository meanwhile: push again"
            }
            Self::Answered { status: 429 | 500.., .. } => "try again later",
            Self::Answered { .. } | Self::BadAnswer { .. } => {
                "check HF_ENDPOINT: it must be a hub's address"
            }
        };
        Some(hint.to_owned())
    }
}
