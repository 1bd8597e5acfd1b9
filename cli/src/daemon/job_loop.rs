//! Claim, validate, run, settle: the daemon's loop around a [`JobRunner`].

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime};

use chandler_daemon_lock::{Lock, LockError};

use crate::alerts::RunAlerts;
use crate::config::Config;
use crate::daemon::controls::{Controls, CurrentJob};
use crate::daemon::guest::Guest;
use crate::daemon::obstacle::{self, Obstacle, Patience};
use crate::daemon::runner::{Fault, JobError, JobEstimate, JobOutcome, JobRunner, RunContext};
use crate::daemon::steady_clock::SteadyClock;
use crate::daemon::stop::StopReason;
use crate::daemon::when_idle::WhenIdle;
use crate::exit::Exit;
use crate::export::EventFile;
use crate::failure::in_one_line;
use crate::logging::{Progress, duration_in_words};
use crate::queue::{self, ClaimTerms, ClaimedJob, Inbox, QueueError};
use crate::state_dir::StateDir;
use crate::store::{Job, Store, StoreError};
use crate::visible::visible_path;

/// With `--once`, how long a file that does not come to rest holds up the end.
const ONCE_PATIENCE: Duration = Duration::from_secs(10);

/// How long after a job its idle memory is given back.
const RESTS_AFTER: [Duration; 2] = [Duration::ZERO, Duration::from_secs(1)];

/// When the loop ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Never; it ends when asked to.
    Stopped,
    /// When nothing waits any more.
    Empty,
}

/// What a loop did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Tally {
    /// Files learned from.
    pub done: u64,
    /// Files given up.
    pub failed: u64,
    /// Files passed over on request.
    pub skipped: u64,
}

/// Why the loop ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The queue could not be worked on.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The database did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state directory is not ours any more, and may be another process's: nothing was written
    /// after this was found, and the job is left as after a crash.
    #[error("this daemon has lost its state directory and ends, rather than be one of two")]
    Lost(#[from] LockError),
    /// A job cannot be run by this machine or with this configuration; it keeps its place.
    #[error("job {job_id} ({file_name}) cannot be run here")]
    Setup {
        /// The job.
        job_id: i64,
        /// The name the user gave the file.
        file_name: String,
        /// The code that the process ends with.
        exit: Exit,
        /// What to do about it.
        hint: Option<String>,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DaemonError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Queue(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Lost(error) => error.hint(),
            Self::Setup { hint, .. } => hint.clone(),
        }
    }

    /// The code that the process ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Setup { exit, .. } => *exit,
            Self::Queue(_) | Self::Store(_) if obstacle::is_full(self) => Exit::NoSpace,
            Self::Lost(_) => Exit::LockHeld,
            Self::Queue(_) | Self::Store(_) => Exit::Error,
        }
    }
}

/// The daemon at work on one state directory.
pub struct JobLoop<'a> {
    /// The state directory.
    pub state: &'a StateDir,
    /// The resolved configuration.
    pub config: &'a Config,
    /// The lock of the state directory, looked after at each turn.
    pub lock: &'a Lock,
    /// The database.
    pub store: &'a mut Store,
    /// Stop, pause and evaluate-now.
    pub controls: &'a Controls,
    /// The progress line.
    pub progress: &'a Progress,
    /// Whoever learns.
    pub runner: &'a mut dyn JobRunner,
    /// By which what is old is deleted.
    pub clock: SteadyClock,
    /// Whoever uses the model between jobs.
    pub guest: Option<&'a dyn Guest>,
}

impl JobLoop<'_> {
    /// Puts the queue in order after a crash, then works until asked to end or, with
    /// [`Until::Empty`], until nothing waits.
    ///
    /// An obstacle that may pass is waited out, but with [`Until::Empty`]: there somebody waits.
    pub fn work(&mut self, until: Until) -> Result<Tally, DaemonError> {
        let mut tally = Tally::default();
        let mut patience = Patience::default();
        let mut max_attempts = self.config.daemon.max_attempts;
        let mut when_idle = WhenIdle::new(self.state, &self.config.daemon, self.controls);
        loop {
            let worked = self.work_unhindered(until, max_attempts, &mut tally, &mut when_idle);
            let error = match worked {
                Ok(()) => return Ok(tally),
                Err(error) => error,
            };
            let Some(obstacle) = Obstacle::of(&error).filter(|_| until == Until::Stopped) else {
                return Err(error);
            };
            self.wait_out(obstacle, &error, &mut patience);
            if self.controls.stop().requested() == Some(StopReason::Shutdown) {
                return Err(error);
            }
            // What the disk did is no fault of the file that was being worked on.
            max_attempts = u64::MAX;
        }
    }

    fn wait_out(&mut self, obstacle: Obstacle, error: &DaemonError, patience: &mut Patience) {
        let words = in_one_line(error);
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        tracing::error!("waiting, nothing is lost: {words}{hint}");
        self.controls.set_current(None);
        // It was meant for the job that was at work, which begins anew.
        self.controls.stop().forget_skip();
        self.controls.set_waiting(Some(words));
        patience.wait(obstacle, self.state.root(), self.controls);
        self.controls.set_waiting(None);
        // After a failed write a connection may believe what is not on the disk.
        match Store::open(self.store.path()) {
            Ok(store) if !store.is_read_only() => *self.store = store,
            Ok(_) => tracing::warn!("the database can only be read for now"),
            Err(error) => tracing::warn!("the database stays as it is for now: {error}"),
        }
    }

    fn work_unhindered(
        &mut self,
        until: Until,
        max_attempts: u64,
        tally: &mut Tally,
        when_idle: &mut WhenIdle,
    ) -> Result<(), DaemonError> {
        self.recover(max_attempts, tally)?;
        self.controls.set_paused(self.store.is_paused()?);
        let settle = Duration::from_secs_f64(self.config.daemon.settle_seconds);
        let poll = Duration::from_secs_f64(self.config.daemon.poll_seconds);
        let mut inbox = Inbox::new(self.state, settle, self.max_file_bytes());
        let (mut idle_since, mut rests) = (Instant::now(), 0);
        while self.controls.stop().requested() != Some(StopReason::Shutdown) {
            self.lock.still_ours()?;
            let look = inbox.look(self.store, SystemTime::now())?;
            self.tell(&look)?;
            if self.controls.is_paused() {
                if until == Until::Empty {
                    tracing::warn!("paused: `chandler resume` lets it go on");
                    return Ok(());
                }
                self.come_to_rest(idle_since.elapsed(), &mut rests)?;
                self.controls.sleep(poll);
                continue;
            }
            when_idle.tell(self.store)?;
            if let Some(job) = self.take_next()? {
                when_idle.is_busy();
                self.work_on(&job, tally)?;
                (idle_since, rests) = (Instant::now(), 0);
                continue;
            }
            self.come_to_rest(idle_since.elapsed(), &mut rests)?;
            if until == Until::Stopped && look.unsettled.is_empty() {
                when_idle.is_idle(self.store)?;
            }
            if until == Until::Empty
                && (look.unsettled.is_empty() || idle_since.elapsed() > settle + ONCE_PATIENCE)
            {
                for path in look.unsettled {
                    tracing::warn!(
                        "{} is still being written: left in the inbox",
                        visible_path(&path)
                    );
                }
                return Ok(());
            }
            self.controls.sleep(poll);
        }
        Ok(())
    }

    /// Memory that lies idle goes back after the last job, and once more when threads that it left
    /// behind have ended.
    fn come_to_rest(&mut self, idle_for: Duration, rests: &mut usize) -> Result<(), DaemonError> {
        if RESTS_AFTER.get(*rests).is_some_and(|after| idle_for >= *after) {
            *rests += 1;
            self.store.shrink()?;
            self.runner.rest();
        }
        Ok(())
    }

    fn max_file_bytes(&self) -> u64 {
        self.config.limits.max_file.bytes().unwrap_or(u64::MAX)
    }

    fn recover(&mut self, max_attempts: u64, tally: &mut Tally) -> Result<(), DaemonError> {
        let recovered = queue::recover(self.state, self.store, max_attempts)?;
        for job in &recovered.requeued {
            self.note("requeued", job, None, "was being worked on when the process ended")?;
        }
        for job in &recovered.given_up {
            let words = if job.path.exists() {
                "was cut off too often and lies in failed/"
            } else {
                "was cut off, and its file is gone from processing/"
            };
            self.note("failed", job, None, words)?;
            tally.failed += 1;
        }
        for job in &recovered.settled {
            self.note(job.state.as_str(), job, None, "was over when the process ended")?;
        }
        for path in &recovered.returned {
            tracing::warn!("{} was left behind and is back in the inbox", visible_path(path));
        }
        if !recovered.swept.is_empty() {
            tracing::info!("removed {} leftovers of interrupted writes", recovered.swept.len());
        }
        Ok(())
    }

    fn tell(&self, look: &queue::Look) -> Result<(), DaemonError> {
        for job in &look.queued {
            self.note("queued", job, None, "entered the queue")?;
        }
        for (path, refusal) in &look.refused {
            let message = format!("{} {refusal}: {}", visible_path(path), refusal.hint());
            tracing::warn!("{message}");
            self.store.record_event("refused", None, None, &message, None)?;
        }
        Ok(())
    }

    /// The job whose turn it is. From here on a skip finds it at work, and no more in the queue.
    fn take_next(&self) -> Result<Option<Job>, DaemonError> {
        let _queue = self.controls.hold_queue();
        let next = self.store.next_queued()?;
        if let Some(job) = &next {
            self.controls.set_claimed(job.id, &job.file_name);
        }
        Ok(next)
    }

    /// One attempt at one job, from the claim to its settlement.
    fn work_on(&mut self, job: &Job, tally: &mut Tally) -> Result<(), DaemonError> {
        let stop = || {
            self.controls.beat();
            self.controls.stop().is_requested()
        };
        let terms = ClaimTerms { max_bytes: self.max_file_bytes(), stop: &stop };
        let (job, sha256) = match queue::claim(self.state, self.store, job, &terms) {
            Ok(claimed) => claimed,
            Err(error) => {
                let settled = self.settle_unclaimed(job, error, tally);
                self.controls.drop_claim();
                return settled;
            }
        };
        let before = self.store.last_run_of(job.id)?;
        let alerts = RunAlerts::going_on(&self.config.alerts, self.store, before.as_ref())?;
        let run_id = self.store.begin_run(Some(job.id), job.attempts, self.config)?;
        let claimed = ClaimedJob { job, sha256, run_id };
        self.controls.set_current(Some(CurrentJob {
            job_id: claimed.job.id,
            file_name: claimed.job.file_name.clone(),
            run_id,
            phase: "validating".to_owned(),
            progress: None,
        }));
        if let Some(guest) = self.guest {
            guest.leave(&|| self.controls.beat());
        }
        let result = self.attempt(&claimed, alerts);
        self.progress.end();
        self.controls.set_current(None);
        if let Some(guest) = self.guest {
            guest.may_return();
        }
        self.lock.still_ours()?;
        let settled = self.settle(&claimed, result, tally);
        self.controls.stop().forget_skip();
        settled
    }

    /// Validates and runs. A panic of the runner ends the attempt, not the daemon.
    fn attempt(&mut self, job: &ClaimedJob, alerts: RunAlerts) -> Result<JobOutcome, JobError> {
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            let mut context = RunContext {
                config: self.config,
                store: self.store,
                progress: self.progress,
                controls: self.controls,
                lock: self.lock,
                alerts,
                job_id: job.job.id,
                run_id: job.run_id,
                events: EventFile::wanted(self.config, self.state.events_of(job.run_id)),
            };
            let estimate = self.runner.validate(job, &mut context)?;
            if context.controls.stop().is_requested() {
                return Ok(JobOutcome::Stopped { step: 0 });
            }
            announce(job, &estimate);
            if let Some(plan) = &estimate.plan {
                context.store.set_run_plan(job.run_id, plan)?;
            }
            context.controls.set_phase("training");
            context.progress.begin(&job.job.file_name, estimate.steps);
            self.runner.run(job, &mut context)
        }))
        .unwrap_or_else(|panic| Err(panicked(&*panic)))
    }

    /// Records an event and logs it.
    pub(super) fn note(
        &self,
        kind: &str,
        job: &Job,
        run_id: Option<i64>,
        message: &str,
    ) -> Result<(), DaemonError> {
        let line = format!("job {} ({}): {message}", job.id, job.file_name);
        match kind {
            "failed" => tracing::error!(job = job.id, "{line}"),
            "attempt_failed" | "put_back" => tracing::warn!(job = job.id, "{line}"),
            _ => tracing::info!(job = job.id, "{line}"),
        }
        Ok(self.store.record_event(kind, Some(job.id), run_id, message, None)?)
    }
}

fn announce(job: &ClaimedJob, estimate: &JobEstimate) {
    let time = estimate
        .seconds
        .map_or_else(String::new, |seconds| format!(", about {}", duration_in_words(seconds)));
    tracing::info!(
        job = job.job.id,
        run = job.run_id,
        "job {} ({}): {} rows, {} tokens, {} steps{time}",
        job.job.id,
        job.job.file_name,
        estimate.rows,
        estimate.tokens,
        estimate.steps,
    );
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> JobError {
    let what = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned());
    JobError::new(
        Fault::Attempt,
        anyhow::anyhow!("the run panicked: {what}"),
        Some("this is a defect of chandler; please report it with the newest file in logs/".into()),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chandler_daemon_lock::lock_state_dir;
    use serde_json::json;

    use super::*;
    use crate::logging::Terminal;
    use crate::priority::Priority;

    /// Panics in its first runs, as an op in an evaluation might.
    struct Panicking {
        left: u32,
        runs: u32,
    }

    impl JobRunner for Panicking {
        fn validate(
            &mut self,
            _: &ClaimedJob,
            _: &mut RunContext<'_>,
        ) -> Result<JobEstimate, JobError> {
            Ok(JobEstimate::default())
        }

        fn run(&mut self, _: &ClaimedJob, _: &mut RunContext<'_>) -> Result<JobOutcome, JobError> {
            self.runs += 1;
            if self.left > 0 {
                self.left -= 1;
                panic!("in generation, on purpose");
            }
            Ok(JobOutcome::Finished { report: json!({}) })
        }

        fn discard(&mut self, _: &ClaimedJob) -> Result<(), JobError> {
            Ok(())
        }

        fn tidy(&mut self) -> Result<(), JobError> {
            Ok(())
        }

        fn rest(&mut self) {}
    }

    /// What the daemon does with two files whose runner panics so often.
    fn work(panics: u32) -> (Tally, u32, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(Path::new("state")), folder.path());
        state.init("").unwrap();
        for name in ["a.jsonl", "b.jsonl"] {
            let place = state.inbox(Priority::Normal).join(name);
            chandler_durable::write(&place, format!("{{\"text\": \"{name}\"}}\n").as_bytes())
                .unwrap();
        }
        let mut config = Config::default();
        (config.daemon.settle_seconds, config.daemon.min_free_gib) = (0.0, 0.0);
        let lock = lock_state_dir(state.root()).unwrap();
        let mut store = Store::open(&state.database()).unwrap();
        let mut runner = Panicking { left: panics, runs: 0 };
        let tally = JobLoop {
            state: &state,
            config: &config,
            lock: &lock,
            store: &mut store,
            controls: &Controls::default(),
            progress: &Progress::new(&Terminal::stderr()),
            runner: &mut runner,
            clock: SteadyClock::after(None),
            guest: None,
        }
        .work(Until::Empty)
        .unwrap();
        let events = store.recent_events(50).unwrap();
        (tally, runner.runs, events.into_iter().map(|event| event.message).collect())
    }

    #[test]
    fn a_panic_ends_an_attempt_and_three_the_job_but_never_the_daemon() {
        let done = |done, failed| Tally { done, failed, skipped: 0 };
        let (tally, runs, events) = work(1);
        assert_eq!((tally, runs), (done(2, 0), 3));
        let word = "attempt 1 of 3 failed: the run panicked: in generation, on purpose";
        assert!(events.iter().any(|event| event == word), "{events:?}");
        let (tally, runs, _) = work(3);
        assert_eq!((tally, runs), (done(1, 1), 4));
    }
}
