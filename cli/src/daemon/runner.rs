//! The seam between the daemon and the engine: what it asks of whoever trains.

use chandler_daemon_lock::{Lock, LockError};

use crate::alerts::{self, Alert, RunAlerts};
use crate::config::Config;
use crate::daemon::controls::Controls;
use crate::exit::Exit;
use crate::export::EventFile;
use crate::failure::said_once;
use crate::logging::{Progress, StepProgress};
use crate::queue::{BadLine, ClaimedJob};
use crate::store::{EvalRow, EvalSample, StepRow, Store, StoreError};

/// Whoever learns from a file.
pub trait JobRunner {
    /// Reads the file through and says what the run will take, before anything is changed.
    fn validate(
        &mut self,
        job: &ClaimedJob,
        context: &mut RunContext<'_>,
    ) -> Result<JobEstimate, JobError>;

    /// Learns from the file. Between steps it looks at `context.controls`: it waits while paused,
    /// evaluates when asked to, and on a stop leaves a checkpoint and returns
    /// [`JobOutcome::Stopped`]. A job that was stopped or cut off before goes on from its newest
    /// good checkpoint.
    fn run(
        &mut self,
        job: &ClaimedJob,
        context: &mut RunContext<'_>,
    ) -> Result<JobOutcome, JobError>;

    /// Lets go of what a job that will not be gone on with left behind (it was skipped, or failed
    /// for good), so that the next one starts from the newest finished model.
    fn discard(&mut self, job: &ClaimedJob) -> Result<(), JobError>;

    /// Removes old checkpoints and snapshots, and makes the day's snapshot, after a finished job.
    fn tidy(&mut self) -> Result<(), JobError>;

    /// Nothing waits any more: gives memory back that lies idle.
    fn rest(&mut self);
}

/// What a runner works with besides the job.
pub struct RunContext<'a> {
    /// The resolved configuration.
    pub config: &'a Config,
    /// The database; steps, evaluations and events go there.
    pub store: &'a mut Store,
    /// The terminal's progress line.
    pub progress: &'a Progress,
    /// Stop, pause and evaluate-now.
    pub controls: &'a Controls,
    /// The lock of the state directory.
    pub lock: &'a Lock,
    /// What is watched of the run.
    pub alerts: RunAlerts,
    /// The job.
    pub job_id: i64,
    /// The run.
    pub run_id: i64,
    /// Its event file for TensorBoard, where one is asked for.
    pub events: Option<EventFile>,
}

impl RunContext<'_> {
    /// An error where the state directory is not ours any more; a run asks before it records a
    /// step, and ends without recording anything.
    pub fn still_ours(&self) -> Result<(), LockError> {
        self.lock.still_ours()
    }

    /// Records a step, and shows it on the terminal and in `status`.
    pub fn step(&mut self, row: &StepRow, progress: &StepProgress) -> Result<(), StoreError> {
        self.store.record_step(self.run_id, row)?;
        if let Some(events) = &mut self.events {
            events.step(row);
        }
        self.controls.set_progress(progress);
        self.progress.step(progress);
        let alerts = self.alerts.step(row);
        self.controls.set_usual_step(self.alerts.usual_step());
        alerts.iter().try_for_each(|alert| self.alert(alert))
    }

    /// Records an evaluation and its samples.
    pub fn evaluated(&mut self, row: &EvalRow, samples: &[EvalSample]) -> Result<(), StoreError> {
        self.store.record_eval(self.run_id, row, samples)?;
        if let Some(events) = &mut self.events {
            events.evaluated(row, samples);
        }
        let alerts = self.alerts.evaluation(row);
        alerts.iter().try_for_each(|alert| self.alert(alert))
    }

    /// Logs and records an alert.
    pub fn alert(&self, alert: &Alert) -> Result<(), StoreError> {
        alerts::record(self.store, Some(self.job_id), Some(self.run_id), alert)
    }
}

/// What a run will take, as far as it can be told before it starts.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct JobEstimate {
    /// Rows that will be learned from.
    pub rows: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Seconds, where a speed is known.
    pub seconds: Option<f64>,
    /// The memory plan.
    pub plan: Option<serde_json::Value>,
}

/// How a run ended, if not with an error.
#[derive(Debug, Clone, PartialEq)]
pub enum JobOutcome {
    /// The file was learned from; the report goes to the database.
    Finished {
        /// Steps, losses, where the model lies: whatever is worth keeping.
        report: serde_json::Value,
    },
    /// The run ended because the stop flag was set, and left a checkpoint.
    Stopped {
        /// The last step that was finished.
        step: u64,
    },
}

/// Whose fault an error is, and so what becomes of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Fault {
    /// The file's: it goes to `failed/` at once, since trying again would change nothing.
    File,
    /// Unclear: the job is tried again, as often as `daemon.max_attempts` says.
    Attempt,
    /// The machine's or the configuration's: the job keeps its place and the daemon ends with this
    /// exit code.
    Setup(Exit),
}

/// Why a file was not learned from.
#[derive(Debug)]
pub struct JobError {
    /// Whose fault it is.
    pub fault: Fault,
    /// What happened, with its causes.
    pub error: anyhow::Error,
    /// What to do about it.
    pub hint: Option<String>,
    /// The lines of the file that cannot be used.
    pub bad_lines: Vec<BadLine>,
}

impl JobError {
    /// An error without lines.
    pub fn new(fault: Fault, error: impl Into<anyhow::Error>, hint: Option<String>) -> Self {
        Self { fault, error: error.into(), hint, bad_lines: Vec::new() }
    }

    /// What happened, then what caused it, and so on, each said once.
    pub fn chain(&self) -> Vec<String> {
        said_once(self.error.as_ref())
    }
}

impl From<StoreError> for JobError {
    /// A database that does not answer is no fault of the file.
    fn from(error: StoreError) -> Self {
        let hint = error.hint();
        Self::new(Fault::Setup(Exit::Error), error, hint)
    }
}
