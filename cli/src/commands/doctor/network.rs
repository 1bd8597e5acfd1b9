//! Whether the page has its port.

use std::io;
use std::net::TcpListener;

use super::check::Check;
use crate::config::Config;
use crate::control::{self, Request, Response};
use crate::state_dir::StateDir;

/// What was found out about the port.
#[derive(Debug)]
pub(super) enum Port {
    /// The page of this state directory's daemon is there.
    Served(String),
    /// The daemon that runs here has no page.
    Missing,
    Free,
    Refused(io::Error),
}

/// Asks the daemon or, where none is running, tries the port.
pub(super) fn read(state: &StateDir, config: &Config) -> Port {
    if let Ok(Response::Status(live)) = control::ask(state, &Request::Status) {
        return live.http.map_or(Port::Missing, Port::Served);
    }
    let port = u16::try_from(config.http.port).unwrap_or(0);
    match TcpListener::bind((config.http.address.as_str(), port)) {
        Ok(_) => Port::Free,
        Err(error) => Port::Refused(error),
    }
}

pub(super) fn check(config: &Config, found: &Port) -> Check {
    const NAME: &str = "page";
    let (address, port) = (&config.http.address, config.http.port);
    if !config.http.enabled {
        return Check::info(NAME, "http.enabled is false");
    }
    match found {
        Port::Served(url) => Check::ok(NAME, format!("served at {url}")),
        Port::Missing => Check::warning(
            NAME,
            "the daemon that is running has none",
            "`chandler logs --level warn` says why; it is tried again when the daemon starts",
        ),
        Port::Free => Check::ok(NAME, format!("port {port} of {address} is free")),
        Port::Refused(error) if error.kind() == io::ErrorKind::AddrInUse => Check::warning(
            NAME,
            format!("port {port} of {address} is taken; the daemon will take another one"),
            "set http.port to one that is free, or end the program that has it (`ss -ltnp`)",
        ),
        Port::Refused(error) => Check::warning(
            NAME,
            format!("port {port} of {address} cannot be listened on: {error}"),
            "set http.address to an address of this machine, and http.port above 1023",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_taken_port_is_told() {
        let mut config = Config::default();
        let verdict = |config: &Config, found| check(config, &found).verdict;
        assert_eq!(verdict(&config, Port::Free), Verdict::Ok);
        assert_eq!(verdict(&config, Port::Served("http://x".to_owned())), Verdict::Ok);
        assert_eq!(verdict(&config, Port::Missing), Verdict::Warning);
        for kind in [io::ErrorKind::AddrInUse, io::ErrorKind::PermissionDenied] {
            assert_eq!(verdict(&config, Port::Refused(kind.into())), Verdict::Warning);
        }
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        config.http.port = u64::from(listener.local_addr().unwrap().port());
        let taken = check(&config, &read(&state, &config));
        assert!(taken.detail.contains("is taken"), "{}", taken.detail);
        config.http.enabled = false;
        assert_eq!(verdict(&config, Port::Free), Verdict::Info);
    }
}
