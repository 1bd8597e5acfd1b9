//! The answering side: a thread that accepts, and a short-lived one for each conversation.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::protocol::{Request, Response};
use super::{ControlError, socket};
use crate::state_dir::StateDir;

/// How long a client may leave its line unfinished.
const PATIENCE: Duration = Duration::from_secs(5);

/// No request is nearly as long.
const LONGEST_LINE_BYTES: u64 = 64 * 1024;

/// Who answers requests; called from several threads.
pub type Handler = dyn Fn(Request) -> Response + Send + Sync;

/// A listening daemon; dropping it ends the listening and removes the socket.
#[derive(Debug)]
pub struct ControlServer {
    folder: PathBuf,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens on the socket of `state`.
    ///
    /// The caller holds the state directory's lock, so that a socket found there is one that a dead
    /// daemon left behind; it is replaced.
    pub fn start(state: &StateDir, handler: Arc<Handler>) -> Result<Self, ControlError> {
        let folder = state.control();
        prepare(&folder).map_err(|source| ControlError::Folder { path: folder.clone(), source })?;
        let path = socket::socket_path(&folder);
        let listen = |source| ControlError::Listen { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen(error)),
            _ => {}
        }
        let listener = socket::bind(&folder).map_err(listen)?;
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
        if socket::connect(&self.folder).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic over there was already reported there.
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(socket::socket_path(&self.folder));
    }
}

fn prepare(folder: &std::path::Path) -> io::Result<()> {
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

fn accept(listener: &UnixListener, ending: &AtomicBool, handler: &Arc<Handler>) {
    for stream in listener.incoming() {
        if ending.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let handler = Arc::clone(handler);
        let conversation =
            std::thread::Builder::new().name("control-answer".to_owned()).spawn(move || {
                // A client that went away takes its errors with it.
                let _ = converse(&stream, &*handler);
            });
        if let Err(error) = conversation {
            tracing::warn!(%error, "cannot answer on the control socket");
        }
    }
}

/// Answers line by line until the client closes.
fn converse(stream: &UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LONGEST_LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let response = match serde_json::from_str(&line) {
            Ok(request) => handler(request),
            Err(error) => Response::Refused {
                error: format!("the request is not understood: {error}"),
                hint: Some("client and daemon may be of different versions".to_owned()),
            },
        };
        let mut answer = serde_json::to_string(&response).map_err(io::Error::other)?;
        answer.push('\n');
        writer.write_all(answer.as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::client::ask;
    use super::*;

    fn echo() -> Arc<Handler> {
        Arc::new(|request| Response::Done { message: format!("{request:?}") })
    }

    fn state_in(folder: &Path, name: &str) -> StateDir {
        let state = StateDir::choose(Some(Path::new(name)), folder);
        state.init("").unwrap();
        state
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
        prepare(&state.control()).unwrap();
        drop(socket::bind(&state.control()).unwrap());
        assert!(socket::socket_path(&state.control()).exists());
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
    fn a_line_that_is_no_request_is_refused_and_the_next_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_in(folder.path(), "state");
        let _server = ControlServer::start(&state, echo()).unwrap();
        let stream = socket::connect(&state.control()).unwrap();
        (&stream).write_all(b"{\"command\":\"dance\"}\n{\"command\":\"stop\"}\n").unwrap();
        let mut lines = BufReader::new(&stream).lines();
        assert!(lines.next().unwrap().unwrap().contains("not understood"));
        assert!(lines.next().unwrap().unwrap().contains("Stop"));
    }
}
