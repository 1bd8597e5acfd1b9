//! A receiver of webhooks on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
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
        Self::listen("http", answer, Some)
    }

    /// The same over TLS, with the certificate of `fixtures/tls`. Who does not trust it says nothing.
    pub(crate) fn start_tls() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tls");
        let chain = vec![CertificateDer::from_pem_file(folder.join("server.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let config = Arc::new(config.unwrap());
        let wrap = move |stream| {
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream: TcpStream = stream;
            connection.complete_io(&mut stream).ok()?;
            Some(StreamOwned::new(connection, stream))
        };
        Self::listen("https", |_, _| (200, ""), wrap)
    }

    fn listen<S: Read + Write>(
        scheme: &str,
        answer: impl Fn(&Heard, usize) -> (u16, &'static str) + Send + 'static,
        wrap: impl Fn(TcpStream) -> Option<S> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}/{HIDDEN_PATH}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(mut stream) = wrap(stream.unwrap()) else { continue };
                // Who was killed while it spoke has said nothing.
                let Some(mut request) = hear(&mut stream) else { continue };
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

fn hear(stream: &mut impl Read) -> Option<Heard> {
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
