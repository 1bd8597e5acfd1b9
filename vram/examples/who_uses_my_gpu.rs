//! Prints who uses the GPUs of this machine, and what its memory is like.

use std::io::Write;

use chandler_vram::{Bytes, HostMeter, Meter, NvmlMeter};

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    let show = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |b| Bytes(b).to_string());
    let host = HostMeter::new();
    let (reading, own) = (host.read(), host.read_host());
    writeln!(out, "host: {} of {} free", show(reading.free), show(reading.total))?;
    writeln!(out, "this process: {} in RAM, {} at most", show(own.rss), show(own.peak_rss))?;
    let nvml = NvmlMeter::new();
    let Some(gpus) = nvml.gpus() else {
        return writeln!(out, "GPUs: unknown ({})", nvml.absence().unwrap_or("cannot be listed"));
    };
    for gpu in gpus {
        let name = gpu.name.as_deref().unwrap_or("unnamed");
        writeln!(out, "GPU {}: {name}, {} of {} used", gpu.index, show(gpu.used), show(gpu.total))?;
        for process in gpu.processes.iter().flatten() {
            let name = process.name.as_deref().unwrap_or("unknown");
            writeln!(out, "  pid {}: {} ({name})", process.pid, show(process.used))?;
        }
    }
    Ok(())
}
