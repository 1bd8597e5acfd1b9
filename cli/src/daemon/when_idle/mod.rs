//! `daemon.when_idle`: a program that is run when the queue has become empty, such as one that makes
//! the next training file.
//!
//! It runs beside the daemon, in a process group of its own, which is ended with the daemon. What it
//! does wrong is an event.

mod running;

use std::process::Command;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use super::controls::Controls;
use crate::config::DaemonConfig;
use crate::service::SOCKET_VARIABLE;
use crate::state_dir::StateDir;
use crate::store::{Store, StoreError};
use crate::visible::visible_line;
use running::Running;

/// The longest that a failure puts off the next run.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Runs the program each time the queue becomes empty.
pub(super) struct WhenIdle {
    state: StateDir,
    config: DaemonConfig,
    controls: Controls,
    /// Whether something was worked on since the last run, or there was none.
    is_due: bool,
    begun: Option<Instant>,
    failures: u32,
    running: Option<Running>,
    /// Whether it was said that an earlier run is still going on.
    waits_for_earlier: bool,
}

impl WhenIdle {
    pub(super) fn new(state: &StateDir, config: &DaemonConfig, controls: &Controls) -> Self {
        Self {
            state: state.clone(),
            config: config.clone(),
            controls: controls.clone(),
            is_due: true,
            begun: None,
            failures: 0,
            running: None,
            waits_for_earlier: false,
        }
    }

    /// The queue is not empty any more.
    pub(super) fn is_busy(&mut self) {
        self.is_due = true;
    }

    /// The queue is empty: runs the program, unless it ran since the queue last became empty, or too
    /// short a while ago.
    pub(super) fn is_idle(&mut self, store: &Store) -> Result<(), StoreError> {
        let Some((program, arguments)) = self.config.when_idle.split_first() else {
            return Ok(());
        };
        let waited = self.begun.is_none_or(|begun| begun.elapsed() >= self.least_wait());
        if !self.is_due || !waited || self.running.is_some() {
            return Ok(());
        }
        self.is_due = false;
        self.begun = Some(Instant::now());
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.state.root())
            .env("CHANDLER_DIR", self.state.root())
            .env_remove(SOCKET_VARIABLE);
        for (job_state, count) in store.count_jobs()? {
            let name = format!("CHANDLER_JOBS_{}", job_state.as_str().to_uppercase());
            command.env(name, count.to_string());
        }
        let limit = Duration::from_secs_f64(self.config.when_idle_limit_seconds);
        let program = visible_line(program);
        match Running::start(command, &self.state.when_idle_lock(), limit, &self.controls) {
            Ok(Some(running)) => {
                tracing::info!("the queue is empty: when_idle runs {program}");
                self.running = Some(running);
                self.waits_for_earlier = false;
                Ok(())
            }
            Ok(None) => {
                if !std::mem::replace(&mut self.waits_for_earlier, true) {
                    tracing::warn!("when_idle: {program} still runs for a daemon that was killed");
                }
                self.is_due = true;
                Ok(())
            }
            Err(error) => self.failed(store, &format!("{program} cannot be run: {error}")),
        }
    }

    /// Tells how the program ended, once it has.
    pub(super) fn tell(&mut self, store: &Store) -> Result<(), StoreError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let ending = match running.ending.try_recv() {
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Err("nobody saw it end".to_owned()),
            Ok(ending) => ending,
        };
        self.running = None;
        match ending {
            Ok(()) => {
                self.failures = 0;
                tracing::info!("when_idle is done");
                Ok(())
            }
            Err(why) => self.failed(store, &why),
        }
    }

    /// A program that failed is run again, later each time.
    fn failed(&mut self, store: &Store, why: &str) -> Result<(), StoreError> {
        self.failures += 1;
        self.is_due = true;
        let message = format!("when_idle: {why}; again in {} s", self.least_wait().as_secs());
        tracing::warn!("{message}");
        store.record_event("when_idle_failed", None, None, &message, None)
    }

    fn least_wait(&self) -> Duration {
        let usual = Duration::from_secs_f64(self.config.when_idle_seconds);
        let doubled = usual.saturating_mul(2_u32.saturating_pow(self.failures));
        doubled.min(LONGEST_WAIT.max(usual))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    struct Bench {
        folder: tempfile::TempDir,
        store: Store,
        when_idle: WhenIdle,
    }

    fn bench(script: &str, seconds: f64, limit: f64) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(Path::new("state")), folder.path());
        state.init("").unwrap();
        let store = Store::open(&state.database()).unwrap();
        let config = DaemonConfig {
            when_idle: ["sh", "-c", script].map(str::to_owned).into(),
            when_idle_seconds: seconds,
            when_idle_limit_seconds: limit,
            ..DaemonConfig::default()
        };
        let when_idle = WhenIdle::new(&state, &config, &Controls::default());
        Bench { folder, store, when_idle }
    }

    impl Bench {
        /// Runs the program once and waits for its end; whether it was run.
        fn turn(&mut self) -> bool {
            self.when_idle.is_idle(&self.store).unwrap();
            let ran = self.when_idle.running.is_some();
            while self.when_idle.running.is_some() {
                self.when_idle.tell(&self.store).unwrap();
                std::thread::yield_now();
            }
            ran
        }

        fn file(&self, name: &str) -> String {
            std::fs::read_to_string(self.folder.path().join("state").join(name)).unwrap_or_default()
        }

        fn failures(&self) -> Vec<String> {
            let events = self.store.recent_events(9).unwrap();
            events.into_iter().map(|event| event.message).collect()
        }
    }

    #[test]
    fn it_runs_once_each_time_the_queue_becomes_empty() {
        let script = "echo $CHANDLER_JOBS_QUEUED $CHANDLER_JOBS_DONE >> ran; \
                      test \"$CHANDLER_DIR\" = \"$PWD\"";
        let mut bench = bench(script, 0.001, 60.0);
        assert!(bench.turn() && !bench.turn(), "{:?}", bench.failures());
        bench.when_idle.is_busy();
        assert!(bench.turn());
        assert_eq!(bench.file("ran"), "0 0\n0 0\n");
        assert_eq!(bench.failures(), [""; 0]);
    }

    #[test]
    fn it_is_never_run_in_a_hurry() {
        let mut bench = bench("true", 3600.0, 60.0);
        assert!(bench.turn());
        bench.when_idle.is_busy();
        assert!(!bench.turn());
    }

    #[test]
    fn a_failure_is_an_event_and_is_tried_again_later_each_time() {
        let mut bench = bench("exit 3", 0.001, 60.0);
        assert!(bench.turn());
        assert!(bench.failures()[0].contains("ended with code 3"), "{:?}", bench.failures());
        assert!(bench.when_idle.is_due);
        bench.when_idle.config.when_idle_seconds = 300.0;
        let waits: Vec<_> = (0..6)
            .map(|failures| {
                bench.when_idle.failures = failures;
                bench.when_idle.least_wait().as_secs()
            })
            .collect();
        assert_eq!(waits, [300, 600, 1200, 2400, 3600, 3600]);
        bench.when_idle.config.when_idle = vec!["/no/such/program".to_owned()];
        bench.when_idle.begun = None;
        assert!(!bench.turn());
        assert!(bench.failures()[0].contains("cannot be run"), "{:?}", bench.failures());
    }

    #[test]
    fn it_is_ended_with_its_children_when_it_takes_too_long_or_is_not_wanted() {
        let script = "sleep 1000 & echo $! > child; sleep 1000";
        // It may be left as a zombie for whoever adopted it.
        let is_over = |bench: &Bench| {
            let stat = format!("/proc/{}/stat", bench.file("child").trim());
            std::fs::read_to_string(stat).map_or(true, |stat| stat.contains(") Z "))
        };
        // Nobody waits for a grandchild: the kernel takes it when it comes to it.
        let ends = |bench: &Bench| {
            let until = Instant::now() + Duration::from_secs(10);
            while !is_over(bench) && Instant::now() < until {
                std::thread::yield_now();
            }
            is_over(bench)
        };
        let mut slow = bench(script, 0.001, 0.3);
        assert!(slow.turn());
        assert!(slow.failures()[0].contains("more than 0.3 s"), "{:?}", slow.failures());
        assert!(ends(&slow));
        let mut unwanted = bench(script, 0.001, 60.0);
        unwanted.when_idle.is_idle(&unwanted.store).unwrap();
        while unwanted.file("child").trim().is_empty() {
            std::thread::yield_now();
        }
        assert!(!is_over(&unwanted));
        unwanted.when_idle.running = None;
        assert!(ends(&unwanted));
    }

    /// A daemon that is killed leaves the program behind; the next one does not run it beside that.
    #[test]
    fn what_an_earlier_daemon_left_behind_is_waited_for() {
        let mut bench = bench("echo ran >> ran", 0.001, 60.0);
        let lock = std::fs::File::create(bench.when_idle.state.when_idle_lock()).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut left = Command::new("sleep").arg("1000").stdin(lock).spawn().unwrap();
        assert!(!bench.turn() && !bench.turn());
        left.kill().unwrap();
        left.wait().unwrap();
        std::thread::sleep(Duration::from_millis(2));
        assert!(bench.turn());
        assert_eq!((bench.file("ran"), bench.failures()), ("ran\n".to_owned(), vec![]));
    }

    #[test]
    fn what_it_says_is_heard_to_its_end() {
        let mut bench = bench("yes x | head -c 3000000; echo over > said", 0.001, 60.0);
        assert!(bench.turn());
        assert_eq!(bench.file("said"), "over\n");
    }
}
