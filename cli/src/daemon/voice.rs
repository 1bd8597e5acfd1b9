//! Who hears that the daemon is alive and how it fares.
//!
//! A supervisor listens on standard output: an empty line is a sign of life, any other is for the
//! service manager, to whom it alone speaks. A daemon without a supervisor speaks to the service
//! manager itself.

use crate::service::NotifySocket;

/// The sign of life that a service manager knows.
pub const ALIVE: &str = "WATCHDOG=1";

/// Where the daemon is heard.
#[derive(Debug, Default)]
pub enum Voice {
    /// Nowhere.
    #[default]
    None,
    /// By the supervisor.
    Supervisor,
    /// By the service manager.
    Manager(NotifySocket),
}

impl Voice {
    /// Gives a sign of life.
    pub(super) fn beat(&self) {
        match self {
            Self::None => {}
            // Whoever listened is gone, and has taken care that we hear of it.
            Self::Supervisor => drop(crate::output::print("\n")),
            Self::Manager(socket) => drop(socket.send(ALIVE)),
        }
    }

    /// Tells the service manager an assignment such as `READY=1`; what it does not hear is lost.
    pub(super) fn tell(&self, assignment: &str) {
        match self {
            Self::None => {}
            Self::Supervisor => drop(crate::output::print(&format!("{assignment}\n"))),
            Self::Manager(socket) => drop(socket.send(assignment)),
        }
    }

    /// Whether anybody hears.
    pub(super) fn is_heard(&self) -> bool {
        !matches!(self, Self::None)
    }
}
