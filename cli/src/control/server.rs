//! The answering side: a thread that accepts, and a short-lived one for each conversation.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::geteuid;

use super::ControlError;
use super::conversation::{Patience, answer, converse};
use super::peer::peer_uid;
use super::protocol::{Request, Response};
use super::socket::{ControlFolder, socket_path};
use crate::state_dir::StateDir;

/// Conversations at one time. A command needs one for a moment; an idle one ends by itself.
const MOST_CONVERSATIONS: usize = 16;

/// Who answers requests; called from several threads.
pub type Handler = dyn Fn(Request) -> Response + Send + Sync;

/// A listening daemon; dropping it ends the listening and removes the socket.
#[derive(Debug)]
pub struct ControlServer {
    folder: ControlFolder,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens on the socket of `state`.
    ///
    /// The caller holds the state directory's lock, so that a socket found there is one that a dead
    /// daemon left behind; it is replaced.
    pub fn start(state: &StateDir, handler: Arc<Handler>) -> Result<Self, ControlError> {
        let path = state.control();
        let folder = ControlFolder::prepare(&path)
            .map_err(|source| ControlError::Folder { path: path.clone(), source })?;
        let listen = |source| ControlError::Listen { path: socket_path(&path), source };
        let listener = folder.bind().map_err(listen)?;
        let ending = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ending);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &ends, &handler))
            .map_err(listen)?;
        Ok(Self { folder, ending, thread: Some(thread) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // The connection wakes `accept`; if it cannot be made, the thread ends with the process.
        if self.folder.connect().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic over there was already reported there.
            let _ = thread.join();
        }
        let _ = self.folder.remove_socket();
    }
}

fn accept(listener: &UnixListener, ending: &AtomicBool, handler: &Arc<Handler>) {
    // Each conversation has a copy for as long as it goes on.
    let going_on = Arc::new(());
    for stream in listener.incoming() {
        if ending.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else {
            // Too many open files, say: others need the processor to close theirs.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let busy = Arc::strong_count(&going_on) > MOST_CONVERSATIONS;
        if let Err(refusal) = admit(&stream, busy) {
            refuse(&stream, &refusal);
            continue;
        }
        let (handler, turn) = (Arc::clone(handler), Arc::clone(&going_on));
        let conversation =
            std::thread::Builder::new().name("control-answer".to_owned()).spawn(move || {
                // A client that went away takes its errors with it.
                let _ = converse(&stream, Patience::default(), &*handler);
                drop(turn);
            });
        if let Err(error) = conversation {
            tracing::warn!(%error, "cannot answer on the control socket");
        }
    }
}

/// Whether to talk to who connected; the answer otherwise.
fn admit(stream: &UnixStream, busy: bool) -> Result<(), Response> {
    let refused =
        |error: String, hint: &str| Err(Response::Refused { error, hint: Some(hint.to_owned()) });
    let own = geteuid().as_raw();
    match peer_uid(stream) {
        Ok(peer) if is_allowed(peer, own) && busy => refused(
            format!("the daemon is talking to {MOST_CONVERSATIONS} others"),
            "ask again in a few seconds",
        ),
        Ok(peer) if is_allowed(peer, own) => Ok(()),
        Ok(peer) => refused(
            format!("this daemon belongs to user {own} and does not talk to user {peer}"),
            "ask as its user, or as root",
        ),
        Err(error) => {
            refused(format!("it is unknown who asks: {error}"), "ask as the daemon's user")
        }
    }
}

/// The daemon's own user, and root.
fn is_allowed(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// An answer fits the socket's buffer, so that a client which does not read holds nobody up.
fn refuse(stream: &UnixStream, refusal: &Response) {
    let told: io::Result<()> =
        stream.set_nonblocking(true).and_then(|()| answer(stream, Patience::default(), refusal));
    // Who is refused may be gone already.
    drop(told);
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Command;

    use super::super::client::ask;
    use super::*;

    const SOCKET_VARIABLE: &str = "CHANDLER_TEST_FOREIGN_SOCKET";

    fn echo() -> Arc<Handler> {
        Arc::new(|request| Response::Done { message: format!("{request:?}") })
    }

    fn state_in(folder: &Path, name: &str) -> StateDir {
        let state = StateDir::choose(Some(Path::new(name)), folder);
        state.init("").unwrap();
        state
    }

    fn connect(state: &StateDir) -> UnixStream {
        ControlFolder::find(&state.control()).unwrap().connect().unwrap()
    }

    #[test]
    fn a_request_is_answered_and_the_socket_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_in(folder.path(), "state");
        let not_running = |state: &StateDir| {
            matches!(ask(state, &Request::Status), Err(ControlError::NotRunning { .. }))
        };
        assert!(not_running(&state), "no folder yet");
        let server = ControlServer::start(&state, echo()).unwrap();
        let mode = std::fs::metadata(state.control()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let answer = ask(&state, &Request::Pause).unwrap();
        assert_eq!(answer, Response::Done { message: "Pause".into() });
        drop(server);
        assert!(not_running(&state));
    }

    #[test]
    fn a_socket_left_behind_is_no_daemon_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_in(folder.path(), "state");
        drop(ControlFolder::prepare(&state.control()).unwrap().bind().unwrap());
        assert!(socket_path(&state.control()).exists());
        assert!(matches!(ask(&state, &Request::Stop), Err(ControlError::NotRunning { .. })));
        let _server = ControlServer::start(&state, echo()).unwrap();
        ask(&state, &Request::Stop).unwrap();
    }

    #[test]
    fn a_path_longer_than_a_socket_address_works() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_in(folder.path(), &"long/".repeat(40));
        let _server = ControlServer::start(&state, echo()).unwrap();
        ask(&state, &Request::Status).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_trusted_is_said_to_be_so() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_in(folder.path(), "state");
        let _server = ControlServer::start(&state, echo()).unwrap();
        std::fs::set_permissions(state.control(), PermissionsExt::from_mode(0o755)).unwrap();
        let error = ask(&state, &Request::Status).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("others may enter it (mode 755)"), "{cause}");
        assert!(error.hint().unwrap().contains("chmod 700"));
    }

    #[test]
    fn there_are_only_so_many_conversations() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_in(folder.path(), "state");
        let _server = ControlServer::start(&state, echo()).unwrap();
        let idle: Vec<UnixStream> = (0..MOST_CONVERSATIONS).map(|_| connect(&state)).collect();
        let one_more = connect(&state);
        let mut answer = String::new();
        BufReader::new(&one_more).read_line(&mut answer).unwrap();
        assert!(answer.contains("talking to 16 others"), "{answer}");
        drop(idle);
        // Each of them is noticed to be gone by a thread of its own.
        let served = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            matches!(ask(&state, &Request::Status), Ok(Response::Done { .. }))
        });
        assert!(served);
    }

    #[test]
    fn only_root_and_the_daemons_own_user_are_talked_to() {
        for (peer, own, allowed) in [(7, 7, true), (0, 7, true), (7, 0, false), (8, 7, false)] {
            assert_eq!(is_allowed(peer, own), allowed, "{peer} to {own}");
        }
    }

    /// Not a test of its own: what a process of another user does.
    #[test]
    fn foreigner() {
        let Some(path) = std::env::var_os(SOCKET_VARIABLE) else { return };
        let mut answer = String::new();
        UnixStream::connect(path).unwrap().read_to_string(&mut answer).unwrap();
        println!("{answer}");
    }

    #[test]
    fn another_user_is_told_why_not() {
        if !geteuid().is_root() {
            eprintln!("left out: only root can become another user");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let state = state_in(folder.path(), "state");
        let _server = ControlServer::start(&state, echo()).unwrap();
        // As if somebody had opened the folders.
        for path in [folder.path(), state.root(), &state.control()] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let socket = socket_path(&state.control());
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).unwrap();
        let program = folder.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let output = Command::new(program)
            .args(["control::server::tests::foreigner", "--exact", "--nocapture"])
            .env(SOCKET_VARIABLE, socket)
            .uid(65_534)
            .gid(65_534)
            .current_dir("/")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("belongs to user 0 and does not talk to user 65534"), "{said}");
    }
}
