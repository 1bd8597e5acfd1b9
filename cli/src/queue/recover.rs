//! After a crash: whatever was being worked on goes back to the queue.
//!
//! Called while the state directory's lock is held, so nobody else is working.

use std::fs::File;
use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, RealFs};

use super::claim::{ClaimTerms, hash, job_of_place, place_in_processing};
use super::error::QueueError;
use super::mark::report_of_model;
use super::names::move_to_place;
use super::refusal::open_itself;
use super::report::FailureReport;
use super::settle;
use crate::priority::Priority;
use crate::state_dir::StateDir;
use crate::store::{Job, JobState, Store, StoreError};

/// What recovery found and did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Jobs that were being worked on and are queued again.
    pub requeued: Vec<Job>,
    /// Jobs whose last allowed attempt was cut off.
    pub given_up: Vec<Job>,
    /// Jobs that were over, but for their entry in the database.
    pub settled: Vec<Job>,
    /// Files without a job that went back to the inbox, where they are found anew.
    pub returned: Vec<PathBuf>,
    /// Leftovers of interrupted writes that were removed.
    pub swept: Vec<PathBuf>,
}

/// Puts the queue in order after a process that ended without a word.
///
/// Cut-off attempts count that ended at the same place: three power cuts in a long run are no fault
/// of the file, while a file that kills the process at the same step three times is given up. One
/// that got further than those before it is the first at its place.
pub fn recover(
    state: &StateDir,
    store: &Store,
    max_attempts: u64,
) -> Result<Recovered, QueueError> {
    let mut recovered = Recovered::default();
    for folder in [
        state.root().to_owned(),
        state.inbox(Priority::High),
        state.inbox(Priority::Normal),
        state.inbox(Priority::Low),
        state.processing(),
        state.done(),
        state.failed(),
        state.cache(),
        state.snapshots(),
    ] {
        recovered.swept.extend(durable::sweep_temporaries(&RealFs, &folder)?);
    }
    for job in store.jobs_in(JobState::Running)? {
        recover_job(state, store, job, max_attempts, &mut recovered)?;
    }
    store.mark_crashed_runs()?;
    return_orphans(state, store, &mut recovered)?;
    Ok(recovered)
}

fn recover_job(
    state: &StateDir,
    store: &Store,
    job: Job,
    max_attempts: u64,
    recovered: &mut Recovered,
) -> Result<(), QueueError> {
    if !durable::is_there(&job.path)? {
        if let Some(settled) = finish_settlement(state, store, &job)? {
            recovered.settled.push(settled);
            return Ok(());
        }
        if let Some(report) = report_of_model(state, &job, &sha256_of(&job))? {
            // Somebody took it away while it was learned from.
            recovered.settled.push(settle::archive(state, store, &job, &report)?);
            return Ok(());
        }
        let report = cut_off(&job, "its file is gone from processing/");
        recovered.given_up.push(settle::fail(state, store, &job, &report, JobState::Failed)?);
        return Ok(());
    }
    if store.last_attempt_made_progress(job.id)? {
        // The first that ended at this place, even where one is all that there may be.
        let attempts = max_attempts.saturating_sub(1).min(1);
        recovered.requeued.push(settle::put_back(store, &job, attempts)?);
    } else if job.attempts < max_attempts {
        recovered.requeued.push(settle::put_back(store, &job, job.attempts)?);
    } else if let Some(report) = report_of_model(state, &job, &sha256_of(&job))? {
        // It ended after its model was in place.
        recovered.settled.push(settle::archive(state, store, &job, &report)?);
    } else {
        let report = cut_off(&job, "the process ended without a word while it was learned from");
        recovered.given_up.push(settle::fail(state, store, &job, &report, JobState::Failed)?);
    }
    Ok(())
}

fn sha256_of(job: &Job) -> String {
    job.sha256.clone().unwrap_or_default()
}

/// The job of a number, where there is one: a database that does not answer is no "there is none".
fn known(store: &Store, id: i64) -> Result<Option<Job>, QueueError> {
    match store.job(id) {
        Ok(job) => Ok(Some(job)),
        Err(StoreError::NoSuchJob { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where the file had been moved to `done/` or `failed/` already, the database follows.
fn finish_settlement(
    state: &StateDir,
    store: &Store,
    job: &Job,
) -> Result<Option<Job>, QueueError> {
    if let Some(place) = moved_to(&state.done(), store, job)? {
        let report = report_of_model(state, job, &sha256_of(job))?.unwrap_or_default();
        return Ok(Some(store.settle(job.id, JobState::Done, &place, &report)?));
    }
    if let Some(place) = moved_to(&state.failed(), store, job)? {
        let report = cut_off(job, "the process ended while the file was put into failed/");
        let report = serde_json::to_value(report).unwrap_or_default();
        return Ok(Some(store.settle(job.id, JobState::Failed, &place, &report)?));
    }
    Ok(None)
}

/// The file of `job` in `folder`: it has the same bytes, and no other job has it.
fn moved_to(folder: &Path, store: &Store, job: &Job) -> Result<Option<PathBuf>, QueueError> {
    let failed = |source| QueueError::List { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let metadata = entry.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() != job.size_bytes || store.has_job_at(&path)? {
            continue;
        }
        let file =
            File::open(&path).map_err(|source| QueueError::Read { path: path.clone(), source })?;
        let terms = ClaimTerms { max_bytes: u64::MAX, stop: &|| false };
        if job.sha256.as_deref() == Some(&hash(file, job, &path, &terms)?) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Whether the file at `path` is, byte for byte, what lies under the name that `job` has in the
/// inbox: by now that may be another file.
fn has_the_bytes_of(path: &Path, job: &Job) -> Result<bool, QueueError> {
    let read = |path: &Path, source| QueueError::Read { path: path.to_owned(), source };
    let ours = File::open(path).map_err(|source| read(path, source))?;
    let Ok(theirs) = open_itself(&job.path) else { return Ok(false) };
    let shape = |file: &File, path: &Path| {
        let metadata = file.metadata().map_err(|source| read(path, source))?;
        Ok::<_, QueueError>((metadata.is_file(), metadata.len()))
    };
    if shape(&ours, path)? != shape(&theirs, &job.path)? {
        return Ok(false);
    }
    let terms = ClaimTerms { max_bytes: u64::MAX, stop: &|| false };
    Ok(hash(ours, job, path, &terms)? == hash(theirs, job, &job.path, &terms)?)
}

fn cut_off(job: &Job, what: &str) -> FailureReport {
    FailureReport {
        errors: vec![what.to_owned()],
        hint: Some(
            "look at the end of the newest file in logs/, and at `dmesg` for a killed process"
                .to_owned(),
        ),
        ..FailureReport::about(job)
    }
}

/// Files in `processing/` that a claim or a settlement left between the file system and the
/// database: a queued job gets its file back, anything else goes back to the inbox.
fn return_orphans(
    state: &StateDir,
    store: &Store,
    recovered: &mut Recovered,
) -> Result<(), QueueError> {
    let folder = state.processing();
    let failed = |source| QueueError::List { path: folder.clone(), source };
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let job = job_of_place(&path).map_or(Ok(None), |id| known(store, id))?;
        match job {
            Some(job) if job.path == path => {}
            Some(job) if job.state == JobState::Queued && !durable::is_there(&job.path)? => {
                store.requeue(job.id, &path, job.attempts)?;
            }
            // A copy that was made of a file with further names, which still lies in the inbox.
            Some(job)
                if job.state == JobState::Queued
                    && path == place_in_processing(state, &job)
                    && has_the_bytes_of(&path, &job)? =>
            {
                std::fs::remove_file(&path)
                    .map_err(|source| QueueError::Remove { path: path.clone(), source })?;
            }
            owner => {
                let name = owner.map_or_else(
                    || path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    |job| job.file_name,
                );
                let inbox = state.inbox(Priority::Normal);
                recovered.returned.push(move_to_place(&path, &inbox, &name)?);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::queue::claim;
    use crate::queue::fixture::{Fixture, fixture};
    use crate::store::StepRow;
    use std::collections::BTreeMap;

    const TERMS: ClaimTerms = ClaimTerms { max_bytes: u64::MAX, stop: &|| false };

    impl Fixture {
        /// Claims the job and begins a run that reaches `steps`, as a process that then dies.
        fn die_at(&self, job: &Job, steps: u64) {
            let (job, _) = claim(&self.state, &self.store, job, &TERMS).unwrap();
            let run = self.store.begin_run(Some(job.id), job.attempts, &Config::default()).unwrap();
            for step in 1..=steps {
                let row = StepRow {
                    step,
                    loss: 1.0,
                    grad_norm: 1.0,
                    lr: 0.0,
                    num_tokens: 1,
                    mean_token_accuracy: None,
                    tokens_per_s: None,
                    peak_bytes: None,
                    memory: BTreeMap::new(),
                    layers: vec![],
                };
                self.store.record_step(run, &row).unwrap();
            }
        }
    }

    #[test]
    fn a_file_that_kills_the_process_three_times_is_given_up_with_a_report() {
        let on = fixture();
        let mut job = on.add("a.jsonl", b"{}\n");
        for _ in 0..2 {
            on.die_at(&job, 0);
            let recovered = recover(&on.state, &on.store, 3).unwrap();
            job = recovered.requeued[0].clone();
            assert_eq!(job.state, JobState::Queued);
        }
        on.die_at(&job, 0);
        let recovered = recover(&on.state, &on.store, 3).unwrap();
        assert_eq!(recovered.given_up[0].state, JobState::Failed);
        let report = on.state.failed().join("a.jsonl.report.txt");
        assert!(std::fs::read_to_string(report).unwrap().contains("after 3 attempts"));
    }

    #[test]
    fn a_job_whose_model_is_in_place_is_done_however_often_it_died() {
        let on = fixture();
        let mut job = on.add("a.jsonl", b"{}\n");
        for _ in 0..3 {
            on.die_at(&job, 0);
            job = on.store.job(job.id).unwrap();
            if job.attempts == 3 {
                let extra = super::super::mark::mark(
                    &job,
                    job.sha256.as_deref().unwrap(),
                    &serde_json::json!({ "steps": 5 }),
                );
                let folder = on.state.model();
                durable::SealedFolder::begin(&RealFs, &folder).unwrap().seal(extra).unwrap();
            }
            let recovered = recover(&on.state, &on.store, 3).unwrap();
            assert!(recovered.given_up.is_empty());
            job = on.store.job(job.id).unwrap();
        }
        assert_eq!(job.state, JobState::Done);
        assert!(on.state.done().join("a.jsonl").exists());
    }

    #[test]
    fn a_file_that_was_taken_away_after_it_was_learned_from_was_learned_from() {
        let on = fixture();
        for settles_itself in [true, false] {
            let job = on.add("a.jsonl", b"{}\n");
            on.die_at(&job, 7);
            let job = on.store.job(job.id).unwrap();
            let report = serde_json::json!({ "steps": 7 });
            let extra = super::super::mark::mark(&job, job.sha256.as_deref().unwrap(), &report);
            let folder = on.state.model();
            if folder.exists() {
                durable::remove_folder(&RealFs, &folder).unwrap();
            }
            durable::SealedFolder::begin(&RealFs, &folder).unwrap().seal(extra).unwrap();
            std::fs::remove_file(&job.path).unwrap();
            if settles_itself {
                settle::archive(&on.state, &on.store, &job, &report).unwrap();
            } else {
                assert!(recover(&on.state, &on.store, 3).unwrap().given_up.is_empty());
            }
            let job = on.store.job(job.id).unwrap();
            assert_eq!((job.state, job.report.unwrap()), (JobState::Done, report));
        }
    }

    #[test]
    fn an_attempt_that_got_further_than_before_is_forgiven() {
        let on = fixture();
        let job = on.add("a.jsonl", b"{}\n");
        on.die_at(&job, 5);
        let job = recover(&on.state, &on.store, 3).unwrap().requeued[0].clone();
        assert_eq!(job.attempts, 1, "the first that ended there");
        on.die_at(&job, 5);
        let job = recover(&on.state, &on.store, 3).unwrap().requeued[0].clone();
        assert_eq!(job.attempts, 2, "it got no further than the time before");
        on.die_at(&job, 6);
        let job = recover(&on.state, &on.store, 3).unwrap().requeued[0].clone();
        assert_eq!(job.attempts, 1, "it got further");
        on.die_at(&job, 6);
        let job = recover(&on.state, &on.store, 3).unwrap().requeued[0].clone();
        on.die_at(&job, 6);
        let given_up = recover(&on.state, &on.store, 3).unwrap().given_up;
        assert_eq!(given_up[0].attempts, 3, "the third time at the same step");
    }

    #[test]
    fn a_file_that_was_put_away_before_the_crash_is_settled() {
        let on = fixture();
        for (folder, expected) in
            [(on.state.done(), JobState::Done), (on.state.failed(), JobState::Failed)]
        {
            let job = on.add("a.jsonl", b"{}\n");
            on.die_at(&job, 0);
            let job = on.store.job(job.id).unwrap();
            let place = folder.join("a.jsonl");
            durable::rename_durably(&RealFs, &job.path, &place).unwrap();
            let settled = recover(&on.state, &on.store, 3).unwrap().settled;
            assert_eq!((settled[0].state, &settled[0].path), (expected, &place));
            assert!(recover(&on.state, &on.store, 3).unwrap().settled.is_empty());
        }
    }

    #[test]
    fn a_copy_that_was_made_and_not_claimed_is_made_anew() {
        let on = fixture();
        let job = on.add("a.jsonl", b"{}\n");
        durable::write(&place_in_processing(&on.state, &job), b"{}\n").unwrap();
        let recovered = recover(&on.state, &on.store, 3).unwrap();
        assert!(recovered.returned.is_empty());
        assert!(job.path.exists() && !place_in_processing(&on.state, &job).exists());
    }

    #[test]
    fn a_new_file_under_the_old_name_costs_nobody_theirs() {
        let on = fixture();
        let job = on.add("a.jsonl", b"first\n");
        let ours = place_in_processing(&on.state, &job);
        durable::rename_durably(&RealFs, &job.path, &ours).unwrap();
        durable::write(&job.path, b"other\n").unwrap();
        let recovered = recover(&on.state, &on.store, 3).unwrap();
        let [returned] = &recovered.returned[..] else { panic!("{recovered:?}") };
        assert_eq!(std::fs::read(returned).unwrap(), b"first\n");
        assert_eq!(std::fs::read(&job.path).unwrap(), b"other\n");
    }

    #[test]
    fn a_crash_between_rename_and_database_loses_nothing() {
        let on = fixture();
        let job = on.add("a.jsonl", b"{}\n");
        let ours = on.state.processing().join(format!("{}-a.jsonl", job.id));
        durable::rename_durably(&RealFs, &job.path, &ours).unwrap();
        durable::write(&on.state.processing().join("stranger.jsonl"), b"{}").unwrap();
        let recovered = recover(&on.state, &on.store, 3).unwrap();
        assert_eq!(on.store.job(job.id).unwrap().path, ours);
        assert_eq!(recovered.returned, [on.state.inbox(Priority::Normal).join("stranger.jsonl")]);
        let (claimed, _) =
            claim(&on.state, &on.store, &on.store.job(job.id).unwrap(), &TERMS).unwrap();
        assert_eq!(claimed.path, ours);
    }
}
