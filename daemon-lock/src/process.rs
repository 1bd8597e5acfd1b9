//! What the system says about other processes.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process that holds a lock, as `/proc` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper {
    /// Its process id.
    pub pid: u32,
    /// Its command line, or its short name where that is hidden.
    pub command_line: String,
}

/// When a process began, in clock ticks since the machine did. No two processes share a pid and
/// this, and no clock that is set changes it. `None` where there is no such process, or no `/proc`.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks_in(&stat)
}

/// The 22nd field of `/proc/PID/stat`. The second one is a name in parentheses that may itself hold
/// spaces and parentheses. A zombie has ended, and holds nothing any more.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// The processes other than this one through whose descriptors `file` is locked. Those of other
/// users are hidden from all but root.
pub(crate) fn keepers(file: &File) -> Box<[Keeper]> {
    let Ok(wanted) = file.metadata() else { return Box::default() };
    let wanted = (wanted.dev(), wanted.ino());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id() && locks(*pid, wanted))
        .map(|pid| Keeper { pid, command_line: command_line(pid) })
        .collect()
}

fn locks(pid: u32, wanted: (u64, u64)) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|descriptor| {
        let same =
            fs::metadata(descriptor.path()).is_ok_and(|found| (found.dev(), found.ino()) == wanted);
        // Many may have it open; who holds the lock has a line about it here.
        same && fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()))
            .is_ok_and(|info| info.contains("FLOCK"))
    })
}

fn command_line(pid: u32) -> String {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let words = read("cmdline");
    let text = if words.is_empty() { read("comm") } else { words };
    let text = String::from_utf8_lossy(&text).replace('\0', " ");
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let rest = "S 1 1 1 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 51707 3133440 387";
        assert_eq!(ticks_in(&format!("9690 (a) R (b c) {rest}")), Some(51707));
        assert_eq!(ticks_in(&format!("9690 (cat) {}", rest.replacen('S', "Z", 1))), None);
        for broken in ["", "12 (cat", "12 (cat) S 1 2 3"] {
            assert_eq!(ticks_in(broken), None, "{broken}");
        }
    }

    #[test]
    fn processes_are_told_apart_by_when_they_began() {
        let own = start_ticks(std::process::id());
        assert!(own.is_some() && own == start_ticks(std::process::id()));
        assert!(start_ticks(1) < own, "the first process is older");
        assert_eq!(start_ticks(u32::MAX), None);
    }
}
