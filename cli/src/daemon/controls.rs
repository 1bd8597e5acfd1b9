//! What commands can change while the daemon runs, and what it shows of itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::stop::{StopFlag, StopReason};
use super::voice::Voice;
use crate::alerts::Standing;
use crate::logging::StepProgress;

/// The job that is being worked on, as `status` shows it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CurrentJob {
    /// Its number.
    pub job_id: i64,
    /// The name the user gave the file.
    pub file_name: String,
    /// The run.
    pub run_id: i64,
    /// What is being done: `validating`, `training`, `evaluating`.
    pub phase: String,
    /// The newest step, once there is one.
    pub progress: Option<StepProgress>,
}

#[derive(Debug, Default)]
struct Changing {
    paused: bool,
    /// Counts what should wake a sleeping daemon.
    wakes: u64,
    current: Option<CurrentJob>,
    /// The job whose file is being claimed, and its name.
    claimed: Option<(i64, String)>,
    waiting: Option<String>,
    /// The median time of a step of the current run, once that is known.
    usual_step: Option<Duration>,
    /// When something last moved.
    moved: Option<Instant>,
    /// When the last sign of life was given.
    beaten: Option<Instant>,
    /// Who hears of it.
    voice: Voice,
}

/// Signs of life are given no more often, and while nothing else happens no more seldom.
const PULSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Shared {
    changing: Mutex<Changing>,
    changed: Condvar,
    /// Held while the queue is changed or a job is taken from it.
    queue: Mutex<()>,
    eval_now: AtomicBool,
}

/// The daemon's controls. Clones are the same controls.
#[derive(Debug, Clone, Default)]
pub struct Controls {
    stop: StopFlag,
    shared: Arc<Shared>,
}

impl Controls {
    /// The flag that a run looks at between steps.
    pub fn stop(&self) -> &StopFlag {
        &self.stop
    }

    /// Asks for an end and wakes whoever sleeps.
    pub fn request_stop(&self, reason: StopReason) {
        self.stop.request(reason);
        self.wake();
    }

    /// Whether the daemon is paused.
    pub fn is_paused(&self) -> bool {
        self.changing().paused
    }

    /// Pauses the daemon, or lets it go on.
    pub fn set_paused(&self, paused: bool) {
        self.changing().paused = paused;
        self.wake();
    }

    /// Returns at once unless paused; else when the pause or the whole run ends. A run calls it
    /// between steps.
    pub fn wait_while_paused(&self) {
        let mut changing = self.changing();
        while changing.paused && !self.stop.is_requested() {
            let waited = self.shared.changed.wait_timeout(changing, PULSE);
            changing = waited.unwrap_or_else(PoisonError::into_inner).0;
            beat(&mut changing);
        }
    }

    /// From now on gives signs of life, and says how the daemon fares.
    pub fn speak(&self, voice: Voice) {
        self.changing().voice = voice;
    }

    /// Tells the service manager an assignment such as `READY=1`, where there is one.
    pub fn tell_manager(&self, assignment: &str) {
        self.changing().voice.tell(assignment);
    }

    /// Whether anybody hears how the daemon fares.
    pub fn is_heard(&self) -> bool {
        self.changing().voice.is_heard()
    }

    /// Something moved: called wherever work makes progress.
    pub fn beat(&self) {
        beat(&mut self.changing());
    }

    /// Asks for an evaluation after the step that is going on.
    pub fn request_eval(&self) {
        self.shared.eval_now.store(true, Ordering::SeqCst);
    }

    /// Whether an evaluation was asked for.
    pub fn has_eval_request(&self) -> bool {
        self.shared.eval_now.load(Ordering::SeqCst)
    }

    /// Whether an evaluation was asked for; asking forgets the wish.
    pub fn take_eval_request(&self) -> bool {
        self.shared.eval_now.swap(false, Ordering::SeqCst)
    }

    /// Wakes a daemon that sleeps between two looks into the inbox.
    pub fn wake(&self) {
        self.changing().wakes += 1;
        self.shared.changed.notify_all();
    }

    /// Sleeps until `duration` is over or something changes.
    pub fn sleep(&self, duration: Duration) {
        let deadline = Instant::now() + duration;
        let mut changing = self.changing();
        let wakes = changing.wakes;
        while changing.wakes == wakes && !self.stop.is_requested() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            let waited = self.shared.changed.wait_timeout(changing, left.min(PULSE));
            changing = waited.unwrap_or_else(PoisonError::into_inner).0;
            beat(&mut changing);
        }
    }

    /// While this lives nobody else takes a job from the queue or changes one in it.
    pub fn hold_queue(&self) -> MutexGuard<'_, ()> {
        // There is nothing behind it that a panic could have left half done.
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows whose file is being claimed; a skip finds it from now on.
    pub fn set_claimed(&self, id: i64, file_name: &str) {
        self.changing().claimed = Some((id, file_name.to_owned()));
    }

    /// The claim is over and came to nothing.
    pub fn drop_claim(&self) {
        self.changing().claimed = None;
        self.stop.forget_skip();
    }

    /// Passes over the job that is being claimed or worked on, if it is this one or any is meant;
    /// its number and name.
    pub fn skip(&self, job: Option<i64>) -> Option<(i64, String)> {
        let changing = self.changing();
        let at_work = changing.current.as_ref().map(|job| (job.job_id, job.file_name.clone()));
        let (id, name) = at_work.or_else(|| changing.claimed.clone())?;
        if job.is_some_and(|job| job != id) {
            return None;
        }
        // Within the lock: the job cannot be over and another begun in between.
        self.stop.request(StopReason::Skip);
        self.shared.changed.notify_all();
        Some((id, name))
    }

    /// The job that is being worked on.
    pub fn current(&self) -> Option<CurrentJob> {
        self.changing().current.clone()
    }

    /// Shows another job, or none.
    pub fn set_current(&self, current: Option<CurrentJob>) {
        let mut changing = self.changing();
        changing.current = current;
        changing.claimed = None;
        changing.usual_step = None;
    }

    /// How the current run stands, for whoever looks whether it is stuck.
    pub fn standing(&self) -> Standing {
        let changing = self.changing();
        let current = changing.current.as_ref();
        Standing {
            step: current.and_then(|current| Some(current.progress.as_ref()?.step)),
            usual_step: changing.usual_step,
            still: changing.moved.map_or(Duration::ZERO, |moved| moved.elapsed()),
            is_training: !changing.paused
                && current.is_some_and(|current| current.phase == "training"),
        }
    }

    /// Says how long a step of the current run usually takes.
    pub fn set_usual_step(&self, usual: Option<Duration>) {
        self.changing().usual_step = usual;
    }

    /// What the daemon waits for, where it cannot go on.
    pub fn waiting(&self) -> Option<String> {
        self.changing().waiting.clone()
    }

    /// Shows what the daemon waits for, or that it goes on.
    pub fn set_waiting(&self, waiting: Option<String>) {
        self.changing().waiting = waiting;
    }

    /// Shows what is being done to the current job.
    pub fn set_phase(&self, phase: &str) {
        if let Some(current) = &mut self.changing().current {
            phase.clone_into(&mut current.phase);
        }
    }

    /// Shows the newest step of the current job.
    pub fn set_progress(&self, progress: &StepProgress) {
        if let Some(current) = &mut self.changing().current {
            current.progress = Some(progress.clone());
        }
    }

    /// What is behind the lock stays usable if a thread panicked while it held it: every change
    /// is a single assignment.
    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn beat(changing: &mut Changing) {
    changing.moved = Some(Instant::now());
    if changing.beaten.is_none_or(|beaten| beaten.elapsed() >= PULSE) {
        changing.beaten = Some(Instant::now());
        changing.voice.beat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_with_resume_or_stop() {
        for end in [
            |on: &Controls| on.set_paused(false),
            |on: &Controls| {
                on.request_stop(StopReason::Shutdown);
            },
        ] {
            let controls = Controls::default();
            controls.set_paused(true);
            let waiting = controls.clone();
            let waiter = std::thread::spawn(move || waiting.wait_while_paused());
            end(&controls);
            waiter.join().unwrap();
        }
    }

    #[test]
    fn a_skip_finds_the_job_that_it_means_and_no_other() {
        let controls = Controls::default();
        assert_eq!(controls.skip(None), None);
        controls.set_claimed(7, "a.jsonl");
        assert_eq!(controls.skip(Some(8)), None);
        assert!(!controls.stop().is_requested());
        assert_eq!(controls.skip(Some(7)), Some((7, "a.jsonl".to_owned())));
        assert_eq!(controls.stop().requested(), Some(StopReason::Skip));
        controls.drop_claim();
        assert!(!controls.stop().is_requested() && controls.skip(None).is_none());
        controls.set_current(Some(CurrentJob {
            job_id: 9,
            file_name: "b.jsonl".to_owned(),
            run_id: 1,
            phase: "training".to_owned(),
            progress: None,
        }));
        assert_eq!(controls.skip(None), Some((9, "b.jsonl".to_owned())));
        controls.set_current(None);
        assert_eq!(controls.skip(Some(9)), None, "it is over");
    }

    #[test]
    fn an_eval_request_is_taken_once() {
        let controls = Controls::default();
        controls.request_eval();
        assert!(controls.has_eval_request() && controls.take_eval_request());
        assert!(!controls.has_eval_request() && !controls.take_eval_request());
    }

    #[test]
    fn a_stop_ends_a_sleep() {
        let controls = Controls::default();
        controls.request_stop(StopReason::Shutdown);
        let begin = Instant::now();
        controls.sleep(Duration::from_secs(60));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
