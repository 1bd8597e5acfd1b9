//! Opening a GPU.
#![expect(unsafe_code, reason = "switches off what several streams would need")]

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::{Device, Result, bail};

use super::{cudnn, gemm, pool};

/// What the kernels are written for: bf16, and copies into shared memory that nobody waits for.
const LEAST_CAPABILITY: u32 = 80;

/// Opens the GPU of this number; its tensors take at most `limit` bytes.
pub(crate) fn open(ordinal: usize, limit: Option<u64>) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    let capability = capability(&device)?;
    if capability < LEAST_CAPABILITY {
        let [theirs, least] = [capability, LEAST_CAPABILITY].map(|c| f64::from(c) / 10.0);
        bail!(
            "its compute capability is {theirs:.1}, and chandler's kernels want {least:.1} at least"
        );
    }
    // SAFETY: events order what several streams do with a tensor. This device has one stream, for
    // all threads, on which everything is in order; no tensor exists yet.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    gemm::round_once(&device)?;
    gemm::give_workspace(&device)?;
    pool::make(&device, limit)?;
    cudnn::opened(&device)?;
    Ok(device)
}

/// GPUs that there are. A driver that does not start says nothing about that.
pub(crate) fn count() -> Result<usize> {
    match CudaContext::device_count() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        count => Ok(count.w()?.max(0) as usize),
    }
}

fn context(device: &Device) -> Option<Arc<CudaContext>> {
    Some(Arc::clone(device.as_cuda_device().ok()?.cuda_stream().context()))
}

pub(crate) fn uuid(ordinal: usize) -> Option<String> {
    result::init().ok()?;
    let bytes = result::device::get_uuid(result::device::get(ordinal as i32).ok()?).ok()?.bytes;
    let digits = |part: &[_]| part.iter().map(|byte| format!("{:02x}", *byte as u8)).collect();
    let parts: Vec<String> =
        [0..4, 4..6, 6..8, 8..10, 10..16].into_iter().map(|part| digits(&bytes[part])).collect();
    Some(format!("GPU-{}", parts.join("-")))
}

pub(crate) fn free_and_total(device: &Device) -> Option<(u64, u64)> {
    let (free, total) = context(device)?.mem_get_info().ok()?;
    Some((free as u64, total as u64))
}

/// Compute capability as nvrtc wants it, such as 90.
pub(super) fn capability(device: &Device) -> Result<u32> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let (major, minor) = stream.context().compute_capability().map_err(candle_core::Error::wrap)?;
    Ok((10 * major + minor) as u32)
}
