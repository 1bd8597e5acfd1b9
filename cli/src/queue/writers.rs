//! Whether somebody has a file open for writing, as far as `/proc` tells.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The files in `folder`, as its path says it, that a process has open for writing, if it can be
/// seen. Processes are gone through once, however many files there are.
///
/// Processes of other users and in other containers cannot be seen; that is why a file must also
/// lie still for a while before it is taken.
pub(super) fn being_written(folder: &Path) -> BTreeSet<PathBuf> {
    let (Ok(home), Ok(processes)) = (folder.canonicalize(), std::fs::read_dir("/proc")) else {
        return BTreeSet::new();
    };
    let of_process = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let descriptors = std::fs::read_dir(entry.path().join("fd")).ok()?;
        let written = descriptors.flatten().filter_map(|descriptor| {
            let target = std::fs::read_link(descriptor.path()).ok()?;
            let within = target.strip_prefix(&home).ok()?;
            is_writable(pid, descriptor.file_name().to_str()?).then(|| folder.join(within))
        });
        Some(written.collect::<Vec<_>>())
    };
    processes.flatten().filter_map(of_process).flatten().collect()
}

fn is_writable(pid: u32, descriptor: &str) -> bool {
    let Ok(info) = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")) else {
        return false;
    };
    info.lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        // The access mode is the lowest two bits: 1 writes, 2 reads and writes.
        .is_some_and(|flags| flags & 0b11 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_seen_and_a_reader_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let writer = std::fs::File::create(&path).unwrap();
        let link = folder.path().join("inbox");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert!(being_written(folder.path()).contains(&path));
        assert!(being_written(&link).contains(&link.join("a.jsonl")));
        drop(writer);
        let _reader = std::fs::File::open(&path).unwrap();
        assert!(being_written(folder.path()).is_empty());
    }
}
