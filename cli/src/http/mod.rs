//! The daemon's page and API for the browser.
//!
//! A thread of its own with a single-threaded runtime listens, by default on this machine's own
//! address alone. It reads the database through a connection of its own and asks the daemon through
//! the handler of the control socket, so that the training loop never waits for it.
//!
//! ```text
//! listen.rs      the port, connections and their limits; stalled.rs cuts clients that do not read
//! limits.rs      how much of everything there is
//! guard.rs       who may ask: Host, Origin, token; headers that every answer has
//! token.rs       the file `token`, and the cookie made from it
//! routes.rs      which path is answered by what
//! read.rs        GET /api/…
//! logs.rs        GET /api/logs, from the ends of the files
//! preview.rs     GET /api/jobs/{id}/preview, by a worker
//! plan.rs        GET /api/plan.svg and /api/plan/table
//! steer.rs       POST /api/…
//! v1.rs          /v1/…, answers of the model; serving.rs is a server of those alone
//! stream.rs      GET /api/stream, from position to position (position.rs)
//! prometheus.rs  GET /metrics
//! assets.rs      the page
//! reply.rs       refusals as JSON
//! ```

mod assets;
mod curve;
mod guard;
mod layers;
mod limits;
mod listen;
mod logs;
mod plan;
mod position;
mod preview;
mod prometheus;
mod read;
mod reply;
mod routes;
mod serving;
mod stalled;
mod steer;
mod stream;
mod token;
mod v1;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use axum::Router;
use chandler_durable::DurableError;
use tokio::sync::{Semaphore, watch};

pub use limits::Limits;
pub(crate) use serving::Serving;
pub use token::{Token, read_token};
pub(crate) use token::{
    make_or_read as make_or_read_token, make_or_read_named as make_or_read_named_token,
};

use crate::config::Config;
use crate::control::Handler;
use crate::serve::Service;
use crate::state_dir::StateDir;
use crate::store::{Store, StoreError};
use guard::Guard;
use routes::App;
use v1::V1;

/// Threads that read the database; the one that listens never does.
const READING_THREADS: usize = 4;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be listened on.
    #[error("cannot listen for HTTP on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The token could not be read.
    #[error("cannot read the token {}", path.display())]
    ReadToken {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no token.
    #[error("{} holds no token", path.display())]
    BadToken {
        /// The file.
        path: PathBuf,
    },
    /// The file that was named for the token holds something else.
    #[error("{} holds no token", path.display())]
    NotAToken {
        /// The file.
        path: PathBuf,
    },
    /// The file that was named for the token is open to others.
    #[error("others can read the token {}", path.display())]
    OpenToken {
        /// The file.
        path: PathBuf,
    },
    /// The token could not be written.
    #[error(transparent)]
    WriteToken(#[from] DurableError),
    /// There are no random numbers.
    #[error("cannot make a token")]
    Random {
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The database could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread or its runtime could not be made.
    #[error("cannot start the HTTP server")]
    Start {
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl HttpError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { .. } => Some(
                "set http.address to an address of this machine, or http.enabled to false".into(),
            ),
            Self::ReadToken { path, .. } => {
                Some(format!("check the owner and mode of {}", path.display()))
            }
            Self::BadToken { path } => {
                Some(format!("remove {}: the daemon makes another when it starts", path.display()))
            }
            Self::NotAToken { path } => Some(format!(
                "name another file: one that is missing is made; or remove {}, if nobody needs it",
                path.display()
            )),
            Self::OpenToken { path } => Some(format!(
                "`chmod 600 {}`, as the user that chandler runs as; or name another file, which \
                 gets a new token",
                path.display()
            )),
            Self::WriteToken(source) => source.hint(),
            Self::Store(source) => source.hint(),
            Self::Random { .. } | Self::Start { .. } => {
                Some("http.enabled = false does without".to_owned())
            }
        }
    }
}

/// A listening server; dropping it ends every conversation.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    ending: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Listens as `config.http` says. The caller holds the lock of `state`, whose database exists.
    /// Requests to the model are answered where there is a service.
    pub fn start(
        state: &StateDir,
        config: &Config,
        handler: Arc<Handler>,
        service: Option<&Arc<Service>>,
    ) -> Result<Self, HttpError> {
        Self::start_within(Limits::default(), state, config, handler, service)
    }

    /// Listens as `config.http` says, with other limits.
    pub fn start_within(
        limits: Limits,
        state: &StateDir,
        config: &Config,
        handler: Arc<Handler>,
        service: Option<&Arc<Service>>,
    ) -> Result<Self, HttpError> {
        let token = token::make_or_read(&state.token_file())?;
        let (listener, address) = listen::bind(&config.http)?;
        let reader = Store::open_to_read(&state.database())?;
        let (changes, changed) = watch::channel(0);
        let app = Arc::new(App {
            state: state.clone(),
            config: config.clone(),
            handler,
            guard: Guard::new(token, address, &config.http.hosts),
            reader: Mutex::new(reader),
            viewers: Arc::new(Semaphore::new(limits.viewers)),
            previews: Arc::new(Semaphore::new(1)),
            drawn: Mutex::default(),
            limits,
            changed,
        });
        let v1 = service
            .map(|service| V1 { service: Arc::clone(service), patience: limits.answer_patience });
        let beside = stream::watch_database(Arc::clone(&app), changes);
        let router = routes::router(app, v1);
        Self::run(listener, address, router, limits, Some(Box::pin(beside)))
    }

    /// Answers from a thread of its own, with `beside` going on there too.
    fn run(
        listener: TcpListener,
        address: SocketAddr,
        router: Router,
        limits: Limits,
        beside: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ) -> Result<Self, HttpError> {
        let start = |source| HttpError::Start { source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(READING_THREADS)
            .thread_name("http-read")
            .build()
            .map_err(start)?;
        let (ending, ends) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || {
                if let Some(beside) = beside {
                    runtime.spawn(beside);
                }
                runtime.block_on(listen::serve(listener, router, limits, ends));
                // What is being read is let go of, not waited for.
                runtime.shutdown_background();
            })
            .map_err(start)?;
        Ok(Self { address, ending, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where a browser on this machine finds it, such as `http://127.0.0.1:7917`.
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            let own: std::net::IpAddr = if address.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            };
            address.set_ip(own);
        }
        format!("http://{address}")
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        // A thread that has ended listens no more, which is as wanted.
        let _ = self.ending.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
