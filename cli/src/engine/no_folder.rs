//! A model that is named as a folder of this machine, where there is none: nobody else is asked for it.

use std::path::{Path, PathBuf};

use chandler_model::hub::ModelSource;

use super::EngineError;
use super::snapshots::newest_snapshot;
use super::source::cached_model_folder;
use crate::config::{Config, ModelPath};
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
    /// What is there is none.
    #[error("{} is no folder", .0.display())]
    NotAFolder(PathBuf),
    /// The folder holds something else.
    #[error("{} holds no model: it has no config.json", .0.display())]
    NoModelIn(PathBuf),
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
            Self::Empty | Self::NotAFolder(_) | Self::NoModelIn(_) => {
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

/// A model's name as a configuration keeps it, as far as it can be checked without a network: a folder
/// by its full path, since `chandler.toml` lies elsewhere; an id as it is.
///
/// An error where it names no model.
pub(crate) fn named_model(text: &str) -> Result<String, EngineError> {
    let ModelSource::Folder(folder) = source_of(text)? else {
        let mut config = Config::default();
        config.model.path = Some(ModelPath(text.to_owned()));
        return refuse_lookalike(&config).map(|()| text.to_owned());
    };
    if !folder.is_dir() {
        return Err(NoFolder::NotAFolder(folder).into());
    }
    if !folder.join("config.json").is_file() {
        return Err(NoFolder::NoModelIn(folder).into());
    }
    let full = folder.canonicalize();
    let full = full.map_err(|source| EngineError::Read { path: folder, source })?;
    Ok(full.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = named_model(text).unwrap_err();
        format!("{error}; {}", error.hint().unwrap())
    }

    #[test]
    fn what_names_no_model_is_refused_without_a_network() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(at("empty")).unwrap();
        chandler_durable::write(Path::new(&at("file")), b"").unwrap();
        // The tests' current folder is the crate's, which has a folder `src`.
        for (text, says) in [
            ("", "is empty"),
            (" ", "is empty"),
            ("./nothere", "there is no folder ./nothere"),
            ("nothere", "OWNER/NAME"),
            ("src/nothere", "no folder src lies in the current one"),
            ("~/x", "home folder"),
            (&at("nothere"), "there is no folder"),
            (&at("empty"), "has no config.json"),
            (&at("file"), "is no folder"),
        ] {
            assert!(refused(text).contains(says), "{}", refused(text));
        }
        assert_eq!(named_model("owner/name").unwrap(), "owner/name");
        assert_eq!(named_model("owner/name@v1").unwrap(), "owner/name@v1");
    }

    #[test]
    fn a_state_directory_without_a_model_is_told_as_such() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("my-model");
        let state = StateDir::choose(Some(&root), Path::new("/"));
        state.init("").unwrap();
        let model = state.model().to_str().unwrap().to_owned();
        assert!(refused(&model).contains("has no model yet: no job has been done"));
        std::fs::create_dir(state.snapshots().join("2026-01-01")).unwrap();
        assert!(refused(&model).contains("chandler rollback 2026-01-01"));
        std::fs::create_dir(state.model()).unwrap();
        chandler_durable::write(&state.model().join("config.json"), b"{}").unwrap();
        let full = state.model().canonicalize().unwrap();
        assert_eq!(named_model(&model).unwrap(), full.to_str().unwrap());
    }
}
