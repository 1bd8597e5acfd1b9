//! GPUs, who uses them, and whether this build does.

use chandler_kernels::device;
use chandler_vram::{GpuProcess, GpuReading, NvmlMeter};

use super::check::{Check, shown};
use crate::engine::hint_of_cuda;

/// `daemon` are the processes of this state directory's daemon.
pub(super) fn checks(daemon: &[u32]) -> Vec<Check> {
    let nvml = NvmlMeter::new();
    match nvml.gpus() {
        Some(gpus) => of_gpus(&gpus, &Ours { own: std::process::id(), daemon }, &name_of),
        None => {
            let reason = nvml.absence().unwrap_or("they cannot be listed");
            let none = Check::info("gpu", format!("none found ({reason})"));
            // What has the list fail may have CUDA fail too, and with it each run.
            let broken = device::cuda_devices().err().map(|error| build(true, Err(error)));
            std::iter::once(none).chain(broken).collect()
        }
    }
}

/// The short name that the system has for a process.
fn name_of(pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned())
}

/// Processes that are not in anybody's way.
struct Ours<'a> {
    own: u32,
    daemon: &'a [u32],
}

fn of_gpus(
    gpus: &[GpuReading],
    ours: &Ours,
    name_of: &dyn Fn(u32) -> Option<String>,
) -> Vec<Check> {
    let mut checks: Vec<Check> = gpus.iter().map(|gpu| of_gpu(gpu, ours, name_of)).collect();
    if !gpus.is_empty() {
        checks.push(build(device::HAS_CUDA, device::cuda_devices()));
    }
    if !gpus.is_empty() && device::HAS_CUDA {
        checks.push(attention(device::attention_library()));
    }
    checks
}

/// Whose kernels compute attention.
fn attention(library: Result<String, &str>) -> Check {
    match library {
        Ok(version) => Check::ok("attention", format!("of long documents by cuDNN {version}")),
        Err(reason) => Check::info(
            "attention",
            format!(
                "by chandler's own kernels alone, for there is no cuDNN 9.28 or later ({reason})"
            ),
        ),
    }
}

/// Whether this program computes on the GPUs that there are, of which it finds so many.
fn build(has_cuda: bool, found: candle_core::Result<usize>) -> Check {
    match (has_cuda, found) {
        (false, _) => Check::warning(
            "gpu build",
            "this chandler computes on the CPU alone and leaves the GPU idle",
            "chandler-cuda computes on it: `packaging/cuda/build` builds it",
        ),
        (true, Err(error)) => {
            let said =
                format!("this chandler can compute on GPUs, but CUDA does not start: {error}");
            Check::warning("gpu build", said, hint_of_cuda(&error))
        }
        (true, Ok(0)) => Check::warning(
            "gpu build",
            "this chandler can compute on GPUs, and its CUDA finds none",
            "check CUDA_VISIBLE_DEVICES, and that the driver is of release 580 or later",
        ),
        (true, Ok(found)) => Check::ok("gpu build", format!("CUDA finds {found}")),
    }
}

fn of_gpu(gpu: &GpuReading, ours: &Ours, name_of: &dyn Fn(u32) -> Option<String>) -> Check {
    let name = gpu.name.as_deref().unwrap_or("unnamed");
    let words = format!("{name}, {} of {} used", shown(gpu.used), shown(gpu.total));
    let Some(processes) = &gpu.processes else {
        return Check::info("gpu", format!("{words}; by whom is unknown"));
    };
    let user = |process: &GpuProcess| {
        let name = process.name.clone().or_else(|| name_of(process.pid));
        let name =
            name.as_deref().map_or("unknown", |name| name.rsplit('/').next().unwrap_or(name));
        format!("{name} (pid {}, {})", process.pid, shown(process.used))
    };
    let (daemon, others): (Vec<&GpuProcess>, Vec<&GpuProcess>) = processes
        .iter()
        .filter(|process| process.pid != ours.own)
        .partition(|process| ours.daemon.contains(&process.pid));
    let words = match daemon.first() {
        Some(daemon) => format!("{words}, {} by the daemon of this directory", shown(daemon.used)),
        None => words,
    };
    let others: Vec<String> = others.into_iter().map(user).collect();
    if others.is_empty() {
        return Check::info("gpu", words);
    }
    Check::warning(
        "gpu",
        format!("{words}: {}", others.join(", ")),
        "end them with `kill PID` where they are not wanted, or wait until they have ended",
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn whose_attention_it_is_is_said() {
        let found = attention(Ok("9.28.1".to_owned()));
        assert_eq!(
            (found.verdict, &*found.detail),
            (Verdict::Ok, "of long documents by cuDNN 9.28.1")
        );
        let found = attention(Err("libcudnn.so.9: not found"));
        assert_eq!(found.verdict, Verdict::Info);
        assert!(found.detail.contains("libcudnn.so.9: not found"), "{}", found.detail);
    }

    #[test]
    fn a_driver_that_does_not_start_is_told_with_what_to_do() {
        let broken = candle_core::Error::Msg("CUDA_ERROR_UNKNOWN".to_owned());
        let found = build(true, Err(broken));
        assert_eq!(found.verdict, Verdict::Warning);
        assert!(found.detail.ends_with("CUDA does not start: CUDA_ERROR_UNKNOWN"));
        assert!(found.hint.unwrap().contains("nvidia-modprobe"));
        assert_eq!(build(true, Ok(0)).verdict, Verdict::Warning);
        assert_eq!(build(true, Ok(1)).verdict, Verdict::Ok);
    }

    #[test]
    fn others_on_a_gpu_are_named_and_this_process_is_not() {
        let process = |pid, name: Option<&str>| GpuProcess {
            pid,
            used: Some(1 << 30),
            name: name.map(str::to_owned),
        };
        let gpu = |processes| GpuReading {
            name: Some("RTX".to_owned()),
            processes,
            ..GpuReading::default()
        };
        let named = |pid| (pid == 8).then(|| "python3".to_owned());
        let ours = Ours { own: 7, daemon: &[5] };
        let checks = |processes| of_gpus(&[gpu(processes)], &ours, &named);
        let found = checks(Some(vec![
            process(7, None),
            process(8, None),
            process(9, Some("/usr/bin/blender")),
        ]));
        assert_eq!(found[0].verdict, Verdict::Warning);
        assert_eq!(
            found[0].detail,
            "RTX, unknown of unknown used: python3 (pid 8, 1.00 GiB), blender (pid 9, 1.00 GiB)"
        );
        if !device::HAS_CUDA {
            assert_eq!(found[1].verdict, Verdict::Warning, "a build for the CPU");
        }
        assert_eq!(checks(Some(vec![process(7, None)]))[0].verdict, Verdict::Info);
        assert!(checks(None)[0].detail.contains("unknown"));
        assert!(of_gpus(&[], &ours, &named).is_empty());
        let daemon = &checks(Some(vec![process(7, None), process(5, Some("chandler-cuda"))]))[0];
        assert_eq!(daemon.verdict, Verdict::Info);
        assert!(daemon.detail.ends_with("1.00 GiB by the daemon of this directory"));
    }
}
