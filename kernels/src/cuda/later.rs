//! Numbers that the device is yet to write, for the host to read once it has.
//!
//! A copy to the host is work like any other: asked for at the moment when the numbers are wanted, it
//! would come after all that was handed over meanwhile. So it is asked for at once, into memory that
//! stays where it is, and later only its own end is waited for.
#![expect(unsafe_code, reason = "copies to pinned memory")]

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};
use candle_core::{DType, Result, Tensor, bail};

use super::launch::address;

/// Numbers that one copy brings, at most.
const MOST: usize = 8;
/// Places that are taken from the driver at a time: pinned memory comes in whole pages.
const PLACES: usize = 64;

/// A place for a copy.
struct Place {
    /// Keeps the memory.
    _memory: Arc<PinnedHostSlice<f64>>,
    begin: *mut f64,
    stream: Arc<CudaStream>,
    written: CudaEvent,
}

// SAFETY: the memory is the place's own, and the place one thread's at a time.
unsafe impl Send for Place {}
// SAFETY: what can be done with a `&Place` is to wait for it and read it.
unsafe impl Sync for Place {}

/// Places that nobody has.
static FREE: Mutex<Vec<Place>> = Mutex::new(Vec::new());

/// Some f64 on their way to the host.
pub(crate) struct Later {
    /// Until it is dropped.
    place: Option<Place>,
    count: usize,
}

impl Later {
    /// Those of `tensor`, f64, of at most [`MOST`] elements.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let count = tensor.elem_count();
        if tensor.dtype() != DType::F64 || count > MOST || !tensor.is_contiguous() {
            bail!("{tensor:?} for the host to read later");
        }
        let stream = tensor.device().as_cuda_device()?.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let place = Place::free(&stream)?;
        let from = address(tensor)?;
        // SAFETY: the place has room, and is this copy's alone until its event has come.
        unsafe {
            let to = std::slice::from_raw_parts_mut(place.begin, count);
            result::memcpy_dtoh_async(to, from, stream.cu_stream()).w()?;
        }
        let later = Self { place: Some(place), count };
        later.place().written.record(&stream).w()?;
        Ok(later)
    }

    /// The numbers, once the device has come to the copy.
    pub(crate) fn wait(&self) -> Result<Vec<f64>> {
        let place = self.place();
        place.written.synchronize().w()?;
        // SAFETY: the copy is done, and nobody else writes here.
        Ok(unsafe { std::slice::from_raw_parts(place.begin, self.count) }.to_vec())
    }

    fn place(&self) -> &Place {
        self.place.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Later {
    /// The place is another's only once this copy is done; where that cannot be known, nobody's.
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && place.written.synchronize().is_ok()
        {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(place);
        }
    }
}

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Later({})", self.count)
    }
}

impl Place {
    fn free(stream: &Arc<CudaStream>) -> Result<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let of_stream = |place: &Self| Arc::ptr_eq(&place.stream, stream);
        if let Some(index) = free.iter().position(of_stream) {
            return Ok(free.swap_remove(index));
        }
        // SAFETY: it is read nowhere but where it was written.
        let mut memory =
            unsafe { stream.context().alloc_pinned_with_flags(MOST * PLACES, 0) }.w()?;
        let begin = memory.as_mut_ptr().w()?;
        let memory = Arc::new(memory);
        for index in 0..PLACES {
            free.push(Self {
                _memory: Arc::clone(&memory),
                // SAFETY: there is room for so many.
                begin: unsafe { begin.add(index * MOST) },
                stream: Arc::clone(stream),
                written: stream.context().new_event(None).w()?,
            });
        }
        free.pop().map_or_else(|| bail!("no place for a copy"), Ok)
    }
}
