//! The chandler binary: fine-tuning as a daemon.
fn main() {}
