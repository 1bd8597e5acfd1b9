//! The machine's memory, this process's part of it, and the limit of its cgroup.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{MemoryReading, Meter};

/// Reads `/proc` and the cgroup file system; elsewhere every reading is unknown.
#[derive(Debug, Clone)]
pub struct HostMeter {
    root: PathBuf,
}

/// What the host says about memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReading {
    /// Memory of this process that is in RAM.
    pub rss: Option<u64>,
    /// The most it ever was.
    pub peak_rss: Option<u64>,
    /// RAM of the machine.
    pub total: Option<u64>,
    /// RAM that could be had without swapping.
    pub available: Option<u64>,
    /// Limit of this process's cgroup, where it has one.
    pub cgroup_limit: Option<u64>,
    /// Use of that cgroup.
    pub cgroup_used: Option<u64>,
}

impl Default for HostMeter {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

impl HostMeter {
    /// This machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// A machine whose `/proc` and `/sys` are below `root`, for tests.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Everything at once.
    pub fn read_host(&self) -> HostReading {
        let status = self.text("proc/self/status");
        let meminfo = self.text("proc/meminfo");
        let field = |text: &Option<String>, name| text.as_deref().and_then(|t| kib(t, name));
        let cgroup = |v2: &str, v1: &str| self.number(v2).or_else(|| self.number(v1));
        HostReading {
            rss: field(&status, "VmRSS:"),
            peak_rss: field(&status, "VmHWM:"),
            total: field(&meminfo, "MemTotal:"),
            available: field(&meminfo, "MemAvailable:"),
            cgroup_limit: cgroup(
                "sys/fs/cgroup/memory.max",
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
            )
            // Version 1 writes "no limit" as a number near 2^63.
            .filter(|limit| *limit < 1 << 62),
            cgroup_used: cgroup(
                "sys/fs/cgroup/memory.current",
                "sys/fs/cgroup/memory/memory.usage_in_bytes",
            ),
        }
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.trim().parse().ok()
    }
}

impl Meter for HostMeter {
    /// The tighter of the machine's memory and the cgroup's limit.
    fn read(&self) -> MemoryReading {
        let host = self.read_host();
        let free_of_machine = host.available;
        let free_of_cgroup = match (host.cgroup_limit, host.cgroup_used) {
            (Some(limit), Some(used)) => Some(limit.saturating_sub(used)),
            _ => None,
        };
        let total = [host.total, host.cgroup_limit].into_iter().flatten().min();
        let free = [free_of_machine, free_of_cgroup].into_iter().flatten().min();
        let used = total.zip(free).map(|(total, free)| total.saturating_sub(free));
        MemoryReading { used, total, free }
    }
}

/// `name   1234 kB` in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn this_machine_can_be_read() {
        let reading = HostMeter::new().read_host();
        assert!(reading.rss.unwrap() > 0 && reading.peak_rss >= reading.rss);
        assert!(reading.total >= reading.available);
    }

    #[test]
    fn the_tighter_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "proc/meminfo", "MemTotal:  1000 kB\nMemAvailable:  600 kB\n");
        let meter = HostMeter::below(root.path());
        let kib = |n: u64| Some(n * 1024);
        let reading = MemoryReading { used: kib(400), total: kib(1000), free: kib(600) };
        assert_eq!(meter.read(), reading);
        put(root.path(), "sys/fs/cgroup/memory.max", "512000\n");
        put(root.path(), "sys/fs/cgroup/memory.current", "204800\n");
        let reading = MemoryReading { used: kib(200), total: kib(500), free: kib(300) };
        assert_eq!(meter.read(), reading);
        put(root.path(), "sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(meter.read_host().cgroup_limit, None);
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        let meter = HostMeter::below(root.path());
        assert_eq!(meter.read_host(), HostReading::default());
        assert_eq!(meter.read(), MemoryReading::default());
        put(root.path(), "proc/meminfo", "MemTotal: lots\n");
        assert_eq!(meter.read(), MemoryReading::default());
    }
}
