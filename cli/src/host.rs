//! What the machine is, as far as `/proc` and `/sys` tell. What they do not tell is `None`.

use std::fs;

/// Features that decide which kernels run, as `/proc/cpuinfo` names them.
const NOTED_FEATURES: [&str; 7] =
    ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd"];

/// A control group without a limit says a number near 2^63 (version 1) or `max` (version 2).
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// The processor.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Its model's name.
    pub model: Option<String>,
    /// Threads that this process may use.
    pub threads: Option<usize>,
    /// The features it has, of those that decide which kernels run.
    pub features: Vec<String>,
}

/// The processor of this machine.
pub fn cpu() -> Cpu {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Cpu { threads: std::thread::available_parallelism().ok().map(usize::from), ..parse_cpu(&text) }
}

fn parse_cpu(text: &str) -> Cpu {
    let field = |names: &[&str]| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name.trim()).then(|| value.trim().to_owned())
        })
    };
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let has = |feature: &&str| flags.split_whitespace().any(|flag| flag == *feature);
    Cpu {
        model: field(&["model name"]),
        threads: None,
        features: NOTED_FEATURES.iter().copied().filter(has).map(str::to_owned).collect(),
    }
}

/// Host memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// All there is.
    pub total_bytes: Option<u64>,
    /// What could be had without swapping.
    pub available_bytes: Option<u64>,
    /// The limit of this process's control group, if it has one.
    pub cgroup_limit_bytes: Option<u64>,
}

/// The memory of this machine.
pub fn memory() -> Memory {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .and_then(|text| parse_limit(&text));
    Memory { cgroup_limit_bytes: limit, ..parse_memory(&text) }
}

fn parse_memory(text: &str) -> Memory {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 =
            line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    Memory {
        total_bytes: field("MemTotal"),
        available_bytes: field("MemAvailable"),
        cgroup_limit_bytes: None,
    }
}

fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT_BYTES)
}

/// The version of the NVIDIA driver, if one is loaded.
pub fn nvidia_driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    parse_driver(&text)
}

fn parse_driver(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        word.contains('.') && word.chars().all(|letter| letter.is_ascii_digit() || letter == '.')
    };
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_unknown() {
        assert_eq!(parse_memory(""), Memory::default());
        let memory = parse_memory("MemTotal:       16384 kB\nMemFree: 1 kB\n");
        assert_eq!((memory.total_bytes, memory.available_bytes), (Some(16 << 20), None));
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_limit("1073741824\n"), Some(1 << 30));
    }

    #[test]
    fn features_are_whole_words() {
        let cpu = parse_cpu("model name\t: A CPU\nflags\t\t: fpu avx2 avx512f_not fma\n");
        assert_eq!(cpu.model.as_deref(), Some("A CPU"));
        assert_eq!(cpu.features, ["avx2", "fma"]);
    }

    #[test]
    fn the_driver_is_a_version() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\n";
        assert_eq!(parse_driver(text).as_deref(), Some("580.95.05"));
        assert_eq!(parse_driver("nonsense"), None);
    }
}
