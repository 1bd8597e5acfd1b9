//! Many numbers for the host, by way of pinned memory, to which a card copies without a buffer of the
//! driver's in between.
#![expect(unsafe_code, reason = "copies to pinned memory")]

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, DriverError, PinnedHostSlice, result, sys,
};
use candle_core::{DType, Result, Tensor, bail};

use super::launch::address;

/// What the last copies went to. Whoever copies takes it, and brings it back.
static KEPT: Mutex<Option<PinnedHostSlice<f32>>> = Mutex::new(None);

/// Calls `f` with the numbers of `tensor`, f32, once the device has come so far; without, and with
/// `None`, where there is no such memory to be had.
pub(crate) fn with_values<T>(tensor: &Tensor, f: impl FnOnce(Option<&[f32]>) -> T) -> Result<T> {
    let count = tensor.elem_count();
    if tensor.dtype() != DType::F32 || !tensor.is_contiguous() {
        bail!("{tensor:?} for the host");
    }
    let stream = tensor.device().as_cuda_device()?.cuda_stream();
    let mut memory = match memory_of(stream.context(), count) {
        Ok(memory) => memory,
        Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Ok(f(None)),
        Err(error) => return Err(error).w(),
    };
    let from = address(tensor)?;
    let begin = memory.as_mut_ptr().w()?;
    // SAFETY: there is room for so many, the copy is waited for, and nobody else has the memory.
    let values = unsafe {
        let to = std::slice::from_raw_parts_mut(begin, count);
        result::memcpy_dtoh_async(to, from, stream.cu_stream()).w()?;
        stream.synchronize().w()?;
        &*to
    };
    let done = f(Some(values));
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
    Ok(done)
}

/// What is kept, if it is of this device and has room; otherwise new.
fn memory_of(
    context: &Arc<CudaContext>,
    count: usize,
) -> std::result::Result<PinnedHostSlice<f32>, DriverError> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
    match kept {
        Some(kept) if kept.len() >= count && kept.context() == context => Ok(kept),
        _ => {
            // Read by the host, so not combined for writing.
            // SAFETY: nothing is read before it is written.
            unsafe { context.alloc_pinned_with_flags(count.max(1), 0) }
        }
    }
}
