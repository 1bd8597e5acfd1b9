//! What becomes of a job and its file when an attempt is over.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use super::job_loop::{DaemonError, JobLoop, Tally};
use super::runner::{Fault, JobError, JobOutcome};
use super::stop::StopReason;
use crate::failure::in_one_line;
use crate::queue::{self, ClaimedJob, FailureReport, QueueError};
use crate::store::{Forgotten, Job, JobState, RunState, StoreError};

impl JobLoop<'_> {
    /// Of an attempt that was begun. Here as below, the job, its run and the event change together or
    /// not at all.
    pub(super) fn settle(
        &mut self,
        claimed: &ClaimedJob,
        result: Result<JobOutcome, JobError>,
        tally: &mut Tally,
    ) -> Result<(), DaemonError> {
        let (job, run) = (&claimed.job, claimed.run_id);
        match result {
            Ok(JobOutcome::Finished { report }) => {
                self.store.all_or_none(|| {
                    let job = queue::archive(self.state, self.store, job, &report)?;
                    self.store.end_run(run, RunState::Done, None)?;
                    self.note("done", &job, Some(run), "was learned from")
                })?;
                tally.done += 1;
                self.tidy();
                Ok(())
            }
            Ok(JobOutcome::Stopped { step }) => self.settle_stopped(claimed, step, tally),
            Err(error) => self.settle_error(claimed, error, tally),
        }
    }

    /// Of a claim that came to nothing.
    pub(super) fn settle_unclaimed(
        &self,
        job: &Job,
        error: QueueError,
        tally: &mut Tally,
    ) -> Result<(), DaemonError> {
        let at = |path: &Path| Job { path: path.to_owned(), ..job.clone() };
        match &error {
            QueueError::Stopped { path, .. } if self.is_skipped() => {
                let job = at(path);
                let report = queue::skipped(&job);
                self.store.all_or_none(|| self.give_up(&job, None, &report, JobState::Skipped))?;
                tally.skipped += 1;
                Ok(())
            }
            // It keeps its place in the queue.
            QueueError::Stopped { .. } => Ok(()),
            QueueError::Vanished { path, .. } | QueueError::Refused { path, .. } => {
                let job = at(path);
                let report = FailureReport {
                    errors: vec![error.to_string()],
                    hint: error.hint(),
                    ..FailureReport::about(&job)
                };
                self.store.all_or_none(|| self.give_up(&job, None, &report, JobState::Failed))?;
                tally.failed += 1;
                Ok(())
            }
            _ => Err(error.into()),
        }
    }

    fn is_skipped(&self) -> bool {
        self.controls.stop().requested() == Some(StopReason::Skip)
    }

    fn settle_stopped(
        &mut self,
        claimed: &ClaimedJob,
        step: u64,
        tally: &mut Tally,
    ) -> Result<(), DaemonError> {
        let (job, run) = (&claimed.job, claimed.run_id);
        if self.is_skipped() {
            self.store.all_or_none(|| {
                self.store.end_run(run, RunState::Skipped, None)?;
                self.give_up(job, Some(run), &queue::skipped(job), JobState::Skipped)
            })?;
            self.discard(claimed);
            tally.skipped += 1;
            return Ok(());
        }
        self.store.all_or_none(|| {
            self.store.end_run(run, RunState::Stopped, None)?;
            let job = queue::put_back(self.store, job, uncounted(job))?;
            let message = format!("stopped after step {step}; goes on next time");
            self.note("stopped", &job, Some(run), &message)
        })
    }

    fn settle_error(
        &mut self,
        claimed: &ClaimedJob,
        error: JobError,
        tally: &mut Tally,
    ) -> Result<(), DaemonError> {
        let (job, run) = (&claimed.job, claimed.run_id);
        let chain = error.chain();
        let (words, most) = (chain.join(": "), self.config.daemon.max_attempts);
        let end_run = || self.store.end_run(run, RunState::Failed, Some(&words));
        match error.fault {
            Fault::Setup(exit) => {
                self.store.all_or_none(|| {
                    end_run()?;
                    let job = queue::put_back(self.store, job, uncounted(job))?;
                    self.note("put_back", &job, Some(run), &words)
                })?;
                Err(DaemonError::Setup {
                    job_id: job.id,
                    file_name: job.file_name.clone(),
                    exit,
                    hint: error.hint,
                    source: error.error.into(),
                })
            }
            Fault::Attempt if job.attempts < most => self.store.all_or_none(|| {
                end_run()?;
                let job = queue::put_back(self.store, job, job.attempts)?;
                let message = format!("attempt {} of {most} failed: {words}", job.attempts);
                self.note("attempt_failed", &job, Some(run), &message)
            }),
            Fault::Attempt | Fault::File => {
                let report = FailureReport {
                    errors: chain,
                    hint: error.hint,
                    bad_lines: error.bad_lines,
                    ..FailureReport::about(job)
                };
                self.store.all_or_none(|| {
                    end_run()?;
                    self.give_up(job, Some(run), &report, JobState::Failed)
                })?;
                self.discard(claimed);
                tally.failed += 1;
                Ok(())
            }
        }
    }

    /// Within [`Store::all_or_none`](crate::store::Store::all_or_none).
    fn give_up(
        &self,
        job: &Job,
        run_id: Option<i64>,
        report: &FailureReport,
        state_after: JobState,
    ) -> Result<(), DaemonError> {
        let job = queue::fail(self.state, self.store, job, report, state_after)?;
        let message = format!("{} (see {})", report.errors.join(": "), job.path.display());
        self.note(state_after.as_str(), &job, run_id, &message)
    }

    /// What is old and stays too long is a smaller evil than a daemon that ends.
    fn tidy(&mut self) {
        if let Err(error) = self.runner.tidy() {
            tracing::warn!("old checkpoints stay for now: {}", error.chain().join(": "));
        }
        match self.forget() {
            Ok(Forgotten { runs: 0, events: 0 }) => {}
            Ok(Forgotten { runs, events }) => tracing::info!(
                "deleted the steps and answers of {runs} old runs, and {events} events \
                 (daemon.keep_days)"
            ),
            Err(error) => {
                tracing::warn!("old steps and events stay for now: {}", in_one_line(&error));
            }
        }
    }

    fn forget(&self) -> Result<Forgotten, StoreError> {
        let hours = 24 * self.config.daemon.keep_days as i64;
        match self.clock.now(Timestamp::now()).checked_sub(SignedDuration::from_hours(hours)) {
            Ok(moment) if hours > 0 => self.store.forget_before(moment),
            _ => Ok(Forgotten::default()),
        }
    }

    fn discard(&mut self, job: &ClaimedJob) {
        if let Err(error) = self.runner.discard(job) {
            tracing::warn!("traces of job {} stay: {}", job.job.id, error.chain().join(": "));
        }
    }
}

/// The attempts of a job without the one that is ending.
fn uncounted(job: &Job) -> u64 {
    job.attempts.saturating_sub(1)
}
