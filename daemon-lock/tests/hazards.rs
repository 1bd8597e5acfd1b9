//! What could make two owners of one lock, or shut everybody out of it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use chandler_daemon_lock::{
    Holder, LockError, Loss, holder_of_state_dir, lock_file, lock_state_dir,
};

const PATH_VARIABLE: &str = "CHANDLER_TEST_FOREIGN_LOCK";

fn put(path: &Path, text: &str) {
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn how_lost(error: LockError) -> Loss {
    let LockError::Lost { how, .. } = &error else { panic!("{error}") };
    assert!(error.hint().unwrap().contains("start again"));
    *how
}

#[test]
fn a_file_that_is_removed_or_replaced_lets_nobody_in_and_its_owner_finds_out() {
    let folder = tempfile::tempdir().unwrap();
    let lock = lock_state_dir(folder.path()).unwrap();
    lock.still_ours().unwrap();
    fs::remove_file(lock.path()).unwrap();
    assert_eq!(how_lost(lock.still_ours().unwrap_err()), Loss::Removed);
    assert_eq!(holder_of_state_dir(folder.path()).unwrap(), Some(None));
    let error = lock_state_dir(folder.path()).unwrap_err();
    assert!(matches!(error, LockError::Held { .. }), "{error}");
    put(&folder.path().join("lock"), "");
    assert_eq!(how_lost(lock.still_ours().unwrap_err()), Loss::Replaced);
    assert!(lock_state_dir(folder.path()).is_err(), "the folder is locked");
    drop(lock);
    assert_eq!(holder_of_state_dir(folder.path()).unwrap(), None);
    lock_state_dir(folder.path()).unwrap();
}

#[test]
fn others_may_try_a_lock_and_read_who_has_it_whatever_the_umask_of_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let lock = lock_file(&folder.path().join("lock"));
    rustix::process::umask(before);
    let mode = fs::metadata(lock.unwrap().path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn a_folder_that_is_exchanged_is_noticed() {
    let parent = tempfile::tempdir().unwrap();
    let state = parent.path().join("state");
    fs::create_dir(&state).unwrap();
    let lock = lock_state_dir(&state).unwrap();
    let aside = parent.path().join("aside");
    rustix::fs::rename(&state, &aside).unwrap();
    assert_eq!(how_lost(lock.still_ours().unwrap_err()), Loss::Removed);
    fs::create_dir(&state).unwrap();
    let other = lock_state_dir(&state).unwrap();
    assert_eq!(how_lost(lock.still_ours().unwrap_err()), Loss::Replaced);
    other.still_ours().unwrap();
}

/// Of a lock that is a file alone, the new file is another lock: its first owner must look.
#[test]
fn the_owner_of_a_replaced_file_finds_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpu.lock");
    let first = lock_file(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = lock_file(&path).unwrap();
    assert_eq!(how_lost(first.still_ours().unwrap_err()), Loss::Replaced);
    second.still_ours().unwrap();
}

#[test]
fn a_text_that_was_left_behind_shuts_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let this = Holder::this_process();
    let dead = Holder { pid: u32::MAX, ..this.clone() };
    let reused = Holder { start_ticks: this.start_ticks.map(|ticks| ticks - 1), ..this.clone() };
    let later = Holder { since_unix_seconds: 1 << 40, ..this };
    for left in [dead, reused, later] {
        put(&path, &serde_json::to_string(&left).unwrap());
        let lock = lock_state_dir(folder.path()).unwrap();
        assert_eq!(holder_of_state_dir(folder.path()).unwrap().flatten().unwrap().pid, own_pid());
        drop(lock);
        assert_eq!(fs::read(&path).unwrap(), b"", "an owner that ends takes its name away");
    }
}

fn own_pid() -> u32 {
    std::process::id()
}

#[test]
fn who_only_asks_keeps_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let asked_enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !asked_enough.load(Ordering::Relaxed) {
                holder_of_state_dir(folder.path()).unwrap();
            }
        });
        for turn in 0..300 {
            let taken = lock_state_dir(folder.path()).map(drop);
            if taken.is_err() {
                asked_enough.store(true, Ordering::Relaxed);
            }
            taken.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        }
        asked_enough.store(true, Ordering::Relaxed);
    });
}

/// `/dev/full` takes a lock, and no text.
#[test]
fn a_full_disk_leaves_the_lock_unnamed_and_held() {
    let lock = lock_file(Path::new("/dev/full")).unwrap();
    assert!(lock.naming_error().is_some());
    lock.still_ours().unwrap();
    let error = lock_file(Path::new("/dev/full")).unwrap_err();
    assert!(matches!(error, LockError::Held { holder: None, .. }), "{error}");
}

/// Not a test of its own: what a process of another user does.
#[test]
fn foreigner() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else { return };
    let taken = lock_file(path.as_ref());
    let word = match &taken {
        Ok(lock) if lock.naming_error().is_some() && lock.still_ours().is_ok() => "held, unnamed",
        Ok(_) => "held",
        Err(LockError::Held { .. }) => "busy",
        Err(error) => panic!("{error}"),
    };
    println!("\n<{word}>");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// The lock of a GPU that another user's process took first lies there for all.
#[test]
fn a_file_that_may_not_be_written_can_be_locked() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can become another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
    let path = folder.path().join("gpu.lock");
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let foreigner = || {
        Command::new(&program)
            .args(["foreigner", "--exact", "--nocapture"])
            .env(PATH_VARIABLE, &path)
            .uid(65_534)
            .gid(65_534)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let ours = lock_file(&path).unwrap();
    let output = foreigner().wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("<busy>"));
    drop(ours);
    let mut other = foreigner();
    let mut said = String::new();
    let mut out = other.stdout.take().unwrap();
    while !said.contains('>') {
        let mut chunk = [0; 256];
        let read = out.read(&mut chunk).unwrap();
        assert!(read > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&chunk[..read]));
    }
    assert!(said.contains("<held, unnamed>"), "{said}");
    let error = lock_file(&path).unwrap_err();
    let LockError::Held { holder: None, keepers, .. } = &error else { panic!("{error}") };
    assert_eq!(keepers.iter().map(|keeper| keeper.pid).collect::<Vec<_>>(), [other.id()]);
    assert!(error.hint().unwrap().contains(&format!("`kill {}`", other.id())));
    drop(other.stdin.take());
    other.wait().unwrap();
    lock_file(&path).unwrap();
}
