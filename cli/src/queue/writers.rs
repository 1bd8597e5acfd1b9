//! Whether somebody has a file open for writing, as far as `/proc` tells.

use std::path::Path;

/// A process that has the file open for writing, if one can be seen.
///
/// Processes of other users and in other containers cannot be seen; that is why a file must also
/// lie still for a while before it is taken.
pub(super) fn writer_of(path: &Path) -> Option<u32> {
    let wanted = path.canonicalize().ok()?;
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let descriptors = std::fs::read_dir(entry.path().join("fd")).ok()?;
        descriptors.flatten().find_map(|descriptor| {
            let target = std::fs::read_link(descriptor.path()).ok()?;
            (target == wanted && is_writable(pid, descriptor.file_name().to_str()?)).then_some(pid)
        })
    })
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
        assert_eq!(writer_of(&path), Some(std::process::id()));
        drop(writer);
        let _reader = std::fs::File::open(&path).unwrap();
        assert_eq!(writer_of(&path), None);
    }
}
