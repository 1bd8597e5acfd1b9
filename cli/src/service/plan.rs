//! What is to be run, by whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a file of ours begins with; others are left alone.
pub const MARK: &str = "Written by `chandler service install`";

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The user's, who needs no rights for it.
    User,
    /// The machine's.
    System,
}

/// A daemon that is to be run as a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePlan {
    /// Whose service it is.
    pub scope: Scope,
    /// The name that the manager knows it by.
    pub name: String,
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// The state directory, by its absolute path.
    pub state_dir: PathBuf,
    /// What else the configuration names: the model's folder, the program of `daemon.when_idle`.
    pub reads: Vec<PathBuf>,
    /// The user and the group, by name or number; for a service of the machine.
    pub owner: Option<(String, String)>,
    /// How long a daemon that hangs goes unnoticed by chandler itself; `None` is for ever.
    pub hang: Option<Duration>,
}

impl ServicePlan {
    /// Whether anything that is needed lies where the homes of users are.
    pub(super) fn needs_homes(&self) -> bool {
        let is_at_home =
            |path: &Path| ["/home", "/root", "/run/user"].iter().any(|home| path.starts_with(home));
        let needed = [&self.program, &self.state_dir];
        needed.into_iter().chain(&self.reads).any(|path| is_at_home(path))
    }
}
