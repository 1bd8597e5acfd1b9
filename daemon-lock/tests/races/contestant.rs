//! A process that wants the lock.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chandler_daemon_lock::{Lock, LockError, lock_file, lock_state_dir};

use crate::witness::Witness;

/// The file that says that the first owner was dealt its blow.
pub(crate) const STRUCK: &str = "struck";

/// How a contestant locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// `lock_state_dir`.
    Folder,
    /// `lock_file`.
    File,
    /// A file with the owner's pid, made if it is not there: what this crate must be better than.
    PidFile,
}

/// What a contestant is told: by what, how many times it tries, how long an owner stays (or until
/// it is dealt its blow), where.
pub(crate) struct Task {
    pub(crate) by: By,
    pub(crate) tries: u32,
    pub(crate) stay: Option<Duration>,
    pub(crate) folder: PathBuf,
}

enum Held {
    Lock(Lock),
    PidFile(PathBuf),
}

/// Says that it is ready, waits until the gate (its input) closes, and tries.
pub(crate) fn contend(task: &Task) -> Result<(), Box<dyn std::error::Error>> {
    let mut witness = Witness::open(&task.folder.join("witness"))?;
    say("ready")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    for _ in 0..task.tries {
        if let Some(held) = lock(task)? {
            own(&held, &mut witness, task)?;
        }
    }
    Ok(())
}

fn own(
    held: &Held,
    witness: &mut Witness,
    Task { stay, folder, .. }: &Task,
) -> Result<(), LockError> {
    let pid = std::process::id();
    let io = |source| LockError::Io { path: "witness".into(), source };
    witness.say("enter", pid).map_err(io)?;
    say(&format!("owner {pid}")).map_err(io)?;
    match stay {
        Some(stay) => std::thread::sleep(*stay),
        None => wait_for_blow(folder),
    }
    let kept = match held {
        Held::Lock(lock) => lock.still_ours(),
        Held::PidFile(_) => Ok(()),
    };
    if matches!(kept, Err(LockError::Lost { .. })) {
        witness.say("lost", pid).map_err(io)?;
    } else {
        kept?;
    }
    witness.say("exit", pid).map_err(io)?;
    if let Held::PidFile(path) = held {
        // Others may have taken it for theirs and removed it.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Until what is to be done to the first owner is done.
fn wait_for_blow(folder: &Path) {
    for _ in 0..60_000 {
        if folder.join(STRUCK).exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn lock(task: &Task) -> Result<Option<Held>, LockError> {
    let taken = match task.by {
        By::Folder => lock_state_dir(&task.folder),
        By::File => lock_file(&task.folder.join("lock")),
        By::PidFile => return Ok(pid_file(&task.folder.join("pid"))),
    };
    match taken {
        Ok(lock) => Ok(Some(Held::Lock(lock))),
        Err(LockError::Held { .. } | LockError::Kept { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks, then makes it: several look before one makes it.
fn pid_file(path: &Path) -> Option<Held> {
    if path.exists() {
        return None;
    }
    std::thread::sleep(Duration::from_millis(1));
    fs::File::create(path).ok().map(|_| Held::PidFile(path.to_owned()))
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}
