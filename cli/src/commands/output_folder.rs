//! The folder that `chandler train` writes to, and what in it is not to be written over.

use std::path::{Path, PathBuf};

use chandler_daemon_lock::{Lock, LockError, lock_state_dir};
use chandler_durable::{RealFs, create_folder_all};
use chandler_trainer::checkpoint_step;

use crate::engine::EngineError;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::state_dir::{CONFIG_NAME, StateDir};

/// What only a finished run, or whoever else saves a model, leaves in a folder.
const OF_A_MODEL: [&str; 4] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
];

/// What the user allows to happen to an earlier run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Earlier {
    Refused,
    GoneOnWith,
    Overwritten,
}

/// Refuses a folder whose contents somebody needs. `inputs` are the folders that the run reads a model
/// from.
pub(super) fn check(output: &Path, inputs: &[&Path], earlier: Earlier) -> Result<(), Failure> {
    if let Some(state) = state_dir_of(output) {
        let (place, root) = (output.display(), state.display());
        let what = format!("{place} belongs to the state directory {root}");
        let hint = format!(
            "name another folder with --output; `chandler add --dir {root} FILE` has that state \
             directory's model learn from a file"
        );
        return Err(refusal(what, hint));
    }
    if let Some(input) = inputs.iter().find(|input| is_same(input, output)) {
        let what =
            format!("the run would write over the model that it begins from, {}", input.display());
        return Err(refusal(what, "name another folder with --output".to_owned()));
    }
    match found_in(output) {
        Some(found) if earlier == Earlier::Refused => {
            let what = format!("{} holds an earlier run: {found}", output.display());
            let hint = "--resume goes on with it, --overwrite deletes it and begins anew; or name \
                        another folder with --output";
            Err(refusal(what, hint.to_owned()))
        }
        _ => Ok(()),
    }
}

fn refusal(what: String, hint: String) -> Failure {
    Failure::new(Exit::Usage, anyhow::anyhow!(what), Some(hint))
}

/// The state directory that a folder is, or that it is a part of.
fn state_dir_of(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    let folder = folder.canonicalize().unwrap_or(folder);
    let is_one = |root: &Path| root.join(CONFIG_NAME).is_file();
    if is_one(&folder) {
        return Some(folder);
    }
    // What else lies there is the user's.
    let root = folder.ancestors().skip(1).find(|root| is_one(root))?;
    let state = StateDir::choose(Some(root), Path::new("/"));
    state.own_folders().iter().any(|own| folder.starts_with(own)).then(|| root.to_owned())
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// The first trace of a run or of a model.
fn found_in(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    let is_trace = |name: &&std::ffi::OsString| {
        checkpoint_step(&folder.join(name)).is_some()
            || OF_A_MODEL.iter().any(|known| name.as_os_str() == *known)
    };
    names.iter().find(is_trace).map(|name| name.to_string_lossy().into_owned())
}

/// Makes the folder and holds it: two runs must not write to the same one.
pub(super) fn hold(folder: &Path) -> Result<Lock, Failure> {
    create_folder_all(&RealFs, folder).map_err(EngineError::from)?;
    lock_state_dir(folder).map_err(|error| {
        let exit = match error {
            LockError::Held { .. } => Exit::LockHeld,
            _ => Exit::StateDir,
        };
        let hint = error.hint();
        Failure::new(exit, error, hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(output: &Path, inputs: &[&Path], earlier: Earlier) -> Option<String> {
        let refused = check(output, inputs, earlier).err()?;
        assert_eq!(refused.exit, Exit::Usage);
        Some(refused.render(false))
    }

    #[test]
    fn a_run_or_a_model_is_written_over_on_request_alone() {
        for trace in ["checkpoint-3/x", "config.json", "adapter_model.safetensors"] {
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("out");
            assert_eq!(said(&output, &[], Earlier::Refused), None);
            std::fs::create_dir_all(output.join(trace).parent().unwrap()).unwrap();
            std::fs::create_dir(output.join("cache")).unwrap();
            chandler_durable::write(&output.join("lock"), b"").unwrap();
            chandler_durable::write(&output.join(trace), b"").unwrap();
            let words = said(&output, &[], Earlier::Refused).unwrap();
            let (name, _) = trace.split_once('/').unwrap_or((trace, ""));
            assert!(words.contains(name), "{words}");
            assert!(words.contains("--resume") && words.contains("--overwrite"), "{words}");
            for allowed in [Earlier::GoneOnWith, Earlier::Overwritten] {
                assert_eq!(said(&output, &[], allowed), None);
            }
        }
    }

    #[test]
    fn what_is_read_from_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let same = folder.path().join("model/../model");
        for earlier in [Earlier::Refused, Earlier::GoneOnWith, Earlier::Overwritten] {
            assert!(said(&same, &[&model], earlier).unwrap().contains("begins from"));
            assert_eq!(said(&model.join("out"), &[&model], earlier), None);
        }
    }

    #[test]
    fn a_state_directory_is_no_place_for_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let state = StateDir::choose(Some(&root), &root);
        state.init("").unwrap();
        for (name, is_refused) in
            [("", true), ("model", true), ("snapshots/2026-01-01", true), ("out", false)]
        {
            let words = said(&root.join(name), &[], Earlier::Overwritten);
            assert_eq!(words.is_some_and(|words| words.contains("state directory")), is_refused);
        }
    }
}
