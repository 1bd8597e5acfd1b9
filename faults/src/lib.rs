//! Breaks chandler on purpose.
//!
//! A daemon with little to do ([`Scenario`]) runs once undisturbed; what it leaves is the
//! [`Oracle`]. Then it runs again, traced ([`run`]): each of its operations on the state directory
//! is seen before it is made, and may be killed at, or made to fail. Whatever was done to it, the
//! next undisturbed life must bring it to the very same model, through the very same losses.
//!
//! A traced run can also be recorded ([`Recorder`]); a simulated [`Disk`] then goes through the
//! record and shows what a power loss at any moment may have left of it.
//!
//! `chandler-faults` is the campaigns on the command line; short ones are in `tests/`.

#![deny(missing_docs)]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod call;
mod disk;
pub mod io_errors;
mod kernel;
pub mod kills;
mod oracle;
pub mod power;
mod random;
mod recorder;
mod scenario;
pub mod soak;
mod tracer;

pub use call::{Call, Kind};
pub use disk::{Contents, Disk, Loss};
pub use oracle::Oracle;
pub use random::Random;
pub use recorder::{Event, Recorder, Replay};
pub use scenario::{FILE_NAME, Scenario};
pub use tracer::{Ending, Errno, Verdict, Watcher, can_trace, run};
