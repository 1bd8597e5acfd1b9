//! The crate against what transformers and peft computed, and against damaged folders.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod adapters;
mod decode_graph;
mod folders;
mod gguf;
mod gradients;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
mod kv_cache;
mod logits;
#[cfg(feature = "hub")]
mod push;
mod rope;
mod support;
mod transformers;
