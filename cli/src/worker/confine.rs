//! What a process lays upon itself before it reads what strangers wrote.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// Room for what every thread maps without using it: the C library's arena and the stack.
const ADDRESSES_PER_THREAD: u64 = 80 << 20;
/// Room for the program itself and its libraries.
const ADDRESSES_OF_THE_PROGRAM: u64 = 1 << 30;
/// Of each thread: a template nests, and each level takes its share.
pub(super) const STACK_BYTES: u64 = 16 << 20;

/// The bounds of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// Memory that it may write to.
    pub(crate) memory_bytes: u64,
    /// CPU time, over all threads.
    pub(crate) cpu_seconds: u64,
    pub(crate) threads: u64,
}

impl Confinement {
    /// Lays the bounds upon this process, for good.
    pub(crate) fn enter(&self) -> io::Result<()> {
        die_with_parent()?;
        prefer_to_be_killed();
        let data = self.memory_bytes + self.threads * STACK_BYTES;
        let addresses = data + self.threads * ADDRESSES_PER_THREAD + ADDRESSES_OF_THE_PROGRAM;
        lower(Resource::Core, 0, 0)?;
        // The first signal says that it was the time, the second comes unasked.
        lower(Resource::Cpu, self.cpu_seconds, self.cpu_seconds + 5)?;
        // What may be written to, which is what costs memory; the addresses are a second net.
        lower(Resource::Data, data, data)?;
        lower(Resource::As, addresses, addresses)?;
        forbid_dumps()
    }
}

/// Sets a limit and the one beyond which it cannot be raised, where they are not lower already.
fn lower(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let now = getrlimit(resource);
    let lower = |limit: Option<u64>, to: u64| Some(limit.map_or(to, |limit| limit.min(to)));
    let limits = Rlimit { current: lower(now.current, soft), maximum: lower(now.maximum, hard) };
    match setrlimit(resource, limits) {
        // Not every system has every limit; the parent's watch is what holds on all of them.
        Err(_) if cfg!(not(target_os = "linux")) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> io::Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// A dump to a pipe ignores the limit on its size.
#[cfg(target_os = "linux")]
fn forbid_dumps() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Where the machine runs out of memory, this process goes first. A system that does not let it say
/// so is no reason to refuse.
#[cfg(target_os = "linux")]
fn prefer_to_be_killed() {
    use std::io::Write;

    let file = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    let _ = file.and_then(|mut file| file.write_all(b"1000"));
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Linux")]
fn die_with_parent() -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Linux")]
fn forbid_dumps() -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn prefer_to_be_killed() {}
