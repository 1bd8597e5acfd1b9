//! The asking side.

use std::io::{self, BufRead, BufReader, Write};
use std::time::Duration;

use super::protocol::{Request, Response};
use super::socket::ControlFolder;
use super::{ControlError, socket};
use crate::state_dir::StateDir;

/// How long an answer may take. The daemon answers from a thread of its own, between no steps.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the daemon of `state` and returns its answer.
pub fn ask(state: &StateDir, request: &Request) -> Result<Response, ControlError> {
    let folder = state.control();
    let path = socket::socket_path(&folder);
    let connected = ControlFolder::find(&folder).and_then(|folder| folder.connect());
    let mut stream = connected.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning { state_dir: state.root().to_owned() }
        }
        _ => ControlError::Connect { path: path.clone(), source },
    })?;
    let silent = |source| ControlError::Silent { path: path.clone(), source };
    let garbled = |source| ControlError::Garbled { path: path.clone(), source };
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    let mut line = serde_json::to_string(request).map_err(garbled)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(silent)?;
    let mut answer = String::new();
    let read = BufReader::new(stream).read_line(&mut answer).map_err(silent)?;
    if read == 0 {
        return Err(silent(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_str(&answer).map_err(garbled)
}
