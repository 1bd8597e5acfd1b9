//! Readings of GPUs that were written down, played back one after another.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{GpuReading, NvmlMeter};

/// Whoever can say how full the GPUs are.
pub trait GpuMeter: Send + Sync {
    /// Every GPU; `None` if they cannot be read.
    fn gpus(&self) -> Option<Vec<GpuReading>>;
}

impl GpuMeter for NvmlMeter {
    fn gpus(&self) -> Option<Vec<GpuReading>> {
        NvmlMeter::gpus(self)
    }
}

/// A recording, in place of a machine with GPUs. The last reading stays.
#[derive(Debug, Default)]
pub struct RecordedGpus {
    readings: Vec<Option<Vec<GpuReading>>>,
    next: AtomicUsize,
}

impl RecordedGpus {
    /// What a meter said at several moments; `None` where it could not.
    pub fn new(readings: Vec<Option<Vec<GpuReading>>>) -> Self {
        Self { readings, next: AtomicUsize::new(0) }
    }

    /// One reading a line, as JSON: a list of GPUs, or `null`.
    pub fn from_json_lines(text: &str) -> Result<Self, serde_json::Error> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        Ok(Self::new(lines.map(serde_json::from_str).collect::<Result<_, _>>()?))
    }
}

impl GpuMeter for RecordedGpus {
    fn gpus(&self) -> Option<Vec<GpuReading>> {
        let last = self.readings.len().checked_sub(1)?;
        self.readings[self.next.fetch_add(1, Ordering::Relaxed).min(last)].clone()
    }
}
