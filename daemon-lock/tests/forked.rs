//! A child that is forked without exec keeps its parent's lock.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(unsafe_code, reason = "nothing else forks without exec")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use chandler_daemon_lock::{LockError, lock_state_dir};
use rustix::process::{Pid, Signal, kill_process};

const PATH_VARIABLE: &str = "CHANDLER_TEST_FORKED_LOCK";
const DROPS_VARIABLE: &str = "CHANDLER_TEST_DROPS";

/// Not a test of its own: takes the lock, forks, and ends, with or without letting go of it.
#[test]
fn parent() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else { return };
    let lock = lock_state_dir(path.as_ref()).unwrap();
    // SAFETY: the child calls `pause` and `_exit` alone, which a forked child may call whatever
    // other threads held at the moment.
    let child = unsafe {
        match libc::fork() {
            0 => {
                libc::pause();
                libc::_exit(0)
            }
            child => child,
        }
    };
    if std::env::var_os(DROPS_VARIABLE).is_some() {
        drop(lock);
    }
    println!("\nchild {child}");
    std::process::exit(0);
}

/// The pids of a parent that has ended and of its child that has not.
fn forked(path: &Path, drops: bool) -> (u32, i32) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["parent", "--exact", "--nocapture"]).env(PATH_VARIABLE, path);
    if drops {
        command.env(DROPS_VARIABLE, "yes");
    }
    let mut parent = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let child = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("child ").map(|pid| pid.parse().unwrap()));
    parent.wait().unwrap();
    (parent.id(), child.unwrap())
}

fn end(pid: i32, state: &Path) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let free = (0..100).any(|_| lock_state_dir(state).is_ok());
    assert!(free, "the lock outlives its last process");
}

#[test]
fn the_child_keeps_it_and_is_named_as_the_one_to_end() {
    let state = tempfile::tempdir().unwrap();
    let (parent, child) = forked(state.path(), false);
    let error = lock_state_dir(state.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("pid {parent}")), "{text}");
    assert!(text.contains(&format!("no longer runs here, and pid {child} (`")), "{text}");
    assert!(matches!(error, LockError::Kept { .. }));
    assert_eq!(error.hint().unwrap(), format!("`kill {child}` ends it, and the lock with it"));
    end(child, state.path());
}

#[test]
fn a_parent_that_let_go_is_not_named() {
    let state = tempfile::tempdir().unwrap();
    let (_, child) = forked(state.path(), true);
    let error = lock_state_dir(state.path()).unwrap_err();
    assert!(error.to_string().contains(&format!("in use by pid {child} (`")), "{error}");
    assert!(error.hint().unwrap().contains(&format!("kill {child}")));
    end(child, state.path());
}
