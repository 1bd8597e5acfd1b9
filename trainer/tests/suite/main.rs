//! Whole runs against transformers, TRL and peft, and against themselves.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod late_metrics;
mod layers;
mod memory;
mod resume;
mod segments;
mod support;
mod trajectories;
