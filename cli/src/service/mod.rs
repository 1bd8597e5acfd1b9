//! The daemon as a service of the system: what its manager is told, and how it is installed.
//!
//! ```text
//! sd_notify.rs  READY, STATUS, STOPPING and signs of life for systemd
//! plan.rs       what is to be run, by whom
//! systemd.rs    a unit of it
//! launchd.rs    a property list of it
//! manager.rs    where these lie, and the commands that put them in force
//! ```

mod launchd;
mod manager;
mod plan;
mod sd_notify;
mod systemd;

pub use manager::{Manager, Service, ServiceError};
pub use plan::{MARK, Scope, ServicePlan};
pub use sd_notify::{NotifySocket, SOCKET_VARIABLE};
