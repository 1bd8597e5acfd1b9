//! A state directory with a queue, for tests.

use std::path::Path;

use super::add_file;
use crate::priority::Priority;
use crate::state_dir::StateDir;
use crate::store::{Job, Store};

pub(super) struct Fixture {
    pub(super) folder: tempfile::TempDir,
    pub(super) state: StateDir,
    pub(super) store: Store,
}

pub(super) fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::choose(Some(Path::new("state")), folder.path());
    state.init("").unwrap();
    let store = Store::open(&state.database()).unwrap();
    Fixture { folder, state, store }
}

impl Fixture {
    /// Queues a file of this name.
    pub(super) fn add(&self, name: &str, bytes: &[u8]) -> Job {
        let source = self.folder.path().join(name);
        chandler_durable::write(&source, bytes).unwrap();
        add_file(&self.state, &self.store, &source, Priority::Normal).unwrap()
    }
}
