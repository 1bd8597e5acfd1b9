//! The outer loop: claim a file, have it learned from, settle it, look for the next.

mod answers;
mod controls;
mod guest;
mod job_loop;
mod live_memory;
mod obstacle;
mod retention;
mod runner;
mod stop;

pub use answers::Answers;
pub use controls::{Controls, CurrentJob};
pub use guest::Guest;
pub use job_loop::{DaemonError, JobLoop, Tally, Until};
pub use live_memory::LiveMemory;
pub(crate) use obstacle::is_full;
pub use retention::{CheckpointFacts, SnapshotChores, checkpoints_to_remove, snapshot_chores};
pub use runner::{Fault, JobError, JobEstimate, JobOutcome, JobRunner, RunContext};
pub use stop::{StopFlag, StopReason};
