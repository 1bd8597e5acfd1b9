//! Who uses memory, for what, and how much a run will use.
//!
//! - [`Meter`]s say what is used: [`HostMeter`] reads this process and its cgroup, [`NvmlMeter`]
//!   reads GPUs through NVML where there is one. What cannot be read is `None`, never 0.
//!   [`CountingAllocator`] counts the heap of a process that installs it; [`TensorBlocks`] places
//!   its large blocks so that the CPU gets at them fast.
//! - The [`Ledger`] says what it is used for. Every tensor that outlives an operation is entered
//!   by its owner and leaves with it.
//! - A [`Shortage`] says in a sentence why bytes could not be had, naming everybody who holds some;
//!   [`RecordedGpus`] plays readings back where there is no GPU.
//! - The [plan](plan()) says what will be used: a pure function of shapes.
//!
//! ```
//! use chandler_vram::{Category, Ledger};
//!
//! let ledger = Ledger::new();
//! let weights = ledger.enter(Category::Weights, 1_000);
//! let before = ledger.bytes(Category::KvCache);
//! {
//!     let _cache = ledger.enter(Category::KvCache, 500);
//!     assert_eq!(ledger.total(), 1_500);
//! }
//! assert_eq!(ledger.bytes(Category::KvCache), before);
//! assert_eq!(ledger.snapshot().peak_total, 1_500);
//! # drop(weights);
//! ```
#![deny(missing_docs)]

mod blocks;
mod bytes;
pub mod counting;
mod host;
mod ledger;
mod nvml;
mod plan;
mod pool;
mod recorded;
mod shortage;

pub use blocks::{TensorBlocks, forget_huge_pages};
pub use bytes::{Bytes, ParseBytesError};
pub use counting::CountingAllocator;
pub use host::{HostMeter, HostReading};
pub use ledger::{Category, CategoryBytes, Entry, Ledger, Phase, PhasePeak, Snapshot};
pub use nvml::{GpuProcess, GpuReading, NvmlMeter};
pub use plan::{
    Choice, EvalShape, Line, ModelShape, Passing, Plan, TrainShape, choose, most_that_fits, plan,
};
pub use pool::PoolReading;
pub use recorded::{GpuMeter, RecordedGpus};
pub use shortage::Shortage;

/// Something whose memory use can be read.
pub trait Meter {
    /// What it says at the moment.
    fn read(&self) -> MemoryReading;
}

/// Memory of a device or a machine; what could not be read is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryReading {
    /// Bytes in use, by anyone.
    pub used: Option<u64>,
    /// Bytes that there are.
    pub total: Option<u64>,
    /// Bytes that could still be had.
    pub free: Option<u64>,
}
