//! A server on a port of its own, and what it is asked with.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chandler_cli::config::{Config, HttpConfig};
use chandler_cli::control::{LiveStatus, Request, Response};
use chandler_cli::http::{HttpServer, Limits, read_token};
use chandler_cli::state_dir::StateDir;
use chandler_cli::store::Store;
use serde_json::{Value, json};

pub(crate) struct Server {
    _folder: tempfile::TempDir,
    pub(crate) state: StateDir,
    pub(crate) store: Store,
    pub(crate) token: String,
    pub(crate) server: HttpServer,
}

/// A daemon that says what it is asked and does nothing.
pub(crate) fn answer(request: Request) -> Response {
    match request {
        Request::Status => Response::Status(Box::new(status())),
        Request::Skip { job: None } => {
            Response::Refused { error: "it is idle".into(), hint: Some("wait".into()) }
        }
        other => Response::Done { message: format!("{other:?}") },
    }
}

pub(crate) fn status() -> LiveStatus {
    serde_json::from_value(json!({
        "pid": 1, "version": "0", "started_at": "2026-01-01T00:00:00Z",
        "paused": false, "stopping": false,
        "current": {
            "job_id": 4, "file_name": "a.jsonl", "run_id": 1, "phase": "training",
            "progress": {
                "step": 7, "total_steps": 9, "loss": 1.25, "lr": 1e-3, "tokens_per_s": null,
                "eta_s": 3.5, "memory_bytes": null,
            },
        },
        "memory": {
            "ledger": {
                "categories": [{ "category": "weights", "bytes": 4096, "peak": 4096 }],
                "total": 4096, "peak_total": 4096, "phases": [],
            },
            "heap": 5, "heap_peak": null, "limit": null,
            "host": {
                "rss": null, "peak_rss": null, "total": null, "available": null,
                "cgroup_limit": null, "cgroup_used": null,
            },
            "gpus": null,
        },
    }))
    .unwrap()
}

pub(crate) fn listening_on(port: u64) -> Config {
    Config { http: HttpConfig { port, ..HttpConfig::default() }, ..Config::default() }
}

pub(crate) fn serve(limits: Limits) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::choose(Some(Path::new("state")), folder.path());
    state.init("").unwrap();
    let store = Store::open(&state.database()).unwrap();
    let config = listening_on(0);
    let server = HttpServer::start_within(limits, &state, &config, Arc::new(answer), None).unwrap();
    let token = read_token(&state.token_file()).unwrap().as_str().to_owned();
    Server { _folder: folder, state, store, token, server }
}

impl Server {
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// The whole answer to a request that closes the connection.
    pub(crate) fn send(&self, raw: &str) -> String {
        let mut stream = self.connect();
        let mut answer = Vec::new();
        cut_off_at_most(stream.write_all(raw.as_bytes()));
        cut_off_at_most(stream.read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn request(&self, line: &str, headers: &[(&str, &str)], body: &str) -> String {
        let mut raw = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            write!(raw, "Host: {}\r\n", self.server.address()).unwrap();
        }
        for (name, value) in headers {
            write!(raw, "{name}: {value}\r\n").unwrap();
        }
        if line.starts_with("POST") {
            write!(raw, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        self.send(&format!("{raw}\r\n{body}"))
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.request(&format!("GET {path}"), &[("Authorization", &self.bearer())], "");
        (code(&answer), json_of(&answer))
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let headers = [("Authorization", &*self.bearer()), ("Content-Type", "application/json")];
        let answer = self.request(&format!("POST {path}"), &headers, body);
        (code(&answer), json_of(&answer))
    }
}

/// A request that is refused early may not be read to its end; nothing else goes wrong with one.
fn cut_off_at_most<T>(result: std::io::Result<T>) {
    if let Err(error) = result {
        let is_cut_off = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
        assert!(is_cut_off, "{error}");
    }
}

pub(crate) fn code(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("{answer}"))
}

pub(crate) fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

pub(crate) fn json_of(answer: &str) -> Value {
    serde_json::from_str(body_of(answer)).unwrap_or_else(|_| panic!("{answer}"))
}

pub(crate) fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

pub(crate) fn open_stream(server: &Server) -> (u16, BufReader<TcpStream>) {
    let mut stream = server.connect();
    let request = format!(
        "GET /api/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\r\n",
        server.bearer()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (code(&line), reader)
}
