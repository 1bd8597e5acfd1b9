//! Locks between processes. The test binary starts itself as the other process.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use chandler_daemon_lock::{
    Holder, LockError, gpu_lock_path, holder_of, lock_file, lock_gpu, lock_state_dir,
};

const PATH_VARIABLE: &str = "CHANDLER_TEST_LOCK";

/// Not a test of its own: what the other process does.
#[test]
fn child() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else { return };
    let _lock = lock_file(path.as_ref()).unwrap();
    println!("\nheld");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn hold_elsewhere(path: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(PATH_VARIABLE, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    assert!(out.lines().any(|line| line.unwrap() == "held"));
    child
}

#[test]
fn kill_9_frees_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    for _ in 0..3 {
        let mut child = hold_elsewhere(&path);
        let error = lock_state_dir(folder.path()).unwrap_err();
        let LockError::Held { holder: Some(holder), .. } = &error else { panic!("{error}") };
        assert_eq!(holder.pid, child.id());
        let message = error.to_string();
        assert!(message.contains(&format!("pid {}", child.id())), "{message}");
        assert!(message.contains("child --exact") && message.contains("UTC"), "{message}");
        assert!(error.hint().unwrap().contains(&child.id().to_string()));
        assert_eq!(holder_of(&path).unwrap(), Some(Some(holder.clone())));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(lock_state_dir(folder.path()).unwrap());
        assert_eq!(holder_of(&path).unwrap(), None);
        assert!(path.exists(), "the file stays");
    }
}

#[test]
fn a_program_that_we_start_does_not_keep_it() {
    let folder = tempfile::tempdir().unwrap();
    let lock = lock_state_dir(folder.path()).unwrap();
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    drop(lock);
    // The child of another test holds copies of our descriptors between its fork and its exec.
    let free = (0..1000).any(|_| {
        let free = lock_state_dir(folder.path()).is_ok();
        if !free {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        free
    });
    assert!(free, "the program keeps it");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn one_of_many_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let taken: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| lock_file(&path).ok())).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(taken.len(), 1);
}

#[test]
fn gpus_are_locked_one_by_one_and_say_their_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = lock_gpu(folder.path(), "GPU-aaaa").unwrap();
    let _second = lock_gpu(folder.path(), "GPU-bbbb").unwrap();
    first.set_vram_bytes(Some(10_275_000_000)).unwrap();
    let error = lock_gpu(folder.path(), "GPU-aaaa").unwrap_err();
    assert!(error.to_string().contains("9.57 GiB of VRAM"), "{error}");
    for uuid in ["", "../x", "a b"] {
        assert!(matches!(gpu_lock_path(folder.path(), uuid), Err(LockError::BadUuid { .. })));
    }
}

#[test]
fn a_garbled_file_is_an_unnamed_holder() {
    let folder = tempfile::tempdir().unwrap();
    let lock = lock_state_dir(folder.path()).unwrap();
    File::create(lock.path()).unwrap().write_all(b"{\"pid\": 1").unwrap();
    let error = lock_state_dir(folder.path()).unwrap_err();
    assert!(matches!(&error, LockError::Held { holder: None, .. }), "{error}");
    assert!(error.to_string().contains("has not said who it is"));
    assert_eq!(holder_of(lock.path()).unwrap(), Some(None));
}

#[test]
fn a_link_or_a_closed_folder_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("precious");
    File::create(&target).unwrap().write_all(b"text").unwrap();
    symlink(&target, folder.path().join("lock")).unwrap();
    let error = lock_state_dir(folder.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("symbolic link"), "{error}");
    assert_eq!(std::fs::read(&target).unwrap(), b"text");
    if rustix::process::geteuid().is_root() {
        return;
    }
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let error = lock_state_dir(closed.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("owner and mode"), "{error}");
}

#[test]
fn this_process_knows_itself() {
    let holder = Holder::this_process();
    assert_eq!(holder.pid, std::process::id());
    assert!(holder.since_unix_seconds > 1_700_000_000 && !holder.command_line.is_empty());
}
