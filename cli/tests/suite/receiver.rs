//! A receiver of webhooks on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::notify::wait_for;

/// Part of every receiver's address.
pub(crate) const HIDDEN_PATH: &str = "T0PSECRETPATH";

/// One request, and the status that it was answered with.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) answered: u16,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        });
        found.unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn is(&self, event: &str) -> bool {
        self.json()["event"] == event
    }
}

/// A receiver on this machine.
pub(crate) struct Receiver {
    pub(crate) url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Receiver {
    /// Answers with what `answer` makes of a request and the number of those before it: a status
    /// and lines for the head.
    pub(crate) fn start(
        answer: impl Fn(&Heard, usize) -> (u16, &'static str) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{HIDDEN_PATH}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // Who was killed while it spoke has said nothing.
                let Some(mut request) = hear(&stream) else { continue };
                let number = all.lock().unwrap().len();
                let (status, lines) = answer(&request, number);
                request.answered = status;
                all.lock().unwrap().push(request);
                let head =
                    format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n");
                let _ = stream.write_all(format!("{head}{lines}\r\n").as_bytes());
            }
        });
        Self { url, heard }
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub(crate) fn wait_for(&self, event: &str, answered: u16) -> Heard {
        wait_for(event, || {
            let heard = self.heard();
            heard.into_iter().find(|heard| heard.is(event) && heard.answered == answered)
        })
    }
}

fn hear(stream: &TcpStream) -> Option<Heard> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let mut heard = Heard { head, body: String::new(), answered: 0 };
    let mut body = vec![0; heard.header("content-length").parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    heard.body = String::from_utf8(body).ok()?;
    Some(heard)
}
