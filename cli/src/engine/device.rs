//! The device that models are on. A GPU belongs to the one process that holds its lock, which opens
//! it once.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Error};
use chandler_daemon_lock::{Lock, lock_gpu};
use chandler_kernels::device::{self as kernels, Translations, Trials};
use chandler_trainer::TrainError;
use chandler_vram::{GpuReading, NvmlMeter, PoolReading, Shortage};

use super::EngineError;
use super::translations::InFolder;
use super::trials::Marks;
use crate::config::{Config, MemorySize, Place};

/// The GPU of this process.
#[derive(Debug)]
struct Gpu {
    ordinal: usize,
    /// `None` until a model wants it.
    device: Option<Device>,
    /// Held to the end of the process.
    _lock: Lock,
}

static GPU: Mutex<Option<Gpu>> = Mutex::new(None);

fn gpu() -> MutexGuard<'static, Option<Gpu>> {
    GPU.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The GPU that the configuration means; `None` for the CPU, and where that is not known, which
/// [`hold`] and [`device`] say.
pub(crate) fn wanted(config: &Config) -> Option<usize> {
    ordinal(config.model.device.place(), kernels::cuda_devices).ok().flatten()
}

/// `found` are the GPUs that the driver finds. One that does not start is not taken for a machine
/// without a GPU: the run would be on the CPU, and take days where it was meant to take hours.
fn ordinal(
    place: Place,
    found: impl FnOnce() -> candle_core::Result<usize>,
) -> Result<Option<usize>, EngineError> {
    match place {
        Place::Cpu => Ok(None),
        Place::Cuda(ordinal) => Ok(Some(ordinal)),
        Place::Auto => match found() {
            Ok(count) => Ok((count > 0).then_some(0)),
            Err(error) => Err(EngineError::NoCuda { reason: Box::new(error) }),
        },
    }
}

/// What to do where CUDA, or a GPU, is not to be had.
pub(crate) fn hint_of_cuda(reason: &Error) -> String {
    if matches!(reason, Error::NotCompiledWithCudaSupport) {
        return "this is chandler without CUDA: use chandler-cuda, or set model.device = \"cpu\""
            .to_owned();
    }
    let words = reason.to_string();
    let cures = [
        // What CUDA says where the module or its device file is missing.
        ("ERROR_UNKNOWN", "`nvidia-modprobe -u -c 0`, as root, loads the module nvidia-uvm"),
        ("DRIVER_MISMATCH", "the driver was upgraded while it was loaded: restart the machine"),
        ("SYSTEM_NOT_READY", "start nvidia-fabricmanager.service, and wait until it is ready"),
        ("STUB_LIBRARY", "take the toolkit's folder of stubs out of LD_LIBRARY_PATH"),
    ];
    let cure = cures.iter().find(|(word, _)| words.contains(word));
    let cure = cure.map_or("`nvidia-smi` lists the GPUs that there are", |(_, cure)| cure);
    format!("{cure}; model.device = \"cpu\" does without")
}

/// Takes the lock of the configured GPU, if it is one, for as long as this process lives.
pub(crate) fn hold(config: &Config) -> Result<(), EngineError> {
    let ordinal = ordinal(config.model.device.place(), kernels::cuda_devices)?;
    ordinal.map_or(Ok(()), |ordinal| hold_gpu(&mut gpu(), ordinal).map(|_| ()))
}

/// Where models will be goes into the log, in a build that has a choice.
pub(crate) fn tell(config: &Config) {
    match wanted(config) {
        _ if !kernels::HAS_CUDA => {}
        Some(ordinal) => {
            let uuid = kernels::uuid(ordinal).unwrap_or_default();
            tracing::info!(uuid, "models are on GPU {ordinal}");
        }
        None => tracing::info!(device = config.model.device.0, "models are on the CPU"),
    }
}

fn hold_gpu(held: &mut Option<Gpu>, ordinal: usize) -> Result<&mut Gpu, EngineError> {
    match held {
        Some(other) if other.ordinal != ordinal => {
            Err(EngineError::OtherGpu { ours: other.ordinal, wanted: ordinal })
        }
        Some(ours) => Ok(ours),
        None => {
            let absent = || EngineError::NoGpu { ordinal, reason: Box::new(reason(ordinal)) };
            let uuid = kernels::uuid(ordinal).ok_or_else(absent)?;
            let lock = lock_gpu(&folder_of_locks(), &uuid).map_err(EngineError::GpuLock)?;
            Ok(held.insert(Gpu { ordinal, device: None, _lock: lock }))
        }
    }
}

/// Why a GPU is not to be had.
fn reason(ordinal: usize) -> Error {
    match kernels::open_cuda(ordinal, None) {
        Err(error) => error,
        Ok(_) => Error::msg("its driver does not say which it is"),
    }
}

/// Where all users of this machine look for the locks of its GPUs: the system's folder for locks
/// where everybody may write, else memory that all processes see, which a unit's private `/tmp` does
/// not hide. Both are open to the confined unit (`service/systemd.rs`), so that everybody chooses the
/// same.
fn folder_of_locks() -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let is_open_to_all = |folder: &&str| {
        Path::new(folder).metadata().is_ok_and(|found| found.is_dir() && found.mode() & 0o2 != 0)
    };
    let folder = ["/run/lock", "/dev/shm"].into_iter().find(is_open_to_all);
    folder.map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Whether this process has a GPU that refuses all work.
pub(super) fn is_lost() -> bool {
    let device = gpu().as_ref().and_then(|gpu| gpu.device.clone());
    device.is_some_and(|device| kernels::is_lost(&device))
}

/// The device that models of this configuration are on. Tensors of a GPU take at most
/// `memory.limit`.
pub(crate) fn device(config: &Config) -> Result<Device, EngineError> {
    let limit = config.memory.limit.as_ref().and_then(MemorySize::bytes);
    open(config.model.device.place(), limit)
}

/// Opens what is meant, if this process has not done so before; tensors of a GPU take at most `limit`
/// bytes.
pub(crate) fn open(place: Place, limit: Option<u64>) -> Result<Device, EngineError> {
    let Some(ordinal) = ordinal(place, kernels::cuda_devices)? else { return Ok(Device::Cpu) };
    let mut held = gpu();
    let gpu = hold_gpu(&mut held, ordinal)?;
    if let Some(device) = &gpu.device {
        return Ok(device.clone());
    }
    let translations = InFolder::of_user().map(|folder| Arc::new(folder) as Arc<dyn Translations>);
    kernels::set_translations(translations);
    kernels::set_trials(Marks::of_user().map(|marks| Arc::new(marks) as Arc<dyn Trials>));
    let device = kernels::open_cuda(ordinal, limit)
        .map_err(|error| EngineError::NoGpu { ordinal, reason: Box::new(error) })?;
    gpu.device = Some(device.clone());
    Ok(device)
}

/// What the pool of this process's GPU holds; `None` without one.
pub(crate) fn pool() -> Option<PoolReading> {
    let held = gpu();
    let now = kernels::pool(held.as_ref()?.device.as_ref()?)?;
    Some(PoolReading {
        used: now.used,
        used_high: now.used_high,
        reserved: now.reserved,
        reserved_high: now.reserved_high,
    })
}

/// The GPU that this process has opened, as the driver knows it.
pub(crate) fn uuid() -> Option<String> {
    let ordinal = gpu().as_ref().filter(|gpu| gpu.device.is_some())?.ordinal;
    kernels::uuid(ordinal)
}

/// Bytes of the GPU that this process could still have: what nobody uses, and what its pool keeps.
pub(crate) fn room_on_gpu(device: &Device) -> Option<u64> {
    let (free, _) = kernels::free_and_total(device)?;
    // Counters that are read one after the other, while work goes on; none without a pool.
    let kept = kernels::pool(device).map_or(0, |pool| pool.reserved.saturating_sub(pool.used));
    Some(free + kept)
}

/// A shortage as the driver's meter sees it now, with everybody who holds memory of this process's
/// GPU; as it is where there is no GPU, or no meter.
pub(crate) fn seen_on_gpu(shortage: &Shortage) -> Shortage {
    let ordinal = gpu().as_ref().map(|gpu| gpu.ordinal);
    let Some(uuid) = ordinal.and_then(kernels::uuid) else { return shortage.clone() };
    of_gpu(shortage, &uuid, NvmlMeter::new().gpus().unwrap_or_default())
}

/// A run's error, in which a shortage on a GPU names who else is on it.
pub(crate) fn told_on_gpu(mut error: TrainError) -> TrainError {
    if let TrainError::OutOfMemory { shortage, .. } = &mut error {
        **shortage = seen_on_gpu(shortage);
    }
    error
}

fn of_gpu(shortage: &Shortage, uuid: &str, readings: Vec<GpuReading>) -> Shortage {
    let ours = readings.into_iter().find(|reading| reading.uuid.as_deref() == Some(uuid));
    let Some(ours) = ours else { return shortage.clone() };
    Shortage::on_gpu(shortage.wanted, &ours, std::process::id(), shortage.own.clone())
}

/// High-water marks of the pool begin anew, where there is one.
pub(crate) fn reset_high_water() -> Result<(), EngineError> {
    let held = gpu();
    let device = held.as_ref().and_then(|gpu| gpu.device.as_ref());
    Ok(device.map_or(Ok(()), kernels::reset_high_water)?)
}

/// Gives back what lies idle on the device.
pub(crate) fn give_back() -> Result<(), EngineError> {
    let held = gpu();
    let device = held.as_ref().and_then(|gpu| gpu.device.as_ref());
    Ok(device.map_or(Ok(()), kernels::give_back)?)
}

#[cfg(test)]
mod tests {
    use chandler_vram::{GpuMeter, Ledger, RecordedGpus};

    use super::*;
    use crate::config::DeviceChoice;

    #[test]
    fn a_shortage_on_a_gpu_names_who_else_is_on_it() {
        let recording = r#"[{"index":0,"uuid":"GPU-a","name":"A","used":9,"total":10,"free":1,
            "processes":[]},{"index":1,"uuid":"GPU-b","name":"B","used":21474836480,
            "total":25769803776,"free":4294967296,
            "processes":[{"pid":815,"used":13314398618,"name":"python"}]}]"#;
        let meter = RecordedGpus::from_json_lines(&recording.replace('\n', " ")).unwrap();
        let gpus = meter.gpus().unwrap();
        let shortage = Shortage::in_heap(Some(742 << 20), Ledger::new().snapshot());
        let said = of_gpu(&shortage, "GPU-b", gpus.clone()).to_string();
        assert!(said.contains("of 24.00 GiB python (pid 815) holds 12.40 GiB"), "{said}");
        assert_eq!(of_gpu(&shortage, "GPU-c", gpus).to_string(), shortage.to_string());
        // The CPU's is told as it is.
        assert_eq!(seen_on_gpu(&shortage).to_string(), shortage.to_string());
    }

    #[test]
    fn a_driver_that_does_not_start_is_no_machine_without_a_gpu() {
        let broken = |words: &'static str| move || Err(Error::Msg(words.to_owned()));
        assert_eq!(ordinal(Place::Auto, || Ok(0)).unwrap(), None);
        assert_eq!(ordinal(Place::Auto, || Ok(2)).unwrap(), Some(0));
        assert_eq!(ordinal(Place::Cpu, broken("not asked")).unwrap(), None);
        for (words, cure) in [
            ("DriverError(CUDA_ERROR_UNKNOWN, \"unknown error\")", "nvidia-modprobe -u"),
            ("DriverError(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, \"\")", "restart the machine"),
            ("DriverError(CUDA_ERROR_INVALID_DEVICE, \"\")", "nvidia-smi"),
        ] {
            let error = ordinal(Place::Auto, broken(words)).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            let hint = error.hint().unwrap();
            assert!(hint.contains(cure) && hint.contains("model.device = \"cpu\""), "{hint}");
        }
    }

    #[test]
    fn the_cpu_needs_no_lock_and_what_is_not_there_is_named() {
        let mut config = Config::default();
        config.model.device = DeviceChoice("cpu".to_owned());
        hold(&config).unwrap();
        assert!(device(&config).unwrap().is_cpu());
        assert_eq!(pool(), None);
        config.model.device = DeviceChoice("cuda:63".to_owned());
        let error = device(&config).unwrap_err();
        assert!(error.to_string().contains("GPU 63"), "{error}");
        assert!(error.hint().is_some());
    }
}
