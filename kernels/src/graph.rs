//! Work of a GPU that is handed over once and done many times: a CUDA graph.
//!
//! A decode step is some hundred small kernels, and handing each of them over takes the host longer
//! than the GPU needs for it. Recorded, all of them are handed over at once.

use candle_core::{Device, Result};

/// The GPU's side, or what a build without it has in its place.
#[cfg(feature = "cuda")]
use crate::cuda::graph as gpu;
#[cfg(not(feature = "cuda"))]
use crate::no_cuda as gpu;

/// What some ops handed to a GPU, with the addresses and the numbers that they gave.
///
/// Buffers that the ops made are the graph's own: it takes memory of the device for them when it is
/// first launched, beside the pool, and [`device::give_back`](crate::device::give_back) returns that
/// once the graph is gone.
#[derive(Debug)]
pub struct Graph(gpu::Graph);

impl Graph {
    /// Records what `work` hands to `device`; none of it is done. `None` on a device without graphs,
    /// where nothing happens.
    ///
    /// # Errors
    /// What `work` does must be all the GPU's: an op that waits for the device or brings numbers from
    /// the host cannot be recorded. Tensors that it makes must be gone when it returns: they have no
    /// memory but when the graph is launched. The device is as it was before, whatever went wrong.
    pub fn record(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<Option<Self>> {
        Ok(gpu::record(device, work)?.map(Self))
    }

    /// Does the recorded work once more, after all that was handed over before. Nothing is waited for.
    ///
    /// # Safety
    /// Every tensor that the work read or wrote, and did not make itself, is still there, its memory
    /// where it was.
    #[expect(unsafe_code, reason = "the work has addresses, and keeps no tensor")]
    pub unsafe fn launch(&mut self) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.launch() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_no_graphs() -> Result<()> {
        let refused = || candle_core::bail!("nothing is recorded on the CPU");
        assert!(Graph::record(&Device::Cpu, refused)?.is_none());
        Ok(())
    }
}
