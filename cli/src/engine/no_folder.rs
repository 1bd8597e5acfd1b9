//! A model that is named as a folder of this machine, where there is none: nobody else is asked for it.

use std::path::{Path, PathBuf};

use chandler_model::hub::ModelSource;

use super::EngineError;
use super::snapshots::newest_snapshot;
use super::source::cached_model_folder;
use crate::config::Config;
use crate::state_dir::{CONFIG_NAME, StateDir};

/// Why a name is that of no model.
#[derive(Debug, thiserror::Error)]
pub enum NoFolder {
    /// It is empty.
    #[error("the name of the model is empty")]
    Empty,
    /// Nothing is there.
    #[error("there is no folder {}", .0.display())]
    Missing(PathBuf),
    /// It is the place of a state directory's model.
    #[error("the state directory {} has no model{}", state.root().display(),
        if snapshot.is_none() { " yet: no job has been done" } else { "" })]
    NoModelYet {
        /// The state directory.
        state: StateDir,
        /// Its newest snapshot, where it had a model once.
        snapshot: Option<String>,
    },
}

impl NoFolder {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing(path) if path.starts_with("~") => {
                "write the path of the home folder out: nobody replaces the ~ here".to_owned()
            }
            Self::Missing(path) => match first_part(path) {
                Some(part) => format!(
                    "check the path; {} is taken for the id of a model on the hub where no folder \
                     {part} lies in the current one",
                    path.display()
                ),
                None => "check the path; a model on the hub is named OWNER/NAME".to_owned(),
            },
            Self::NoModelYet { state, snapshot } => {
                let root = state.root().display();
                match snapshot {
                    Some(name) => format!("`chandler rollback {name} --dir {root}` puts one there"),
                    None => format!(
                        "`chandler run --dir {root}` makes one of the files in its inbox; `chandler \
                         config show --dir {root}` says which model it begins from"
                    ),
                }
            }
            Self::Empty => {
                "name a folder in Hugging Face format, or a model on the hub as OWNER/NAME"
                    .to_owned()
            }
        }
    }
}

/// The folder of the current one that a name begins with which may be one of the hub.
fn first_part(name: &Path) -> Option<&str> {
    let text = name.to_str()?;
    let (first, _) = text
        .split_once('/')
        .filter(|_| matches!(ModelSource::parse(text), ModelSource::Hub { .. }))?;
    Path::new(first).is_dir().then_some(first)
}

fn missing(path: &Path) -> NoFolder {
    if let Some(root) =
        path.parent().filter(|_| path.file_name().is_some_and(|name| name == "model"))
        && root.join(CONFIG_NAME).is_file()
    {
        let state = StateDir::choose(Some(root), Path::new(""));
        let snapshot = newest_snapshot(&state);
        return NoFolder::NoModelYet { state, snapshot };
    }
    NoFolder::Missing(path.to_owned())
}

/// Where the model of this name is looked for, unless it is a folder that is not there.
pub(super) fn source_of(text: &str) -> Result<ModelSource, NoFolder> {
    if text.trim().is_empty() {
        return Err(NoFolder::Empty);
    }
    match ModelSource::parse(text) {
        ModelSource::Folder(folder) if !folder.exists() => Err(missing(&folder)),
        source => Ok(source),
    }
}

/// Refuses what is no folder and would be looked for on the hub, although a folder of its owner's name
/// lies here; a model that the hub's cache has is meant all the same.
pub(super) fn refuse_lookalike(config: &Config) -> Result<(), EngineError> {
    let name = config.model.path.as_ref().map_or(Path::new(""), |path| Path::new(&path.0));
    match first_part(name) {
        Some(_) if cached_model_folder(config).is_err() => Err(missing(name).into()),
        _ => Ok(()),
    }
}
