//! Memory that can be refused.
//!
//! An op asks for its output and for its large buffers before it works on anything, and where
//! there is too little, it returns an error that [`lacking`] knows, as a device without room
//! does. What a process may use is not for an op to know: whoever has a limit to keep puts up a
//! [`Gate`].
//!
//! ```
//! use std::sync::Arc;
//! use candle_core::{DType, Device};
//! use chandler_kernels::memory::{self, Faults};
//!
//! memory::set_gate(Some(Arc::new(Faults::new(0, 1 << 20))));
//! let refused = memory::zeros((1024, 1024), DType::F32, &Device::Cpu).unwrap_err();
//! assert_eq!(memory::lacking(&refused), Some(Some(4 << 20)));
//! memory::set_gate(None);
//! ```

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};

/// Smaller buffers are not asked for: there are many of them, and together they are little.
const SMALLEST: usize = 4096;

/// Decides about memory.
pub trait Gate: Send + Sync {
    /// Whether so many bytes more may be allocated now.
    fn admits(&self, bytes: usize) -> bool;
}

/// A gate with faults to order, for tests that go through every request: refuses the one with this
/// number, and all above so many bytes.
#[derive(Debug)]
pub struct Faults {
    asked: AtomicUsize,
    nth: usize,
    above_bytes: usize,
}

impl Faults {
    /// Refuses request `nth`, counted from 1 (0 is none), and those above `above_bytes`.
    pub fn new(nth: usize, above_bytes: usize) -> Self {
        Self { asked: AtomicUsize::new(0), nth, above_bytes }
    }

    /// Requests so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Gate for Faults {
    fn admits(&self, bytes: usize) -> bool {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        number != self.nth && bytes <= self.above_bytes
    }
}

static GATED: AtomicBool = AtomicBool::new(false);
static GATE: RwLock<Option<Arc<dyn Gate>>> = RwLock::new(None);

/// From now on every op of this process asks this gate; `None` takes it away.
pub fn set_gate(gate: Option<Arc<dyn Gate>>) {
    let mut place = GATE.write().unwrap_or_else(PoisonError::into_inner);
    GATED.store(gate.is_some(), Ordering::Release);
    *place = gate;
}

/// Asks for memory that is about to be allocated.
pub fn request(bytes: usize) -> Result<()> {
    if bytes < SMALLEST || !GATED.load(Ordering::Acquire) {
        return Ok(());
    }
    let gate = GATE.read().unwrap_or_else(PoisonError::into_inner).clone();
    match gate {
        Some(gate) if !gate.admits(bytes) => Err(refused(bytes)),
        _ => Ok(()),
    }
}

/// A tensor of zeros, if there is memory for it.
pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    if device.is_cpu() {
        request(shape.elem_count() * dtype.size_in_bytes())?;
    }
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return crate::cuda::zeros(&shape, dtype, device);
    }
    Tensor::zeros(shape, dtype, device)
}

/// Whether an error says that memory was lacking, and how many bytes, where it says that too.
pub fn lacking(error: &Error) -> Option<Option<usize>> {
    match error {
        Error::Io(error) => {
            let refused = error.get_ref()?.downcast_ref::<Refused>()?;
            Some(Some(refused.bytes))
        }
        Error::WithBacktrace { inner, .. }
        | Error::WithPath { inner, .. }
        | Error::Context { inner, .. } => lacking(inner),
        // The driver's words, and those of cuBLAS, which has memory of its own.
        Error::Cuda(error) => {
            let words = error.to_string();
            let lacks = ["OUT_OF_MEMORY", "ALLOC_FAILED"].iter().any(|word| words.contains(word));
            lacks.then_some(None)
        }
        _ => None,
    }
}

/// The error for bytes that were not to be had.
pub(crate) fn refused(bytes: usize) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::OutOfMemory, Refused { bytes }))
}

#[derive(Debug)]
struct Refused {
    bytes: usize,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "out of memory: {} bytes could not be had", self.bytes)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_so_lacks_memory() {
        assert_eq!(lacking(&refused(7)), Some(Some(7)));
        assert_eq!(lacking(&refused(7).context("a block").with_path("weights")), Some(Some(7)));
        assert_eq!(lacking(&Error::Msg("out of memory: 7 bytes".to_owned())), None);
        let other = io::Error::new(io::ErrorKind::OutOfMemory, "elsewhere");
        assert_eq!(lacking(&Error::Io(other)), None);
    }
}
