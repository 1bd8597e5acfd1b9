//! Opening a device, and the memory that it holds for this process.
//!
//! On a GPU tensors come from a pool of the driver's, which keeps what was freed for the next op.
//! [`pool`] reads its counters, [`give_back`] empties it: after that the process holds what its
//! tensors take and no more.

use candle_core::{Device, Result};

use crate::scratch;

/// The GPU's side, or what a build without it has in its place.
#[cfg(feature = "cuda")]
use crate::cuda::host as gpu;
#[cfg(not(feature = "cuda"))]
use crate::no_cuda as gpu;

/// Whether this build can use GPUs.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// What the driver's pool of a GPU holds for this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolUsage {
    /// What tensors and buffers take.
    pub used: u64,
    /// The most they took since [`reset_high_water`].
    pub used_high: u64,
    /// What is taken from the device: that, and what was freed and is kept.
    pub reserved: u64,
    /// The most that was taken since [`reset_high_water`].
    pub reserved_high: u64,
}

/// Opens the CUDA device of this number, whose tensors take at most `limit` bytes, where there is a
/// limit. An error in a build without the feature `cuda`.
///
/// All ops of the device go to one stream, so its tensors may be used from any thread. Products of
/// f32 matrices are computed in f32, and not in TF32.
pub fn open_cuda(ordinal: usize, limit: Option<u64>) -> Result<Device> {
    gpu::open(ordinal, limit)
}

/// CUDA devices that [`open_cuda`] could open: 0 without a driver, or without the feature `cuda`.
pub fn cuda_devices() -> usize {
    gpu::count()
}

/// How a GPU is told from every other one, as NVIDIA's tools write it (`GPU-` and 32 hexadecimal
/// digits); `None` where there is none of this number. Nothing is opened.
pub fn uuid(ordinal: usize) -> Option<String> {
    gpu::uuid(ordinal)
}

/// Bytes of the whole device that nobody uses, and bytes that it has; `None` for the CPU, and where
/// the driver does not say.
pub fn free_and_total(device: &Device) -> Option<(u64, u64)> {
    gpu::free_and_total(device)
}

/// The counters of the device's pool; `None` for the CPU, and where the driver does not say.
pub fn pool(device: &Device) -> Option<PoolUsage> {
    gpu::read(device)
}

/// High-water marks of the pool begin anew. Nothing is done for the CPU.
pub fn reset_high_water(device: &Device) -> Result<()> {
    gpu::reset_high_water(device)
}

/// Gives back what lies idle: the buffers of the ops, and what the pool of a GPU keeps, once the
/// work that was begun is done.
pub fn give_back(device: &Device) -> Result<()> {
    scratch::release();
    gpu::trim(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_no_pool() -> Result<()> {
        let cpu = Device::Cpu;
        assert_eq!((pool(&cpu), free_and_total(&cpu)), (None, None));
        reset_high_water(&cpu)?;
        give_back(&cpu)
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_says_so() {
        assert_eq!((cuda_devices(), uuid(0)), (0, None));
        let refused = open_cuda(0, None).unwrap_err();
        assert!(matches!(refused, candle_core::Error::NotCompiledWithCudaSupport), "{refused}");
    }
}
