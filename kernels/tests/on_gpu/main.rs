//! Every op on a GPU against the same op on the CPU, and the memory of the device.
//!
//! `packaging/cuda/test` runs this: on the GPU, where there is one, else on the stand-in for one
//! (`kernels/cuda/stand_in/`), which runs the kernels in the emulator.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod adamw;
mod graph;
mod long_documents;
mod ops;
mod pool;
mod start;
mod support;
mod upload;
