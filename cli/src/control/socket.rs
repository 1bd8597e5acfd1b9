//! Where the socket is, also where its path is longer than a socket address can hold.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Bytes of a path in `sockaddr_un`, with its closing zero.
const SUN_PATH_BYTES: usize = 108;

const SOCKET_NAME: &str = "chandler.sock";

/// A name for the socket in `folder` that is short enough, valid as long as this lives.
#[derive(Debug)]
struct ShortName {
    path: PathBuf,
    /// Open so that `/proc/self/fd` leads through it.
    _folder: Option<OwnedFd>,
}

fn short_name(folder: &Path) -> io::Result<ShortName> {
    let path = socket_path(folder);
    if path.as_os_str().len() < SUN_PATH_BYTES {
        return Ok(ShortName { path, _folder: None });
    }
    let opened = rustix::fs::open(
        folder,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", opened.as_raw_fd()));
    Ok(ShortName { path, _folder: Some(opened) })
}

/// The socket's own path, for people and for removing it.
pub(super) fn socket_path(folder: &Path) -> PathBuf {
    folder.join(SOCKET_NAME)
}

pub(super) fn bind(folder: &Path) -> io::Result<UnixListener> {
    let name = short_name(folder)?;
    UnixListener::bind(&name.path)
}

pub(super) fn connect(folder: &Path) -> io::Result<UnixStream> {
    let name = short_name(folder)?;
    UnixStream::connect(&name.path)
}
