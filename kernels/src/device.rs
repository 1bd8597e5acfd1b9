//! Opening a device, and the memory that it holds for this process.
//!
//! On a GPU tensors come from a pool of the driver's, which keeps what was freed for the next op.
//! [`pool`] reads its counters, [`give_back`] empties it: after that the process holds what its
//! tensors take and no more.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{Device, Result, Shape, Tensor, WithDType};

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
    /// What tensors, buffers and graphs take.
    pub used: u64,
    /// The most they took since [`reset_high_water`].
    pub used_high: u64,
    /// What is taken from the device: that, what was freed and is kept, and the buffers of graphs.
    pub reserved: u64,
    /// The most that was taken since [`reset_high_water`].
    pub reserved_high: u64,
}

/// Keeps what the driver's compiler makes of the kernels' sources, so that the next process need not
/// wait for it: seconds, before the first step.
pub trait Translations: fmt::Debug + Send + Sync {
    /// What was put for exactly this text, if it is still there.
    fn get(&self, source: &str) -> Option<String>;

    /// Keeps the translation of a text, which names the compiler and its options too. What cannot be
    /// kept is made again.
    fn put(&self, source: &str, translation: &str);
}

static TRANSLATIONS: RwLock<Option<Arc<dyn Translations>>> = RwLock::new(None);

/// Where translations are kept from now on; without, they last as long as the process.
pub fn set_translations(place: Option<Arc<dyn Translations>>) {
    *TRANSLATIONS.write().unwrap_or_else(PoisonError::into_inner) = place;
}

/// The translation of `source`, from where it is kept, or by `translate`.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "there is nothing to translate"))]
pub(crate) fn translation(
    source: &str,
    translate: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let place = TRANSLATIONS.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(kept) = place.as_ref().and_then(|place| place.get(source)) {
        return Ok(kept);
    }
    let made = translate()?;
    if let Some(place) = place {
        place.put(source, &made);
    }
    Ok(made)
}

/// Remembers, past the end of this process, what is being tried that may take the process with it: a
/// fault on a GPU ends all that a process does there.
pub trait Trials: fmt::Debug + Send + Sync {
    /// Before `what` is tried; whether it should be, after what it did to processes before.
    fn begin(&self, what: &str) -> bool;

    /// It is over, and the process is well.
    fn end(&self, what: &str);
}

static TRIALS: RwLock<Option<Arc<dyn Trials>>> = RwLock::new(None);

/// Where trials are remembered from now on; without, everything is tried.
pub fn set_trials(place: Option<Arc<dyn Trials>>) {
    *TRIALS.write().unwrap_or_else(PoisonError::into_inner) = place;
}

/// What comes of trying `what`; `None` where it should not be tried. It is over where the process
/// `is_well` after it.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "there is nothing to try"))]
pub(crate) fn tried<T>(
    what: &str,
    work: impl FnOnce() -> T,
    is_well: impl FnOnce() -> bool,
) -> Option<T> {
    let place = TRIALS.read().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(place) = place else { return Some(work()) };
    if !place.begin(what) {
        return None;
    }
    let found = work();
    if is_well() {
        place.end(what);
    }
    Some(found)
}

/// Opens the CUDA device of this number, whose tensors take at most `limit` bytes, where there is a
/// limit. An error in a build without the feature `cuda`.
///
/// All ops of the device go to one stream, so its tensors may be used from any thread. Products of
/// f32 matrices are computed in f32, and not in TF32.
pub fn open_cuda(ordinal: usize, limit: Option<u64>) -> Result<Device> {
    gpu::open(ordinal, limit)
}

/// CUDA devices that [`open_cuda`] could open: 0 where the driver says so, and without the feature `cuda`.
/// An error where the driver does not start: there may be GPUs all the same.
pub fn cuda_devices() -> Result<usize> {
    gpu::count()
}

/// The release of the library that computes attention of long documents on a GPU; an error that says why
/// there is none, and chandler's own kernels do that too.
pub fn attention_library() -> std::result::Result<String, &'static str> {
    gpu::attention_library()
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

/// Whether a GPU refuses all work of this process, to its end: so it is after an illegal address or a fault of
/// its memory. Waits for the work that was handed over; never true of the CPU.
pub fn is_lost(device: &Device) -> bool {
    // The first answer may be an earlier call's error.
    !device.is_cpu() && device.synchronize().is_err() && device.synchronize().is_err()
}

/// High-water marks of the pool begin anew. Nothing is done for the CPU.
pub fn reset_high_water(device: &Device) -> Result<()> {
    gpu::reset_high_water(device)
}

/// A tensor of these numbers on `device`. A GPU is not waited for: it copies them when the work before is
/// done.
pub fn upload<T: WithDType>(
    values: Vec<T>,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return gpu::upload(&values, shape, device);
    }
    Tensor::from_vec(values, shape.into(), device)
}

/// `tensor` in the machine's memory. A GPU is waited for: candle hands the copy over, and whether the driver
/// waits where that memory may be paged out is not said.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    let here = tensor.to_device(&Device::Cpu)?;
    tensor.device().synchronize()?;
    Ok(here)
}

/// Gives back what lies idle: the buffers of the ops, and what the pool of a GPU keeps, once the
/// work that was begun is done.
pub fn give_back(device: &Device) -> Result<()> {
    scratch::release();
    gpu::trim(device)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn the_cpu_has_no_pool() -> Result<()> {
        let cpu = Device::Cpu;
        assert_eq!((pool(&cpu), free_and_total(&cpu)), (None, None));
        reset_high_water(&cpu)?;
        give_back(&cpu)
    }

    #[derive(Debug, Default)]
    struct InMemory(Mutex<Vec<(String, String)>>);

    impl Translations for InMemory {
        fn get(&self, source: &str) -> Option<String> {
            let all = self.0.lock().unwrap();
            all.iter().find(|(kept, _)| kept == source).map(|(_, made)| made.clone())
        }

        fn put(&self, source: &str, translation: &str) {
            self.0.lock().unwrap().push((source.to_owned(), translation.to_owned()));
        }
    }

    #[test]
    fn a_source_is_translated_once() -> Result<()> {
        let made = || Ok("made".to_owned());
        let not_again = || candle_core::bail!("it was kept");
        assert!(translation("a", not_again).is_err());
        set_translations(Some(Arc::new(InMemory::default())));
        assert_eq!(translation("a", made)?, "made");
        assert_eq!(translation("a", not_again)?, "made");
        assert!(translation("b", not_again).is_err());
        set_translations(None);
        assert!(translation("a", not_again).is_err());
        Ok(())
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_says_so() {
        assert_eq!((cuda_devices().unwrap(), uuid(0)), (0, None));
        let refused = open_cuda(0, None).unwrap_err();
        assert!(matches!(refused, candle_core::Error::NotCompiledWithCudaSupport), "{refused}");
    }
}
