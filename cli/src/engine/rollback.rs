//! A snapshot in place of the newest model, and what it replaces as a snapshot of its own.

use std::path::{Path, PathBuf};

use chandler_durable::{
    Broken, RealFs, Verdict, copy_folder, is_there, read_manifest, rename_durably, require_space,
    verify,
};
use chandler_trainer::CHECKPOINT_PREFIX;
use serde::Serialize;

use super::EngineError;
use super::publish::{exchanged, finish_exchange};
use super::snapshots::{bytes_in, names_in};
use crate::state_dir::StateDir;
use crate::store::{Job, JobState, Store};

/// A snapshot, as far as it is known without reading its weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// The job that its model learned from last.
    pub(crate) job: Option<i64>,
    /// Whether it is the model in `model/`.
    pub(crate) in_place: bool,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RolledBack {
    /// The snapshot that stands in `model/` now.
    pub(crate) snapshot: String,
    /// What stood there, by its name in `snapshots/`; `None` where nothing did.
    pub(crate) replaced: Option<String>,
}

/// Why a snapshot was not put in place of the model.
#[derive(Debug, thiserror::Error)]
pub enum NoRollback {
    /// There is none of this name.
    #[error("there is no snapshot {name:?} in {}", state.snapshots().display())]
    NoSnapshot {
        /// The name.
        name: String,
        /// The state directory.
        state: StateDir,
    },
    /// Its files are not those that were sealed.
    #[error("the snapshot {} is damaged: {reason}", folder.display())]
    Damaged {
        /// Where it lies.
        folder: PathBuf,
        /// What is wrong with it.
        reason: Broken,
    },
    /// A job would lose what it has learned so far.
    #[error("job {} ({}) is under way, and has learned from the model in model/", job.id, job.file_name)]
    UnderWay {
        /// The job.
        job: Box<Job>,
        /// The state directory.
        state: StateDir,
    },
}

impl NoRollback {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoSnapshot { state, .. } => {
                format!(
                    "`chandler rollback --dir {}` lists those that there are",
                    state.root().display()
                )
            }
            Self::Damaged { .. } => {
                "take another one: `chandler rollback` without a name lists them".to_owned()
            }
            Self::UnderWay { job, state } => {
                let (id, root) = (job.id, state.root().display());
                format!(
                    "`chandler run --once --dir {root}` brings it to its end; while that works, or \
                     once the job is queued again, `chandler skip {id} --dir {root}` passes over it"
                )
            }
        }
    }
}

/// The snapshots, those with dates first, the newest last.
pub(crate) fn snapshots(state: &StateDir) -> Result<Vec<Snapshot>, EngineError> {
    let newest = read_manifest(&RealFs, &state.model())?.ok();
    let mut names = names_in(&state.snapshots());
    names.sort();
    let mut found = vec![];
    for name in names {
        let folder = state.snapshots().join(&name);
        // What a crash has left half made is none, nor is what lies there otherwise.
        let is_half = name.starts_with('.') || name.ends_with(".next");
        if is_half || !is_there(&folder.join("config.json"))? {
            continue;
        }
        let manifest = read_manifest(&RealFs, &folder)?.ok();
        found.push(Snapshot {
            bytes: bytes_in(&folder),
            job: manifest.as_ref().and_then(|known| known.extra["job_id"].as_i64()),
            in_place: manifest.is_some() && manifest == newest,
            name,
        });
    }
    Ok(found)
}

/// Puts a copy of a snapshot in place of the model, in one step, and the model among the snapshots. The
/// caller holds the lock of the state directory.
pub(crate) fn roll_back(
    state: &StateDir,
    store: &Store,
    name: &str,
) -> Result<RolledBack, EngineError> {
    let place = state.model();
    finish_exchange(&place)?;
    let snapshot = whole(state, name)?;
    if let Some(job) = job_under_way(state, store)? {
        let (job, state) = (Box::new(job), state.clone());
        return Err(NoRollback::UnderWay { job, state }.into());
    }
    require_space(&RealFs, state.root(), bytes_in(&snapshot))?;
    let kept = free_name(state)?;
    // Under the name of what is to be kept: the two are exchanged.
    let staged = state.snapshots().join(&kept);
    copy_folder(&snapshot, &staged)?;
    let replaced = put_in_place(&staged, &place)?.then_some(kept);
    let words = match &replaced {
        Some(kept) => {
            format!("snapshot {name} is the model now; the one before is snapshot {kept}")
        }
        None => format!("snapshot {name} is the model now"),
    };
    store.record_event("rolled_back", None, None, &words, None)?;
    Ok(RolledBack { snapshot: name.to_owned(), replaced })
}

/// The folder of a snapshot whose files are those that were sealed.
fn whole(state: &StateDir, name: &str) -> Result<PathBuf, EngineError> {
    let folder = state.snapshots().join(name);
    let is_name = Path::new(name).file_name().is_some_and(|plain| plain == name);
    if !is_name || !is_there(&folder.join("config.json"))? {
        let (name, state) = (name.to_owned(), state.clone());
        return Err(NoRollback::NoSnapshot { name, state }.into());
    }
    match verify(&RealFs, &folder)? {
        Verdict::Whole(_) => Ok(folder),
        Verdict::Broken(reason) => Err(NoRollback::Damaged { folder, reason }.into()),
    }
}

/// A job that was begun and is not over: its checkpoints are of use with the model that it began from
/// alone.
fn job_under_way(state: &StateDir, store: &Store) -> Result<Option<Job>, EngineError> {
    if let Some(job) = store.jobs_in(JobState::Running)?.pop() {
        return Ok(Some(job));
    }
    let has_checkpoint = |job: &Job| {
        let names = names_in(&state.checkpoints_of(job.id));
        names.iter().any(|name| name.starts_with(CHECKPOINT_PREFIX))
    };
    Ok(store.jobs_in(JobState::Queued)?.into_iter().find(has_checkpoint))
}

/// A name that is no date, so that the daemon never removes what has it.
fn free_name(state: &StateDir) -> Result<String, EngineError> {
    let first = format!("replaced-{}", jiff::ZonedDateTime::now().date());
    let mut name = first.clone();
    let mut number = 1;
    while is_there(&state.snapshots().join(&name))? {
        number += 1;
        name = format!("{first}-{number}");
    }
    Ok(name)
}

/// Exchanges `staged` with what stands at `place`; whether anything stood there.
fn put_in_place(staged: &Path, place: &Path) -> Result<bool, EngineError> {
    if !is_there(place)? {
        rename_durably(&RealFs, staged, place)?;
        return Ok(false);
    }
    if !exchanged(staged, place)? {
        exchange_by_renames(staged, place)?;
    }
    Ok(true)
}

/// For a file system that cannot exchange two names. Cut in two by a crash, this leaves no model, which the
/// next start says, and the snapshots.
fn exchange_by_renames(staged: &Path, place: &Path) -> Result<(), EngineError> {
    let aside = staged.with_extension("next");
    for (from, to) in [(staged, &*aside), (place, staged), (&aside, place)] {
        rename_durably(&RealFs, from, to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_replaced_has_the_name_of_what_replaced_it() {
        type Exchange = fn(&Path, &Path) -> Result<(), EngineError>;
        let at_once: Exchange = |staged, place| put_in_place(staged, place).map(drop);
        for exchange in [at_once, exchange_by_renames] {
            let folder = tempfile::tempdir().unwrap();
            let (place, snapshots) = (folder.path().join("model"), folder.path().join("snapshots"));
            let staged = snapshots.join("replaced-2026-01-02");
            for (place, says) in [(&place, "model"), (&staged, "snapshot")] {
                std::fs::create_dir_all(place).unwrap();
                chandler_durable::write(&place.join("config.json"), says.as_bytes()).unwrap();
            }
            exchange(&staged, &place).unwrap();
            let text = |folder: &Path| std::fs::read_to_string(folder.join("config.json")).unwrap();
            assert_eq!((text(&place), text(&staged)), ("snapshot".into(), "model".into()));
            assert_eq!(names_in(&snapshots).len(), 1);
        }
    }

    #[test]
    fn what_replaces_nothing_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (staged, place) = (folder.path().join("staged"), folder.path().join("model"));
        std::fs::create_dir(&staged).unwrap();
        assert!(!put_in_place(&staged, &place).unwrap());
        assert!(place.exists() && !staged.exists());
    }
}
