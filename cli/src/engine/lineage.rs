//! Which model the next job begins from: the newest, and the base model only where there was none yet.

use std::path::PathBuf;

use chandler_durable::is_there;

use super::EngineError;
use super::snapshots::newest_snapshot;
use crate::config::Config;
use crate::state_dir::StateDir;
use crate::store::Store;

/// Jobs were learned, and the model that came of them is not in its place. To begin from the base model
/// then would be to forget them without a word.
#[derive(Debug, thiserror::Error)]
#[error("{jobs} {} learned from, and the model that came of {} is gone: there is no {}",
    if *jobs == 1 { "job was" } else { "jobs were" },
    if *jobs == 1 { "it" } else { "them" },
    state.model().join("config.json").display())]
pub struct LostModel {
    state: StateDir,
    /// How many were learned from.
    jobs: u64,
    snapshot: Option<String>,
    /// `model.path`.
    base: Option<String>,
}

impl LostModel {
    /// How to go on with what was learned, or to start anew.
    pub fn hint(&self) -> String {
        let model = self.state.model();
        let back = match &self.snapshot {
            Some(name) => format!(
                "`chandler rollback {name} --dir {}` goes on from the newest snapshot",
                self.state.root().display()
            ),
            None => format!("there is no snapshot: put the folder back to {}", model.display()),
        };
        format!("{back}; to start anew, {}", anew(self.base.as_deref()))
    }
}

/// What starts anew, which a state directory that has learned does not.
fn anew(base: Option<&str>) -> String {
    let base = base.unwrap_or("MODEL");
    format!("make another state directory: `chandler init --dir NEW --model {base}`")
}

/// The newest model's folder, `None` where nothing was learned yet.
pub(super) fn newest(
    state: &StateDir,
    store: &Store,
    config: &Config,
) -> Result<Option<PathBuf>, EngineError> {
    let newest = state.model();
    if is_there(&newest.join("config.json"))? {
        return Ok(Some(newest));
    }
    match store.jobs_learned()? {
        0 => Ok(None),
        jobs => Err(EngineError::Lost(Box::new(LostModel {
            state: state.clone(),
            jobs,
            snapshot: newest_snapshot(state),
            base: config.model.path.as_ref().map(|path| path.0.clone()),
        }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;
    use crate::store::{JobState, NewJob, RunState};

    #[test]
    fn a_model_that_is_gone_is_not_taken_for_one_that_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        state.init("").unwrap();
        let store = Store::open(&state.database()).unwrap();
        let found = || newest(&state, &store, &Config::default());
        assert_eq!(found().unwrap(), None);
        let path = state.processing().join("a.jsonl");
        let new =
            NewJob { file_name: "a.jsonl", path: &path, size_bytes: 1, priority: Priority::Normal };
        let job = store.enqueue(&new).unwrap().id;
        let run = store.begin_run(Some(job), 1, &Config::default()).unwrap();
        assert_eq!(found().unwrap(), None, "it is not over");
        store.end_run(run, RunState::Done, None).unwrap();
        store.settle(job, JobState::Done, &path, &serde_json::Value::Null).unwrap();
        for name in ["2026-01-02", "2026-01-10", "notes"] {
            std::fs::create_dir(state.snapshots().join(name)).unwrap();
        }
        let error = found().unwrap_err();
        let text = format!("{error}\n{}", error.hint().unwrap());
        assert!(text.contains("1 job was learned from") && text.contains("2026-01-10"), "{text}");
        // It is counted on, whatever becomes of the job.
        store.reset_job(job, &path).unwrap();
        assert!(found().is_err());
        std::fs::create_dir(state.model()).unwrap();
        chandler_durable::write(&state.model().join("config.json"), b"{}").unwrap();
        assert_eq!(found().unwrap(), Some(state.model()));
    }
}
