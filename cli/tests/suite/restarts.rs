//! A daemon that is killed, or hangs, is started again by its parent and goes on.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{chandler, goldens, model, ok, run, text_of};

const PATIENCE: Duration = Duration::from_secs(120);

/// Calls `look` until it finds something.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} never came");
        sleep(Duration::from_millis(20));
    }
}

struct Watched {
    parent: Child,
    state: String,
    _folder: tempfile::TempDir,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Its daemon hears of it.
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

impl Watched {
    fn begin(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = text_of(&folder.path().join("state")).to_owned();
        ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
        ok(&["add", "--dir", &state, text_of(&goldens().join("data/chat.jsonl"))]);
        let mut command: Command = chandler();
        command.args(["run", "--dir", &state]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        for setting in [
            "train.max_steps=400",
            "train.save_steps=5",
            "train.per_device_train_batch_size=2",
            "data.max_length=160",
            "eval.eval_steps=0",
            "daemon.min_free_gib=0",
            "daemon.settle_seconds=0",
            "daemon.poll_seconds=0.05",
        ] {
            command.args(["--set", setting]);
        }
        let parent = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { parent, state, _folder: folder }
    }

    fn status(&self) -> Value {
        serde_json::from_str(&ok(&["status", "--dir", &self.state, "--json"])).unwrap()
    }

    /// The daemon's process, once it has made a checkpoint and is not `other`.
    fn daemon(&self, other: Option<Pid>) -> Pid {
        wait_for("a checkpoint", || {
            let folder = Path::new(&self.state).join("checkpoints/job-1");
            std::fs::read_dir(folder).ok()?.next()?.ok()
        });
        wait_for("another daemon", || {
            // A daemon that dies while it is asked does not answer.
            let output = run(&["status", "--dir", &self.state, "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let pid = status.pointer("/daemon/pid")?.as_i64()?;
            Pid::from_raw(i32::try_from(pid).unwrap()).filter(|pid| Some(*pid) != other)
        })
    }

    fn restarts(&self) -> Vec<String> {
        let status = self.status();
        let events = status["events"].as_array().unwrap().iter();
        let restarts = events.filter(|event| event["kind"] == "restarted");
        restarts.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_killed_daemon_is_started_again_and_a_stop_ends_both() {
    let mut watched = Watched::begin(&[]);
    let first = watched.daemon(None);
    kill_process(first, Signal::KILL).unwrap();
    let second = watched.daemon(Some(first));
    assert_ne!(first, second);
    assert!(watched.restarts()[0].contains("killed by SIGKILL"), "{:?}", watched.restarts());
    kill_process(Pid::from_child(&watched.parent), Signal::TERM).unwrap();
    assert_eq!(watched.parent.wait().unwrap().code(), Some(0));
    assert_eq!(watched.status()["running"], false);
}

/// As `pkill chandler` does, and a machine that goes down.
#[test]
fn signals_to_parent_and_daemon_are_one_wish() {
    let mut watched = Watched::begin(&[]);
    let daemon = watched.daemon(None);
    let parent = Pid::from_child(&watched.parent);
    for signal in [Signal::USR1, Signal::TERM] {
        for pid in [parent, daemon] {
            kill_process(pid, signal).unwrap();
        }
        // Whoever it ends is gone by then.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(watched.parent.wait().unwrap().code(), Some(0), "it took the time for a checkpoint");
    assert!(watched.restarts().is_empty());
}

#[test]
fn a_daemon_that_hangs_is_started_again() {
    let watched = Watched::begin(&["daemon.hang_seconds=3"]);
    let first = watched.daemon(None);
    // It stays, and does nothing.
    kill_process(first, Signal::STOP).unwrap();
    wait_for_end(first);
    watched.daemon(Some(first));
    assert!(watched.restarts()[0].contains("no sign of life"), "{:?}", watched.restarts());
}

fn wait_for_end(pid: Pid) {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    wait_for("its end", || (!Path::new(&process).exists()).then_some(()));
}

#[test]
fn a_daemon_whose_parent_was_killed_ends() {
    let mut watched = Watched::begin(&[]);
    let daemon = watched.daemon(None);
    watched.parent.kill().unwrap();
    watched.parent.wait().unwrap();
    wait_for_end(daemon);
    assert_eq!(watched.status()["running"], false);
    assert!(!Path::new(&watched.state).join("model").exists(), "it was not done yet");
}
