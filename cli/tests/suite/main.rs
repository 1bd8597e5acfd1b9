//! The real binary, as scripts and people use it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod bench;
mod daemon;
mod faces;
mod faults;
mod hostile;
mod kills;
mod memory;
mod old_checkpoints;
mod restarts;
mod support;
mod terminal;
