//! Inputs that strangers write, in all the ways in which they can be wrong.
//!
//! Each [`Target`] hands bytes to one reader of chandler's: whatever they are, it returns a value or
//! an error, in less than [`MOST_MILLIS`] and without a panic. Three things drive the targets: the
//! tests (proptest, a bounded number of cases), the program of this crate (as many as one wants, on
//! stable Rust), and libFuzzer with coverage in `libfuzzer/` (nightly Rust).
//!
//! ```
//! let target = chandler_fuzz::target("config_json").unwrap();
//! target.run(br#"{ "model_type": "llama", "vocab_size": -1 }"#);
//! ```
#![deny(missing_docs)]

mod corpus;
mod edits;
mod targets;

pub use corpus::Corpus;
pub use edits::{Edit, MOST_BYTES, Random, edited};
pub use targets::{TARGETS, Target, clean_up, target};

/// The longest that one input of up to [`MOST_BYTES`] may take, in milliseconds of the CPU.
pub const MOST_MILLIS: u128 = 1000;
/// The most memory that a process may take that runs one target for ever.
pub const MOST_BYTES_OF_MEMORY: u64 = 512 << 20;
