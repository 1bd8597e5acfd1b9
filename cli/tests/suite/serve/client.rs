//! A server in a process of its own, and requests to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hostile::{copy_of, edit};
use crate::support::chandler;

/// Longer than anything here takes on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Where requests go, and the token that they show.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) token: String,
}

/// `chandler serve`.
pub(crate) struct Server {
    process: Child,
    pub(crate) place: Place,
    said: Receiver<String>,
    _folder: tempfile::TempDir,
}

/// What a request was answered with.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Server {
    /// Serves a model until it is dropped.
    pub(crate) fn start(model: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = chandler()
            .args(["serve", "--model", model, "--port", "0"])
            .args(more)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, said) = channel();
        let errors = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            errors.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (mut address, mut token) = (String::new(), String::new());
        for line in lines {
            if let Some(url) = line.strip_prefix("url     http://") {
                url.strip_suffix("/v1").unwrap().clone_into(&mut address);
            }
            if let Some(key) = line.strip_prefix("key     ") {
                key.clone_into(&mut token);
                break;
            }
        }
        let errors = if token.is_empty() { said.iter().collect::<Vec<_>>() } else { vec![] };
        assert!(!token.is_empty() && !address.is_empty(), "{errors:?}");
        Self { process, place: Place { address, token }, said, _folder: folder }
    }

    /// Ends it as Ctrl-C does; its exit code.
    pub(crate) fn interrupt(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
        self.process.wait().unwrap().code()
    }

    /// Ends it, and returns everything that it logged.
    pub(crate) fn log(mut self) -> String {
        let pid = self.process.id().to_string();
        std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
        self.process.wait().unwrap();
        self.said.iter().flat_map(|line| [line, "\n".to_owned()]).collect()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next line of the log that holds this.
    pub(crate) fn hears(&self, part: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.said.recv_timeout(left).unwrap_or_else(|_| panic!("no {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Place {
    /// Sends a request and returns its connection, from which nothing was read.
    pub(crate) fn send(&self, line: &str, body: Option<&str>) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let Self { address, token } = self;
        let mut request = format!(
            "{line} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n"
        );
        if let Some(body) = body {
            let length = body.len();
            request += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        request += &format!("\r\n{}", body.unwrap_or_default());
        stream.write_all(request.as_bytes()).unwrap();
        BufReader::new(stream)
    }

    pub(crate) fn ask(&self, line: &str, body: Option<&str>) -> Answer {
        let mut text = String::new();
        self.send(line, body).read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| json!(body));
        Answer { code, head: head.to_ascii_lowercase(), body }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), None)
    }

    pub(crate) fn chat(&self, request: &Value) -> Answer {
        self.ask("POST /v1/chat/completions", Some(&request.to_string()))
    }

    /// A chat that is answered in chunks; the request must say so.
    pub(crate) fn stream(&self, request: &Value) -> Chunks {
        let mut lines = self.send("POST /v1/chat/completions", Some(&request.to_string()));
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        let code = first.split(' ').nth(1).unwrap().parse().unwrap();
        Chunks { code, lines }
    }

    /// The value of a gauge, which must be there.
    pub(crate) fn gauge(&self, name: &str) -> u64 {
        let found = self.find_gauge(name);
        found.unwrap_or_else(|| panic!("{name}: {:?}", self.get("/metrics").body))
    }

    /// Bytes that the ledger has for a category.
    pub(crate) fn held(&self, category: &str) -> u64 {
        let name = format!("chandler_memory_bytes{{category=\"{category}\"}}");
        // What never had any is left out.
        self.find_gauge(&name).unwrap_or(0)
    }

    fn find_gauge(&self, name: &str) -> Option<u64> {
        let metrics = self.get("/metrics").body;
        let line = metrics.as_str().unwrap().lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().parse().unwrap())
    }
}

/// The events of an answer as they come.
pub(crate) struct Chunks {
    pub(crate) code: u16,
    lines: BufReader<TcpStream>,
}

impl Iterator for Chunks {
    type Item = String;

    /// The data of the next event; lines that frame the body are passed over.
    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Some(data.to_owned());
            }
        }
    }
}

/// A question of the user.
pub(crate) fn question(content: &str, more: Value) -> Value {
    let mut request = json!({ "messages": [{ "role": "user", "content": content }] });
    let (Value::Object(request), Value::Object(more)) = (&mut request, more) else {
        panic!("an object")
    };
    request.extend(more);
    Value::Object(request.clone())
}

/// One that keeps a model with room for it busy for a while.
pub(crate) fn long_question() -> Value {
    question("Tell me much.", json!({ "n": 8, "max_tokens": 2000, "seed": 1, "stream": true }))
}

/// A copy of a small model with positions for long answers.
pub(crate) fn patient_model(folder: &Path) -> PathBuf {
    let copy = copy_of("qwen3", folder);
    edit(&copy.join("config.json"), |config| config["max_position_embeddings"] = json!(8192));
    copy
}

/// Asks until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
