//! The folder of the socket, and the socket in it.
//!
//! The folder is opened once and checked by its descriptor, and everything else goes through that
//! descriptor: whoever may write into a folder above it and exchanges it for another one reaches
//! neither the daemon nor a command. It also makes paths that are longer than a socket address. That
//! is Linux: elsewhere a socket is only had by its path.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, fstat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::peer::peer_uid;

const SOCKET_NAME: &str = "chandler.sock";

/// For its owner alone.
const FOLDER_MODE: u32 = 0o700;
/// To go through a folder that need not be read.
#[cfg(target_os = "linux")]
const TO_PASS: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
const TO_PASS: OFlags = OFlags::RDONLY;

/// The socket's own path, for people.
pub(super) fn socket_path(folder: &Path) -> PathBuf {
    folder.join(SOCKET_NAME)
}

/// Why a folder or a socket cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It is a symbolic link, or no folder at all.
    #[error("it is not a folder, but a link or a file")]
    NoFolder,
    /// It belongs to somebody else.
    #[error("it belongs to user {owner}, and this process runs as user {own}")]
    Foreign {
        /// Whose it is.
        owner: u32,
        /// Who asks.
        own: u32,
    },
    /// Others may enter it.
    #[error("others may enter it (mode {mode:o})")]
    Open {
        /// Its mode.
        mode: u32,
    },
    /// What lies in place of the socket is none.
    #[error("{SOCKET_NAME} in it is not a socket")]
    NoSocket,
    /// Somebody else answers on the socket.
    #[error("user {peer} answers there, not user {owner}")]
    Impostor {
        /// Who answers.
        peer: u32,
        /// Who should.
        owner: u32,
    },
}

/// The folder of a control socket, open and checked.
#[derive(Debug)]
pub(super) struct ControlFolder {
    folder: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    path: PathBuf,
    /// The user to whom it belongs.
    pub(super) owner: u32,
}

impl ControlFolder {
    /// Makes the folder if it is missing and closes it to others; refuses one that is not ours.
    pub(super) fn prepare(path: &Path) -> io::Result<Self> {
        match std::fs::DirBuilder::new().mode(FOLDER_MODE).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let folder = open(path, OFlags::RDONLY)?;
        let stat = fstat(&folder)?;
        let own = geteuid().as_raw();
        if stat.st_uid != own {
            return Err(distrust(Distrust::Foreign { owner: stat.st_uid, own }));
        }
        fchmod(&folder, Mode::RWXU)?;
        Ok(Self::of(folder, path, own))
    }

    /// The folder of a daemon to talk to: that of this user, or for root of any.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        let folder = open(path, TO_PASS)?;
        let stat = fstat(&folder)?;
        let (owner, own) = (stat.st_uid, geteuid().as_raw());
        #[cfg_attr(
            target_os = "linux",
            expect(clippy::useless_conversion, reason = "u16 elsewhere")
        )]
        let mode = u32::from(stat.st_mode) & 0o777;
        if owner != own && own != 0 {
            return Err(distrust(Distrust::Foreign { owner, own }));
        }
        if mode & 0o077 != 0 {
            return Err(distrust(Distrust::Open { mode }));
        }
        Ok(Self::of(folder, path, owner))
    }

    /// Listens, in place of whatever lies there.
    pub(super) fn bind(&self) -> io::Result<UnixListener> {
        self.remove_socket()?;
        UnixListener::bind(self.name())
    }

    /// Connects to who listens, who must be the folder's owner or root.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let stat = statat(&self.folder, SOCKET_NAME, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(distrust(Distrust::NoSocket));
        }
        let stream = UnixStream::connect(self.name())?;
        let peer = peer_uid(&stream)?;
        if peer != self.owner && peer != 0 {
            return Err(distrust(Distrust::Impostor { peer, owner: self.owner }));
        }
        Ok(stream)
    }

    /// Removes the socket, or the link that lies in its place, never what that leads to.
    pub(super) fn remove_socket(&self) -> io::Result<()> {
        match unlinkat(&self.folder, SOCKET_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    #[cfg(target_os = "linux")]
    fn of(folder: OwnedFd, _: &Path, owner: u32) -> Self {
        Self { folder, owner }
    }

    #[cfg(not(target_os = "linux"))]
    fn of(folder: OwnedFd, path: &Path, owner: u32) -> Self {
        Self { folder, path: path.to_owned(), owner }
    }

    #[cfg(not(target_os = "linux"))]
    fn name(&self) -> PathBuf {
        socket_path(&self.path)
    }

    #[cfg(target_os = "linux")]
    fn name(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET_NAME}", self.folder.as_raw_fd()).into()
    }
}

fn open(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
    let flags = how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP | Errno::NOTDIR if path.symlink_metadata().is_ok() => {
            distrust(Distrust::NoFolder)
        }
        other => other.into(),
    })
}

fn distrust(why: Distrust) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn why(error: &io::Error) -> Distrust {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Distrust>());
        *inner.unwrap_or_else(|| panic!("{error:?}"))
    }

    #[test]
    fn a_folder_is_closed_to_others_and_found_only_closed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("control");
        let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(ControlFolder::find(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        ControlFolder::prepare(&path).unwrap();
        set(0o770);
        assert_eq!(why(&ControlFolder::find(&path).unwrap_err()), Distrust::Open { mode: 0o770 });
        ControlFolder::prepare(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        ControlFolder::find(&path).unwrap();
    }

    #[test]
    fn links_and_files_are_no_folders() {
        let parent = tempfile::tempdir().unwrap();
        let (real, link) = (parent.path().join("real"), parent.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::fs::set_permissions(&real, PermissionsExt::from_mode(0o755)).unwrap();
        symlink(&real, &link).unwrap();
        let file = parent.path().join("file");
        chandler_durable::write(&file, b"").unwrap();
        for path in [&link, &file] {
            assert_eq!(why(&ControlFolder::prepare(path).unwrap_err()), Distrust::NoFolder);
            assert_eq!(why(&ControlFolder::find(path).unwrap_err()), Distrust::NoFolder);
        }
        let mode = real.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o755, "what the link leads to is left alone");
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        if !geteuid().is_root() {
            eprintln!("left out: only root can give a folder away");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("control");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let error = ControlFolder::prepare(&path).unwrap_err();
        assert_eq!(why(&error), Distrust::Foreign { owner: 65_534, own: 0 });
    }

    #[test]
    fn a_folder_that_is_exchanged_afterwards_gets_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let (path, aside) = (parent.path().join("control"), parent.path().join("aside"));
        let folder = ControlFolder::prepare(&path).unwrap();
        rustix::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        let _listener = folder.bind().unwrap();
        assert!(!socket_path(&path).exists() && socket_path(&aside).exists());
    }

    #[test]
    fn a_link_in_the_sockets_place_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("control");
        let folder = ControlFolder::prepare(&path).unwrap();
        let elsewhere = parent.path().join("elsewhere.sock");
        let _other = UnixListener::bind(&elsewhere).unwrap();
        symlink(&elsewhere, socket_path(&path)).unwrap();
        assert_eq!(why(&folder.connect().unwrap_err()), Distrust::NoSocket);
        let _listener = folder.bind().unwrap();
        assert!(elsewhere.exists(), "the link goes, not what it leads to");
        assert_eq!(peer_uid(&folder.connect().unwrap()).unwrap(), geteuid().as_raw());
    }
}
