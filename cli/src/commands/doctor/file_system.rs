//! What kind of file system lies under the state directory, and which promise it does not keep.

use std::io;
use std::path::Path;

use super::check::Check;

/// The number by which `statfs(2)` names a file system.
pub(super) fn read(folder: &Path) -> io::Result<i64> {
    Ok(rustix::fs::statfs(folder)?.f_type as i64)
}

const LOCAL: [(i64, &str); 7] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x3434, "nilfs"),
];

/// On another machine: its server decides what a sync and a lock are worth.
const REMOTE: [(i64, &str); 8] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
];

const FUSE: i64 = 0x6573_5546;
const OVERLAY: i64 = 0x794c_7630;
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

pub(super) fn check(found: io::Result<i64>) -> Check {
    const NAME: &str = "file system";
    let kind = match found {
        Ok(kind) => kind,
        Err(error) => return Check::info(NAME, format!("unknown: {error}")),
    };
    let known = |list: &[(i64, &'static str)]| {
        list.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
    };
    if let Some(name) = known(&LOCAL) {
        return Check::ok(NAME, format!("{name}, on this machine"));
    }
    if let Some(name) = known(&REMOTE) {
        return Check::warning(
            NAME,
            format!(
                "{name}, on another machine: what is synced may be lost with its server, the lock \
                 may not keep out a daemon elsewhere, and the database may be damaged by two \
                 machines"
            ),
            "put the state directory on a disk of this machine, and copy model/ and snapshots/ out",
        );
    }
    match kind {
        FUSE => Check::warning(
            NAME,
            "FUSE: whether a sync reaches a disk, and locks and renames work, is up to the \
             program behind it",
            "put the state directory on a disk of this machine",
        ),
        OVERLAY => Check::warning(
            NAME,
            "overlay, as within a container: everything is gone with the container",
            "mount a volume at the state directory",
        ),
        kind if IN_MEMORY.contains(&kind) => Check::warning(
            NAME,
            "in memory: nothing survives a restart of the machine",
            "put the state directory on a disk",
        ),
        kind => Check::info(NAME, format!("of an unknown kind ({kind:#x})")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn each_kind_is_told_with_what_it_breaks() {
        for (kind, verdict, word) in [
            (0xef53, Verdict::Ok, "ext4"),
            (0x6969, Verdict::Warning, "NFS"),
            (0xff53_4d42, Verdict::Warning, "CIFS"),
            (FUSE, Verdict::Warning, "FUSE"),
            (OVERLAY, Verdict::Warning, "container"),
            (0x0102_1994, Verdict::Warning, "restart"),
            (0x1234, Verdict::Info, "0x1234"),
        ] {
            let check = check(Ok(kind));
            assert_eq!(check.verdict, verdict, "{kind:#x}");
            assert!(check.detail.contains(word), "{}", check.detail);
            assert_eq!(check.hint.is_some(), verdict == Verdict::Warning);
        }
        assert_eq!(check(Err(io::ErrorKind::Unsupported.into())).verdict, Verdict::Info);
        assert!(read(Path::new("/")).unwrap() != 0);
    }
}
