//! The state directory itself: its folders, its database, its lock.

use super::check::Check;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::lock;
use crate::state_dir::StateDir;
use crate::store::Store;

pub(super) fn folder(state: &StateDir) -> Check {
    match state.create_folders().and_then(|()| state.check_writable()) {
        Ok(()) => Check::ok("state directory", state.root().display().to_string()),
        Err(error) => Check::of_failure("state directory", &error.into()),
    }
}

pub(super) fn database(state: &StateDir) -> Check {
    match Store::open(&state.database()).and_then(|store| store.check()) {
        Ok(None) => Check::ok("database", "opens, and is whole"),
        Ok(Some(damage)) => Check::problem(
            "database",
            damage,
            "stop the daemon, move chandler.db and its -wal and -shm aside",
        ),
        Err(error) => Check::of_failure("database", &error.into()),
    }
}

pub(super) fn lock(state: &StateDir) -> Check {
    match lock::holder(state) {
        Ok(None) => Check::ok("lock", "free: no daemon is running"),
        Ok(Some(None)) => Check::info("lock", "held by a process that is unknown"),
        Ok(Some(Some(holder))) => Check::info("lock", format!("held by {holder}")),
        Err(error) => {
            let hint = error.hint();
            Check::of_failure("lock", &Failure::new(Exit::StateDir, error, hint))
        }
    }
}
