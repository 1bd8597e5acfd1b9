//! Which byte belongs to what, and to whom, while the daemon runs.

use std::fmt::{self, Write};

use chandler_vram::{
    Bytes, GpuReading, HostMeter, HostReading, Ledger, NvmlMeter, PoolReading, Snapshot, counting,
};
use serde::{Deserialize, Serialize};

use crate::engine::{device_pool, device_uuid};

/// Every meter and the ledger at one moment; what could not be read is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveMemory {
    /// What this daemon holds, by what it is for.
    pub ledger: Snapshot,
    /// Bytes of its heap.
    pub heap: Option<u64>,
    /// The most that they ever were.
    pub heap_peak: Option<u64>,
    /// `memory.limit`.
    pub limit: Option<u64>,
    /// The machine.
    pub host: HostReading,
    /// Its GPUs and who uses them.
    pub gpus: Option<Vec<GpuReading>>,
    /// The pool that this daemon's tensors come from, where they are on a GPU.
    #[serde(default)]
    pub pool: Option<PoolReading>,
    /// The GPU that its tensors are on; `None` where they are in the machine's memory.
    #[serde(default)]
    pub on_gpu: Option<OnGpu>,
}

/// Which of the GPUs this daemon's tensors are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnGpu {
    /// As the driver knows it.
    pub uuid: String,
    /// Bytes of it that this process holds by the driver's books, the context among them.
    pub own: Option<u64>,
}

impl OnGpu {
    fn among(gpus: Option<&[GpuReading]>, uuid: String, pid: u32) -> Self {
        let ours = gpus.into_iter().flatten().find(|gpu| gpu.uuid.as_ref() == Some(&uuid));
        let processes = ours.and_then(|gpu| gpu.processes.as_deref()).unwrap_or_default();
        let own = processes.iter().find(|process| process.pid == pid);
        Self { own: own.and_then(|process| process.used), uuid }
    }
}

impl LiveMemory {
    /// Reads everything.
    pub fn read(ledger: &Ledger, nvml: &NvmlMeter) -> Self {
        let gpus = nvml.gpus();
        let on_gpu =
            device_uuid().map(|uuid| OnGpu::among(gpus.as_deref(), uuid, std::process::id()));
        Self {
            ledger: ledger.snapshot(),
            heap: counting::live_bytes(),
            heap_peak: counting::high_water_bytes(),
            limit: counting::limit_bytes(),
            host: HostMeter::new().read_host(),
            gpus,
            pool: device_pool(),
            on_gpu,
        }
    }
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string())
}

impl fmt::Display for LiveMemory {
    /// Lines whose first words say what they are about.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let limit = self.limit.map_or_else(String::new, |limit| format!(" of {}", Bytes(limit)));
        let (heap, peak) = (size(self.heap), size(self.heap_peak));
        let (rss, free) = (size(self.host.rss), size(self.host.available));
        writeln!(
            f,
            "memory    heap {heap}{limit}, peak {peak}; resident {rss}; the machine has {free} free"
        )?;
        let mut held = String::new();
        for line in self.ledger.categories.iter().filter(|line| line.bytes > 0) {
            let comma = if held.is_empty() { "" } else { ", " };
            write!(held, "{comma}{} {}", line.category, Bytes(line.bytes))?;
        }
        if !held.is_empty() {
            writeln!(f, "          {held}")?;
        }
        if let Some(pool) = &self.pool {
            let [used, high, reserved] = [pool.used, pool.used_high, pool.reserved].map(Bytes);
            writeln!(f, "          on the GPU {used}, peak {high}; {reserved} taken from it")?;
        }
        for gpu in self.gpus.iter().flatten() {
            let name = gpu.name.as_deref().unwrap_or("unknown");
            writeln!(
                f,
                "gpu {:<6}{name}, {} of {} in use",
                gpu.index,
                size(gpu.used),
                size(gpu.total)
            )?;
            for process in gpu.processes.iter().flatten() {
                let name = process.name.as_deref().unwrap_or("unknown");
                writeln!(f, "          {} by {name} (pid {})", size(process.used), process.pid)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chandler_vram::{Category, GpuProcess};

    #[test]
    fn everybody_is_named_and_what_is_unknown_says_so() {
        let ledger = Ledger::new();
        let _weights = ledger.enter(Category::Weights, 3 << 20);
        let process =
            |pid, used, name: Option<&str>| GpuProcess { pid, used, name: name.map(str::to_owned) };
        let gpu = GpuReading {
            name: Some("RTX".to_owned()),
            used: Some(22 << 30),
            total: Some(24 << 30),
            processes: Some(vec![
                process(7, Some(12 << 30), Some("python")),
                process(8, None, None),
            ]),
            ..GpuReading::default()
        };
        let memory = LiveMemory {
            ledger: ledger.snapshot(),
            heap: Some(5 << 20),
            heap_peak: None,
            limit: Some(1 << 30),
            host: HostReading::default(),
            gpus: Some(vec![gpu]),
            pool: Some(PoolReading { used: 2 << 30, used_high: 3 << 30, ..PoolReading::default() }),
            on_gpu: None,
        };
        let text = memory.to_string();
        for part in [
            "heap 5.00 MiB of 1.00 GiB, peak unknown; resident unknown",
            "weights 3.00 MiB",
            "on the GPU 2.00 GiB, peak 3.00 GiB; 0 B taken from it",
            "gpu 0     RTX, 22.00 GiB of 24.00 GiB in use",
            "12.00 GiB by python (pid 7)",
            "unknown by unknown (pid 8)",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn what_this_process_has_of_its_gpu_is_the_drivers_word_or_unknown() {
        let process = |pid, used| GpuProcess { pid, used, name: None };
        let gpu = |uuid: &str, processes| GpuReading {
            uuid: Some(uuid.to_owned()),
            processes,
            ..GpuReading::default()
        };
        let own = |processes| {
            let gpus = [gpu("GPU-a", Some(vec![process(7, Some(1))])), gpu("GPU-b", processes)];
            OnGpu::among(Some(&gpus), "GPU-b".to_owned(), 7).own
        };
        assert_eq!(own(Some(vec![process(8, Some(2)), process(7, Some(3))])), Some(3));
        assert_eq!(own(Some(vec![process(7, None)])), None);
        assert_eq!(own(Some(vec![])), None);
        assert_eq!(own(None), None);
        assert_eq!(OnGpu::among(None, "GPU-b".to_owned(), 7).own, None);
    }
}
