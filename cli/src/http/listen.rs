//! The port, and the connections that are made to it, each within its limits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use super::HttpError;
use super::limits::Limits;
use super::stalled::Unstalled;
use crate::config::HttpConfig;

/// Bytes of a request before its body, and of what waits to be written.
const MOST_HEADER_BYTES: usize = 16 * 1024;

/// How long a connection may take for the answer that is going on when the server ends.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Lines of a request before its body.
const MOST_HEADERS: usize = 64;

/// What is told to who comes when all connections are in use.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
                      Retry-After: 5\r\nContent-Length: 0\r\n\r\n";

/// Binds the configured port, or a free one where it is taken, which is said.
pub(super) fn bind(config: &HttpConfig) -> Result<(TcpListener, SocketAddr), HttpError> {
    // The configuration was checked when it was read.
    let ip: IpAddr = config.address.parse().unwrap_or(Ipv4Addr::LOCALHOST.into());
    let wanted = SocketAddr::new(ip, config.port as u16);
    let listen = |source| HttpError::Listen { address: wanted, source };
    let listener = match TcpListener::bind(wanted) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let other = TcpListener::bind(SocketAddr::new(ip, 0)).map_err(listen)?;
            let port = other.local_addr().map_err(listen)?.port();
            tracing::warn!("port {} is taken: the page is on port {port}", wanted.port());
            other
        }
        bound => bound.map_err(listen)?,
    };
    ready(listener, wanted)
}

/// Binds this port and no other.
pub(super) fn bind_exactly(wanted: SocketAddr) -> Result<(TcpListener, SocketAddr), HttpError> {
    let listener = TcpListener::bind(wanted);
    ready(listener.map_err(|source| HttpError::Listen { address: wanted, source })?, wanted)
}

fn ready(
    listener: TcpListener,
    wanted: SocketAddr,
) -> Result<(TcpListener, SocketAddr), HttpError> {
    let listen = |source| HttpError::Listen { address: wanted, source };
    listener.set_nonblocking(true).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            "{address} can be reached from other machines: the token is sent there unencrypted"
        );
    }
    Ok((listener, address))
}

/// Answers connections until `ending` says so or is gone.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the HTTP server ends");
            return;
        }
    };
    let free = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.changed() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: connections that end give some back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        match Arc::clone(&free).try_acquire_owned() {
            Ok(turn) => {
                let (router, ending) = (router.clone(), ending.clone());
                tokio::spawn(async move {
                    converse(stream, router, limits, ending).await;
                    drop(turn);
                });
            }
            // It fits the empty buffer of a new connection.
            Err(_) => drop(stream.try_write(BUSY)),
        }
    }
    // Every connection is given the time for its last words; who does not use it is cut off.
    let all = limits.connections as u32;
    let _ = tokio::time::timeout(2 * LAST_WORDS, free.acquire_many(all)).await;
}

async fn converse(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
) {
    // Small messages go out at once; where that cannot be set they go out a little later.
    let _ = stream.set_nodelay(true);
    // Who vanished without a word is let go of by the system; elsewhere that takes longer.
    #[cfg(target_os = "linux")]
    let _ = rustix::net::sockopt::set_tcp_user_timeout(
        &stream,
        limits.write_patience.as_millis() as u32,
    );
    let io = TokioIo::new(Unstalled::new(stream, limits.write_patience));
    let mut builder = http1::Builder::new();
    let connection = builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_patience)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEADER_BYTES)
        .serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        _ = ending.changed() => {
            // An answer that has begun, such as that to `stop`, is brought to its end.
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_WORDS, connection).await {
                Ok(served) => served,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "an HTTP connection broke off");
    }
}
