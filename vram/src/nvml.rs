//! GPUs, as NVIDIA's management library sees them.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use serde::{Deserialize, Serialize};

/// NVML, if this machine has it.
#[derive(Debug)]
pub struct NvmlMeter {
    nvml: Option<Nvml>,
    absence: Option<String>,
}

/// One GPU at one moment; what the driver does not tell is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReading {
    /// Index by PCI bus.
    pub index: u32,
    /// Stays the same whatever the index becomes.
    pub uuid: Option<String>,
    /// Name of the product.
    pub name: Option<String>,
    /// Bytes in use, by anyone.
    pub used: Option<u64>,
    /// Bytes there are.
    pub total: Option<u64>,
    /// Bytes that nobody uses.
    pub free: Option<u64>,
    /// Processes that compute on it; `None` where they cannot be listed (in containers).
    pub processes: Option<Vec<GpuProcess>>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its id.
    pub pid: u32,
    /// Its bytes; hidden by MIG and by Windows.
    pub used: Option<u64>,
    /// Its name, where this user may see it.
    pub name: Option<String>,
}

impl NvmlMeter {
    /// Opens the system's library, if there is one.
    pub fn new() -> Self {
        Self::from(Nvml::init())
    }

    /// Opens a particular shared object, such as a stand-in for tests.
    pub fn with_library(path: &OsStr) -> Self {
        Self::from(Nvml::builder().lib_path(path).init())
    }

    fn from(opened: Result<Nvml, nvml_wrapper::error::NvmlError>) -> Self {
        match opened {
            Ok(nvml) => Self { nvml: Some(nvml), absence: None },
            Err(error) => Self { nvml: None, absence: Some(error.to_string()) },
        }
    }

    /// Why there are no readings; `None` if there are.
    pub fn absence(&self) -> Option<&str> {
        self.absence.as_deref()
    }

    /// Every GPU; `None` if they cannot be counted.
    pub fn gpus(&self) -> Option<Vec<GpuReading>> {
        let nvml = self.nvml.as_ref()?;
        let count = nvml.device_count().ok()?;
        Some((0..count).map(|index| read(nvml, index)).collect())
    }
}

impl Default for NvmlMeter {
    fn default() -> Self {
        Self::new()
    }
}

fn read(nvml: &Nvml, index: u32) -> GpuReading {
    let Ok(device) = nvml.device_by_index(index) else {
        return GpuReading { index, ..GpuReading::default() };
    };
    let memory = device.memory_info().ok();
    let process = |info: nvml_wrapper::struct_wrappers::device::ProcessInfo| GpuProcess {
        pid: info.pid,
        used: match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
        name: nvml.sys_process_name(info.pid, 256).ok(),
    };
    let processes = device.running_compute_processes().ok();
    GpuReading {
        index,
        uuid: device.uuid().ok(),
        name: device.name().ok(),
        used: memory.as_ref().map(|memory| memory.used),
        total: memory.as_ref().map(|memory| memory.total),
        free: memory.as_ref().map(|memory| memory.free),
        processes: processes.map(|all| all.into_iter().map(process).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_everything_is_unknown() {
        let meter = NvmlMeter::with_library(OsStr::new("/nowhere/libnvidia-ml.so"));
        assert_eq!(meter.gpus(), None);
        assert!(meter.absence().is_some_and(|reason| !reason.is_empty()));
    }

    /// Where there is a GPU, its memory adds up; elsewhere the absence has a reason.
    #[test]
    fn this_machine_answers_or_says_why_not() {
        let meter = NvmlMeter::new();
        match meter.gpus() {
            None => assert!(meter.absence().is_some()),
            Some(gpus) => {
                for gpu in gpus {
                    assert!(gpu.used <= gpu.total, "{gpu:?}");
                }
            }
        }
    }
}
