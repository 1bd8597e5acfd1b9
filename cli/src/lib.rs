//! The parts of the chandler binary: configuration, state directory, queue, control and daemon.
//!
//! chandler fine-tunes language models as a daemon: files dropped into an inbox are learned from,
//! one after the other. This library is what `main.rs` composes; it is a library so that its parts
//! can be tested without starting a process.
//!
//! ```
//! use chandler_cli::config::{ConfigSources, ResolvedConfig};
//!
//! let sources = ConfigSources { set: vec!["train.seed=7".into()], ..ConfigSources::default() };
//! let resolved = ResolvedConfig::load(&sources)?;
//! assert_eq!(resolved.config.train.seed, 7);
//! # Ok::<(), chandler_cli::config::ConfigError>(())
//! ```
#![deny(missing_docs)]

pub mod alerts;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod engine;
pub mod exit;
pub mod export;
pub mod failure;
#[doc(hidden)]
pub mod fuzzing;
pub mod heap;
pub mod host;
pub mod http;
mod lock;
pub mod logging;
pub mod notify;
pub mod output;
mod place;
mod plan;
pub mod priority;
pub mod queue;
mod screen;
pub mod serve;
pub mod service;
pub mod signals;
pub mod state_dir;
pub mod store;
pub mod supervisor;
mod visible;
pub mod worker;
