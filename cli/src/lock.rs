//! One daemon for each state directory, by a kernel lock.

use chandler_daemon_lock::{Holder, Lock, LockError, holder_of_state_dir, lock_state_dir};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::state_dir::StateDir;

/// Takes the lock of a state directory, or says who has it.
pub(crate) fn hold(state: &StateDir) -> Result<Lock, Failure> {
    lock_state_dir(state.root()).map_err(|error| {
        let root = state.root().display();
        let (exit, hint) = match &error {
            LockError::Held { holder: Some(_), .. } => (
                Exit::LockHeld,
                Some(format!(
                    "`chandler stop --dir {root}` ends it, `chandler status --dir {root}` says \
                     what it does"
                )),
            ),
            LockError::Held { .. } | LockError::Kept { .. } => (Exit::LockHeld, error.hint()),
            _ => (Exit::StateDir, error.hint()),
        };
        Failure::new(exit, error, hint)
    })
}

/// Who holds the state directory at the moment; `None` if nobody does.
pub(crate) fn holder(state: &StateDir) -> Result<Option<Option<Holder>>, LockError> {
    holder_of_state_dir(state.root())
}
