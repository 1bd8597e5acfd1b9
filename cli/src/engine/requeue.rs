//! Wrong answers as a new training file (`eval.requeue_wrong`).
//!
//! They are kept beside the checkpoints until the job's model is in its place, and then move into
//! the inbox in one rename: a crash at any point gives one file or none, never two.

use std::path::{Path, PathBuf};

use chandler_durable::{Fs, RealFs, create_folder_all, is_there};

use super::EngineError;
use crate::priority::Priority;
use crate::state_dir::StateDir;
use crate::store::Store;

/// What the names of such files begin with.
const NAME: &str = "wrong-answers-of-job-";

/// Whether a file was made of wrong answers; its own wrong answers are not learned from again.
pub(super) fn is_requeued(file_name: &str) -> bool {
    file_name.starts_with(NAME)
}

fn kept_in(checkpoints: &Path) -> PathBuf {
    checkpoints.join("wrong.jsonl")
}

/// Keeps the records of a job's last evaluation; those of an earlier one are replaced.
pub(super) fn keep_wrong(checkpoints: &Path, records: &[String]) -> Result<(), EngineError> {
    let place = kept_in(checkpoints);
    if records.is_empty() {
        return match RealFs.remove_file(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(EngineError::Write { path: place, source: error })
            }
            _ => Ok(()),
        };
    }
    create_folder_all(&RealFs, checkpoints)?;
    let text: String = records.iter().flat_map(|record| [record.trim(), "\n"]).collect();
    Ok(chandler_durable::write(&place, text.as_bytes())?)
}

/// Puts what was kept for a job into the inbox, behind everything else, unless it was there before.
pub(super) fn requeue(state: &StateDir, store: &Store, job_id: i64) -> Result<(), EngineError> {
    let kept = kept_in(&state.checkpoints_of(job_id));
    if !is_there(&kept)? {
        return Ok(());
    }
    let inbox = state.inbox(Priority::Low);
    // A file of this name may wait there already, or have been put there by somebody.
    let name = |number: u64| match number {
        1 => format!("{NAME}{job_id}.jsonl"),
        number => format!("{NAME}{job_id}-{number}.jsonl"),
    };
    let places = (1..=u64::MAX).map(|number| inbox.join(name(number)));
    let place = chandler_durable::rename_to_free_place(&RealFs, &kept, places)?;
    let words = format!("questions that were answered wrongly wait as {}", place.display());
    tracing::info!("{words}");
    Ok(store.record_event("requeued", Some(job_id), None, &words, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_answers_wait_until_the_job_is_done_and_come_once() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        state.init("").unwrap();
        let store = Store::open(&state.database()).unwrap();
        let job = store
            .enqueue(&crate::store::NewJob {
                file_name: "a.jsonl",
                path: &state.processing().join("a.jsonl"),
                size_bytes: 1,
                priority: Priority::Normal,
            })
            .unwrap()
            .id;
        let checkpoints = state.checkpoints_of(job);
        requeue(&state, &store, job).unwrap();
        keep_wrong(&checkpoints, &["{\"text\": \"a\"}\n".into(), "{}".into()]).unwrap();
        keep_wrong(&checkpoints, &["{\"text\": \"b\"}".into()]).unwrap();
        requeue(&state, &store, job).unwrap();
        requeue(&state, &store, job).unwrap();
        let place = state.inbox(Priority::Low).join(format!("{NAME}{job}.jsonl"));
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "{\"text\": \"b\"}\n");
        assert!(is_requeued(place.file_name().unwrap().to_str().unwrap()));
        keep_wrong(&checkpoints, &["{}".into()]).unwrap();
        keep_wrong(&checkpoints, &[]).unwrap();
        assert!(!kept_in(&checkpoints).exists());
    }
}
