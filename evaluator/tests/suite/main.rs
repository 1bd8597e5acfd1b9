//! The crate against transformers' generation, and the promise that nothing stays.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod generation;
mod memory;
mod support;
