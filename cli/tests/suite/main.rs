//! The real binary, as scripts and people use it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../counterparts/python.rs"]
mod python;

mod alerts;
mod bad_input;
mod base_model;
mod bench;
mod chat;
mod daemon;
mod evals;
mod exports;
mod faces;
mod faults;
mod hostile;
mod kills;
mod losses;
mod memory;
mod models_elsewhere;
mod notify;
mod old_checkpoints;
mod packaging;
mod page;
mod receiver;
mod restarts;
mod serve;
mod support;
mod terminal;
