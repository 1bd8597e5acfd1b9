//! What a caching pool of device memory holds for a process.

use serde::{Deserialize, Serialize};

/// Counters of the pool that a process's tensors come from, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReading {
    /// What tensors and buffers take, and graphs, which have memory of their own beside the pool.
    pub used: u64,
    /// The most that they took.
    pub used_high: u64,
    /// What is taken from the device: that, and what was freed and is kept for the next.
    pub reserved: u64,
    /// The most that was taken from the device.
    pub reserved_high: u64,
}
