//! Who is at the other end of a socket, as the kernel noted it when the connection was made.

use std::io;
use std::os::unix::net::UnixStream;

/// The user of the process at the other end.
#[cfg(target_os = "linux")]
pub(super) fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
}

/// The user of the process at the other end.
#[cfg(not(target_os = "linux"))]
#[expect(unsafe_code, reason = "asks the C library")]
pub(super) fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    use std::os::fd::AsRawFd;

    let (mut user, mut group) = (0, 0);
    // SAFETY: the descriptor is open while `stream` is borrowed, and both places are of the types
    // that are written.
    match unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut user, &raw mut group) } {
        0 => Ok(user),
        _ => Err(io::Error::last_os_error()),
    }
}
