//! Where a job's file goes when an attempt is over.
//!
//! The file moves first and the database follows; `recover` finishes what a crash left in between.

use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, RealFs};

use super::error::QueueError;
use super::names::move_to_place;
use super::report::{FailureReport, remove_beside};
use crate::priority::Priority;
use crate::state_dir::StateDir;
use crate::store::{Job, JobState, Store, StoreError};

/// Puts a file that was learned from into `done/`. One that somebody took away meanwhile was learned from
/// all the same.
pub fn archive(
    state: &StateDir,
    store: &Store,
    job: &Job,
    report: &serde_json::Value,
) -> Result<Job, QueueError> {
    let is_there = durable::is_there(&job.path)?;
    let place = if is_there { move_to(&state.done(), job)? } else { job.path.clone() };
    if !is_there {
        tracing::warn!("job {}: {} is gone, and lies in no done/", job.id, job.path.display());
    }
    Ok(store.settle(job.id, JobState::Done, &place, report)?)
}

/// Puts a file into `failed/` with a report beside it; `state_after` is failed or skipped.
pub fn fail(
    state: &StateDir,
    store: &Store,
    job: &Job,
    report: &FailureReport,
    state_after: JobState,
) -> Result<Job, QueueError> {
    let is_there = durable::is_there(&job.path)?;
    let place = if is_there { move_to(&state.failed(), job)? } else { job.path.clone() };
    if is_there {
        report.write_beside(&place)?;
    }
    let report = serde_json::to_value(report).unwrap_or(serde_json::Value::Null);
    Ok(store.settle(job.id, state_after, &place, &report)?)
}

/// Puts a job back to its place in the queue. Its file stays in `processing/`, so that the next
/// attempt finds the very same bytes; so many `attempts` count from then on.
pub fn put_back(store: &Store, job: &Job, attempts: u64) -> Result<Job, QueueError> {
    Ok(store.requeue(job.id, &job.path, attempts)?)
}

/// Passes over a job that waits in the queue.
pub fn skip_queued(state: &StateDir, store: &Store, id: i64) -> Result<Job, QueueError> {
    let job = store.job(id)?;
    if job.state != JobState::Queued {
        return Err(StoreError::WrongState {
            id,
            found: job.state,
            action: "skipped",
            allowed: &["queued", "running"],
        }
        .into());
    }
    fail(state, store, &job, &skipped(&job), JobState::Skipped)
}

/// The report of a job that the user passed over.
pub fn skipped(job: &Job) -> FailureReport {
    FailureReport {
        errors: vec!["it was skipped on request".to_owned()],
        ..FailureReport::about(job)
    }
}

/// Queues a failed, skipped or done job again, with its attempts forgotten.
pub fn retry(state: &StateDir, store: &Store, id: i64) -> Result<Job, QueueError> {
    let job = store.job(id)?;
    if !matches!(job.state, JobState::Failed | JobState::Skipped | JobState::Done) {
        return Err(StoreError::WrongState {
            id,
            found: job.state,
            action: "retried",
            allowed: &["failed", "skipped", "done"],
        }
        .into());
    }
    if !durable::is_there(&job.path)? {
        return Err(QueueError::Vanished { id, path: job.path });
    }
    remove_beside(&job.path)?;
    // A run that is over is not gone on with.
    let checkpoints = state.checkpoints_of(id);
    if durable::is_there(&checkpoints)? {
        durable::remove_folder(&RealFs, &checkpoints)?;
    }
    let place = move_to(&state.inbox(job.priority), &job)?;
    Ok(store.reset_job(id, &place)?)
}

/// Moves a job that waits in the queue before or behind others.
pub fn set_priority(store: &Store, id: i64, priority: Priority) -> Result<Job, QueueError> {
    let job = store.job(id)?;
    if job.state != JobState::Queued {
        return Err(StoreError::WrongState {
            id,
            found: job.state,
            action: "given another priority",
            allowed: &["queued"],
        }
        .into());
    }
    Ok(store.set_priority(id, priority)?)
}

fn move_to(folder: &Path, job: &Job) -> Result<PathBuf, QueueError> {
    Ok(move_to_place(&job.path, folder, &job.file_name)?)
}
