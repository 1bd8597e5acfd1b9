//! A thread that looks at the daemon from outside: who is stuck does not say so, and who waits for
//! the disk cannot record it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::controls::Controls;
use super::stop::StopReason;
use crate::alerts::{self, Stuck};
use crate::config::AlertsConfig;
use crate::failure::in_one_line;
use crate::notify::Urgent;
use crate::state_dir::StateDir;
use crate::store::Store;
use crate::visible::visible_line;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A daemon with nothing to do has gone on when it has waited for nothing for so many looks in a row;
/// a try that fails is over much sooner.
const LOOKS_AT_REST: u32 = 120;

/// The thread; dropping it ends it.
#[derive(Debug)]
pub struct Lookout {
    ending: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lookout {
    /// Begins to look, and tells what it sees: as an event where the database takes one, else to
    /// `urgent`; and how the daemon fares to the service manager.
    pub fn start(
        state: &StateDir,
        config: &AlertsConfig,
        controls: &Controls,
        urgent: Option<Urgent>,
    ) -> std::io::Result<Self> {
        let (ending, ends) = mpsc::channel::<()>();
        let factor = if config.enabled { config.stuck } else { 0.0 };
        let mut watch = Watch {
            state: state.clone(),
            controls: controls.clone(),
            urgent,
            stuck: Stuck::new(factor, Duration::from_secs_f64(config.stuck_seconds)),
            waiting: None,
            at_rest: 0,
            status: String::new(),
        };
        let thread = std::thread::Builder::new().name("lookout".to_owned()).spawn(move || {
            while ends.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                watch.look();
            }
        })?;
        Ok(Self { ending: Some(ending), thread: Some(thread) })
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        drop(self.ending.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch {
    state: StateDir,
    controls: Controls,
    urgent: Option<Urgent>,
    stuck: Stuck,
    /// What was last said to be waited for, until work goes on.
    waiting: Option<String>,
    /// Looks since then at which it waited for nothing.
    at_rest: u32,
    status: String,
}

impl Watch {
    fn look(&mut self) {
        self.look_for_stuck();
        self.look_for_waiting();
        if self.controls.is_heard() {
            self.tell_status();
        }
    }

    fn look_for_stuck(&mut self) {
        let Some(alert) = self.stuck.look(&self.controls.standing()) else { return };
        let current = self.controls.current();
        let (job, run) = current.map(|current| (current.job_id, current.run_id)).unzip();
        let recorded = Store::open(&self.state.database())
            .and_then(|store| alerts::record(&store, job, run, &alert));
        if let Err(error) = recorded {
            tracing::warn!("{alert}; it is not recorded: {}", in_one_line(&error));
        }
    }

    fn look_for_waiting(&mut self) {
        let Some(words) = self.controls.waiting() else {
            self.at_rest += 1;
            // Between two tries it does not wait, and yet has not gone on.
            if self.controls.standing().step.is_some() || self.at_rest >= LOOKS_AT_REST {
                self.waiting = None;
            }
            return;
        };
        self.at_rest = 0;
        if self.waiting.is_none() {
            let recorded = Store::open(&self.state.database())
                .and_then(|store| store.record_event("waiting", None, None, &words, None));
            if let (Err(_), Some(urgent)) = (recorded, &self.urgent) {
                urgent.waiting(&words);
            }
            self.waiting = Some(words);
        }
    }

    fn tell_status(&mut self) {
        let status = status(&self.controls);
        if status != self.status {
            self.controls.tell_manager(&format!("STATUS={status}"));
            self.status = status;
        }
    }
}

/// How the daemon fares, on one line.
fn status(controls: &Controls) -> String {
    if controls.stop().requested() == Some(StopReason::Shutdown) {
        return "ending after this step".to_owned();
    }
    if let Some(waiting) = controls.waiting() {
        return visible_line(&format!("waiting: {waiting}"));
    }
    let paused = if controls.is_paused() { ", paused" } else { "" };
    let Some(current) = controls.current() else { return format!("waiting for files{paused}") };
    let step = current.progress.map_or_else(String::new, |progress| {
        format!(", step {}/{}", progress.step, progress.total_steps)
    });
    let what = format!("job {}, {}, {}", current.job_id, current.file_name, current.phase);
    visible_line(&format!("{what}{step}{paused}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::controls::CurrentJob;
    use super::*;
    use crate::logging::StepProgress;

    fn watch(folder: &Path) -> Watch {
        let state = StateDir::choose(Some(Path::new("state")), folder);
        state.init("").unwrap();
        Watch {
            state,
            controls: Controls::default(),
            urgent: None,
            stuck: Stuck::new(1.0, Duration::ZERO),
            waiting: None,
            at_rest: 0,
            status: String::new(),
        }
    }

    fn current(phase: &str) -> CurrentJob {
        let progress = StepProgress {
            step: 7,
            total_steps: 9,
            loss: 1.0,
            lr: 0.1,
            tokens_per_s: None,
            eta_s: None,
            memory_bytes: None,
        };
        CurrentJob {
            job_id: 4,
            file_name: "a\n.jsonl".to_owned(),
            run_id: 5,
            phase: phase.to_owned(),
            progress: Some(progress),
        }
    }

    fn kinds(watch: &Watch) -> Vec<String> {
        let store = Store::open(&watch.state.database()).unwrap();
        store.recent_events(9).unwrap().into_iter().map(|event| event.kind).collect()
    }

    #[test]
    fn one_wait_is_told_once_however_often_it_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = watch(folder.path());
        let controls = watch.controls.clone();
        for waiting in [Some("the disk is full"), None, Some("the disk is full, still"), None] {
            controls.set_waiting(waiting.map(str::to_owned));
            watch.look();
        }
        assert_eq!(kinds(&watch), ["waiting"]);
        controls.set_current(Some(current("training")));
        watch.look();
        controls.set_current(None);
        controls.set_waiting(Some("full again".to_owned()));
        watch.look();
        assert_eq!(kinds(&watch), ["waiting", "waiting"]);
        // Idle for a while, and then the next outage.
        controls.set_waiting(None);
        (0..LOOKS_AT_REST).for_each(|_| watch.look());
        controls.set_waiting(Some("full once more".to_owned()));
        watch.look();
        assert_eq!(kinds(&watch).len(), 3);
    }

    #[test]
    fn the_status_is_a_line() {
        let controls = Controls::default();
        assert_eq!(status(&controls), "waiting for files");
        controls.set_current(Some(current("training")));
        assert_eq!(status(&controls), "job 4, a\\u{a}.jsonl, training, step 7/9");
        controls.set_paused(true);
        assert!(status(&controls).ends_with("9, paused"));
        controls.set_waiting(Some("no room".to_owned()));
        assert_eq!(status(&controls), "waiting: no room");
    }

    #[test]
    fn a_run_is_only_watched_while_it_is_to_take_steps() {
        let controls = Controls::default();
        assert!(!controls.standing().is_training);
        controls.set_current(Some(current("training")));
        controls.set_usual_step(Some(Duration::from_secs(1)));
        let standing = controls.standing();
        assert!(standing.is_training && standing.step == Some(7) && standing.usual_step.is_some());
        controls.set_phase("evaluating");
        assert!(!controls.standing().is_training);
        controls.set_phase("training");
        controls.set_paused(true);
        assert!(!controls.standing().is_training);
        controls.set_current(None);
        assert_eq!(controls.standing().usual_step, None);
    }
}
