//! Numbers from the host, without waiting for the device.
//!
//! From memory that may be paged out the driver copies when it has come so far, and the host waits with
//! it. So numbers are put into memory that may not, and copied from there in the stream's order. A ring of
//! such slots is long enough that the host is some micro-batches ahead before it finds one that the
//! device has yet to read.
#![expect(unsafe_code, reason = "copies from pinned memory")]

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaStream, DriverError, PinnedHostSlice, result, sys,
};
use candle_core::{Device, Result, Shape, Tensor, WithDType, bail};

use super::launch::{address, empty};

/// Bytes of a slot.
const SLOT: usize = 2 << 20;
/// Slots of a ring: 16 MiB of the host's memory, taken as they are needed.
const SLOTS: usize = 8;

/// The ring of one stream.
struct Ring {
    stream: Arc<CudaStream>,
    slots: Vec<Slot>,
    /// The slot that is being filled, and how far.
    at: usize,
    filled: usize,
}

struct Slot {
    /// Keeps the memory.
    _memory: PinnedHostSlice<u8>,
    begin: *mut u8,
    /// When the device has read the slot.
    read: CudaEvent,
}

// SAFETY: the memory is the slot's own, and whoever writes there holds the lock of all rings.
unsafe impl Send for Slot {}

/// Of all streams that were used.
static RINGS: Mutex<Vec<Ring>> = Mutex::new(Vec::new());

/// `values` on the device, in this shape. Nothing is waited for as long as the ring has room.
pub(crate) fn upload<T: WithDType>(
    values: &[T],
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    let shape = shape.into();
    if shape.elem_count() != values.len() {
        bail!("{} numbers for {shape:?}", values.len());
    }
    let stream = device.as_cuda_device()?.cuda_stream();
    if stream.capture_status().w()? != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        bail!("numbers from the host cannot be recorded");
    }
    let bytes = size_of_val(values);
    if bytes > SLOT * SLOTS / 2 {
        return Tensor::from_slice(values, shape, device);
    }
    let tensor = empty(shape, T::DTYPE, device)?;
    let to = address(&tensor)?;
    // SAFETY: numbers, whose bytes are all written.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), bytes) };
    let mut rings = RINGS.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the tensor has as many bytes.
    match unsafe { Ring::of(&mut rings, &stream).copy(bytes, to) } {
        // Not every process may have pinned memory.
        Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            Tensor::from_slice(values, tensor.shape(), device)
        }
        copied => copied.w().map(|()| tensor),
    }
}

impl Ring {
    fn of<'a>(rings: &'a mut Vec<Self>, stream: &Arc<CudaStream>) -> &'a mut Self {
        let known = rings.iter().position(|ring| Arc::ptr_eq(&ring.stream, stream));
        let place = known.unwrap_or(rings.len());
        if known.is_none() {
            rings.push(Self { stream: Arc::clone(stream), slots: vec![], at: 0, filled: 0 });
        }
        &mut rings[place]
    }

    /// # Safety
    /// There are as many bytes at `to`, in memory of the stream's device.
    unsafe fn copy(
        &mut self,
        mut bytes: &[u8],
        mut to: sys::CUdeviceptr,
    ) -> std::result::Result<(), DriverError> {
        while !bytes.is_empty() {
            if self.slots.is_empty() {
                self.slots.push(Slot::new(&self.stream)?);
            }
            if self.filled == SLOT {
                self.turn()?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(SLOT - self.filled));
            // SAFETY: the slot has room behind what fills it, which the device has read; it reads this
            // before the slot's event, which is waited for before anybody writes there again.
            unsafe {
                let place = self.slots[self.at].begin.add(self.filled);
                place.copy_from_nonoverlapping(now.as_ptr(), now.len());
                let source = std::slice::from_raw_parts(place, now.len());
                result::memcpy_htod_async(to, source, self.stream.cu_stream())?;
            }
            self.filled += now.len();
            to += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Goes on with the next slot, once the device has read it.
    fn turn(&mut self) -> std::result::Result<(), DriverError> {
        self.slots[self.at].read.record(&self.stream)?;
        if self.slots.len() < SLOTS {
            self.slots.push(Slot::new(&self.stream)?);
            self.at = self.slots.len() - 1;
        } else {
            self.at = (self.at + 1) % SLOTS;
            self.slots[self.at].read.synchronize()?;
        }
        self.filled = 0;
        Ok(())
    }
}

impl Slot {
    fn new(stream: &Arc<CudaStream>) -> std::result::Result<Self, DriverError> {
        let context = stream.context();
        // SAFETY: it is read nowhere but where it was written.
        let mut memory = unsafe { context.alloc_pinned::<u8>(SLOT) }?;
        let begin = memory.as_mut_ptr()?;
        Ok(Self { _memory: memory, begin, read: context.new_event(None)? })
    }
}
