//! The crate against what transformers and TRL computed, and against bad files.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod assistant;
mod bad_files;
mod chat;
mod hostile;
mod rows;
mod support;
