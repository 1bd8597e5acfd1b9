//! What a service manager is told: sd_notify(3), over a datagram socket.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable that names the socket.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The service manager's socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl NotifySocket {
    /// The socket of `NOTIFY_SOCKET`; `None` where no service manager listens.
    pub fn from_environment() -> io::Result<Option<Self>> {
        let named = std::env::var_os(SOCKET_VARIABLE);
        named.filter(|name| !name.is_empty()).map(|name| Self::open(&name)).transpose()
    }

    /// A socket by its path, or with an `@` before it by its abstract name.
    fn open(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().split_first() {
            Some((b'@', rest)) => abstract_address(rest)?,
            Some((b'/', _)) => SocketAddr::from_pathname(name)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "an unknown kind of socket",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that is slow keeps nobody waiting.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    /// Sends assignments such as `READY=1`, one a line.
    pub fn send(&self, assignments: &str) -> io::Result<()> {
        self.socket.send_to_addr(assignments.as_bytes(), &self.address).map(drop)
    }
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &[u8]) -> io::Result<SocketAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "abstract sockets are Linux's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn sockets_with_a_path_and_without_one_are_spoken_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        NotifySocket::open(path.as_os_str()).unwrap().send("READY=1").unwrap();
        assert_eq!(heard(&by_path), "READY=1");
        #[cfg(target_os = "linux")]
        {
            let name = format!("chandler-test-{}", std::process::id());
            let by_name =
                UnixDatagram::bind_addr(&abstract_address(name.as_bytes()).unwrap()).unwrap();
            let named = format!("@{name}");
            NotifySocket::open(OsStr::new(&named)).unwrap().send("STOPPING=1").unwrap();
            assert_eq!(heard(&by_name), "STOPPING=1");
        }
        assert!(NotifySocket::open(OsStr::new("vsock:2:1")).is_err());
    }
}
