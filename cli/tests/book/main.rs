//! The book and the README hold true: links lead somewhere, commands are ones that the binary takes and
//! that do what a reader does with them, configuration is what it reads.
//!
//! A block of commands (`sh`) is run in CI: by `.ci/run`, where that has the line as it stands, else by
//! `runs.rs`, with a model of some kilobytes in the place of the one that is named. Those that are not
//! have `no_run` after the language, and why.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod commands;
mod links;
mod pages;
mod runs;
mod settings;
