//! A system call that touches a file below the watched folder.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use chandler_durable::TEMPORARY_PREFIX;

use crate::kernel::Pid;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the call of that name")]
pub enum Kind {
    Open,
    Create,
    Read,
    List,
    Stat,
    Write,
    Clone,
    Truncate,
    Sync,
    Rename,
    Link,
    Remove,
    MakeFolder,
    RemoveFolder,
}

impl Kind {
    /// Whether the disk is another one afterwards.
    pub fn changes(self) -> bool {
        !matches!(self, Self::Open | Self::Read | Self::List | Self::Stat)
    }

    /// Whether durability hangs on it: what a durable write is made of, beside the bytes.
    pub fn is_boundary(self) -> bool {
        self.changes() && !matches!(self, Self::Write | Self::Clone | Self::Truncate)
    }
}

/// One call, before it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Counted from 1 over the life of the process.
    pub number: u64,
    /// What it does.
    pub kind: Kind,
    /// To which file or folder, relative to the watched one.
    pub path: PathBuf,
    /// Where to, for a rename or a link.
    pub to: Option<PathBuf>,
    /// Of a rename: the two places are exchanged.
    pub exchanges: bool,
    /// The descriptor that is written, synced or cut.
    pub(crate) descriptor: Option<u64>,
    /// Where a positioned write begins, or to what length a file is cut.
    pub(crate) offset: Option<u64>,
}

impl Call {
    /// The call by what it is about, without what differs from run to run (temporary names).
    pub fn label(&self) -> String {
        let to = self.to.as_ref().map_or_else(String::new, |to| format!(" -> {}", plain(to)));
        format!("{:?} {}{to}", self.kind, plain(&self.path))
    }
}

/// A path with the random part of temporary names left out.
fn plain(path: &Path) -> String {
    let name = |part: &std::ffi::OsStr| {
        let part = part.to_string_lossy();
        if part.starts_with(TEMPORARY_PREFIX) {
            TEMPORARY_PREFIX.to_owned()
        } else {
            part.into_owned()
        }
    };
    path.iter().map(name).collect::<Vec<_>>().join("/")
}

/// The calls that are looked at.
pub(crate) const NUMBERS: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_creat,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_preadv,
    libc::SYS_getdents64,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_ioctl,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
];

/// What the registers of a stopped thread say, as far as it concerns files below `root`.
pub(crate) fn decode(pid: Pid, root: &Path, number: i64, args: [u64; 6]) -> Option<Call> {
    let thread = Thread { pid, root };
    let [a, b, c, d, ..] = args;
    let cwd = libc::AT_FDCWD as u64;
    let at = |folder: u64, name: u64| thread.named(folder, name);
    let mut call = match number {
        libc::SYS_open => Call::opened(at(cwd, a)?, b),
        libc::SYS_openat => Call::opened(at(a, b)?, c),
        libc::SYS_creat => Call::of(Kind::Create, at(cwd, a)?),
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_preadv => {
            Call::of(Kind::Read, thread.described(a)?)
        }
        libc::SYS_getdents64 => Call::of(Kind::List, thread.described(a)?),
        libc::SYS_stat | libc::SYS_lstat => Call::of(Kind::Stat, at(cwd, a)?),
        libc::SYS_newfstatat | libc::SYS_statx => Call::of(Kind::Stat, at(a, b)?),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendfile => {
            Call { descriptor: Some(a), ..Call::of(Kind::Write, thread.described(a)?) }
        }
        libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 => Call {
            descriptor: Some(a),
            offset: Some(d),
            ..Call::of(Kind::Write, thread.described(a)?)
        },
        libc::SYS_copy_file_range => {
            Call { descriptor: Some(c), ..Call::of(Kind::Write, thread.described(c)?) }
        }
        libc::SYS_ioctl if b == libc::FICLONE => {
            Call { descriptor: Some(a), ..Call::of(Kind::Clone, thread.described(a)?) }
        }
        libc::SYS_truncate => Call { offset: Some(b), ..Call::of(Kind::Truncate, at(cwd, a)?) },
        libc::SYS_ftruncate => Call {
            descriptor: Some(a),
            offset: Some(b),
            ..Call::of(Kind::Truncate, thread.described(a)?)
        },
        libc::SYS_fallocate => Call {
            descriptor: Some(a),
            offset: Some(c + d),
            ..Call::of(Kind::Truncate, thread.described(a)?)
        },
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => {
            Call { descriptor: Some(a), ..Call::of(Kind::Sync, thread.described(a)?) }
        }
        libc::SYS_rename => Call::between(Kind::Rename, at(cwd, a), at(cwd, b))?,
        libc::SYS_renameat => Call::between(Kind::Rename, at(a, b), at(c, d))?,
        libc::SYS_renameat2 => Call {
            exchanges: args[4] & u64::from(libc::RENAME_EXCHANGE) != 0,
            ..Call::between(Kind::Rename, at(a, b), at(c, d))?
        },
        libc::SYS_link => Call::between(Kind::Link, at(cwd, a), at(cwd, b))?,
        libc::SYS_linkat => Call::between(Kind::Link, at(a, b), at(c, d))?,
        libc::SYS_symlink => Call::of(Kind::Create, at(cwd, b)?),
        libc::SYS_symlinkat => Call::of(Kind::Create, at(b, c)?),
        libc::SYS_unlink => Call::of(Kind::Remove, at(cwd, a)?),
        libc::SYS_unlinkat if c & libc::AT_REMOVEDIR as u64 != 0 => {
            Call::of(Kind::RemoveFolder, at(a, b)?)
        }
        libc::SYS_unlinkat => Call::of(Kind::Remove, at(a, b)?),
        libc::SYS_rmdir => Call::of(Kind::RemoveFolder, at(cwd, a)?),
        libc::SYS_mkdir => Call::of(Kind::MakeFolder, at(cwd, a)?),
        libc::SYS_mkdirat => Call::of(Kind::MakeFolder, at(a, b)?),
        _ => return None,
    };
    call.path = call.path.strip_prefix(root).ok()?.to_owned();
    call.to = call.to.and_then(|to| Some(to.strip_prefix(root).ok()?.to_owned()));
    Some(call)
}

impl Call {
    fn opened(path: PathBuf, flags: u64) -> Self {
        let makes = flags & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0;
        Self::of(if makes { Kind::Create } else { Kind::Open }, path)
    }

    fn of(kind: Kind, path: PathBuf) -> Self {
        Self { number: 0, kind, path, to: None, exchanges: false, descriptor: None, offset: None }
    }

    fn between(kind: Kind, from: Option<PathBuf>, to: Option<PathBuf>) -> Option<Self> {
        let path = from.or_else(|| to.clone())?;
        Some(Self { to, ..Self::of(kind, path) })
    }
}

struct Thread<'a> {
    pid: Pid,
    root: &'a Path,
}

impl Thread<'_> {
    /// The file behind a descriptor, if it is one of ours.
    fn described(&self, descriptor: u64) -> Option<PathBuf> {
        let path = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.pid)).ok()?;
        self.ours(path)
    }

    /// The path at `address`, from the folder `folder` on, if it is one of ours.
    fn named(&self, folder: u64, address: u64) -> Option<PathBuf> {
        let name = PathBuf::from(self.text(address)?);
        if name.as_os_str().is_empty() {
            return self.described(folder);
        }
        if name.is_absolute() {
            return self.ours(name);
        }
        let base = if folder as i32 == libc::AT_FDCWD {
            format!("/proc/{}/cwd", self.pid)
        } else {
            format!("/proc/{}/fd/{}", self.pid, folder as i32)
        };
        self.ours(std::fs::read_link(base).ok()?.join(name))
    }

    fn ours(&self, path: PathBuf) -> Option<PathBuf> {
        path.starts_with(self.root).then_some(path)
    }

    /// The text that ends with a zero at `address` of the thread's memory.
    fn text(&self, address: u64) -> Option<String> {
        const PAGE: u64 = 4096;
        let memory = File::open(format!("/proc/{}/mem", self.pid)).ok()?;
        let mut text = Vec::new();
        let mut at = address;
        while text.len() < PAGE as usize {
            // Up to the end of the page: what follows need not be mapped.
            let mut part = vec![0; (PAGE - at % PAGE) as usize];
            memory.read_exact_at(&mut part, at).ok()?;
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                text.extend_from_slice(&part[..end]);
                return String::from_utf8(text).ok();
            }
            at += part.len() as u64;
            text.append(&mut part);
        }
        None
    }
}
