//! The outer loop: claim a file, have it learned from, settle it, look for the next.

mod answers;
mod controls;
mod guest;
mod job_loop;
mod live_memory;
mod lookout;
mod obstacle;
mod retention;
mod runner;
mod settlement;
mod steady_clock;
mod stop;
mod voice;
mod when_idle;

pub use answers::Answers;
pub use controls::{Controls, CurrentJob};
pub use guest::Guest;
pub use job_loop::{DaemonError, JobLoop, Tally, Until};
pub use live_memory::LiveMemory;
pub use lookout::Lookout;
pub(crate) use obstacle::is_full;
pub use retention::{CheckpointFacts, SnapshotChores, checkpoints_to_remove, snapshot_chores};
pub use runner::{Fault, JobError, JobEstimate, JobOutcome, JobRunner, RunContext};
pub use steady_clock::SteadyClock;
pub use stop::{StopFlag, StopReason};
pub use voice::{ALIVE, Voice};
