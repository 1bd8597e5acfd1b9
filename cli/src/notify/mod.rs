//! Who is told of what happens: webhooks and the desktop.
//!
//! A thread of its own follows the events in the database, puts what webhooks are to be told into
//! the outbox there, and sends it. Nobody waits for it: whoever records an event is done when that
//! is on the disk, and a process that is killed goes on sending where it was.
//!
//! ```text
//! message.rs    what is said, in which form
//! signature.rs  HMAC over a body
//! courier.rs    one request, and what its answer means
//! schedule.rs   when to try again
//! outgoing.rs   what is sent to whom, and where it is kept
//! sender.rs     from events to requests
//! desktop.rs    notify-send, or osascript
//! ```

mod courier;
mod desktop;
mod message;
mod outgoing;
mod schedule;
mod sender;
mod signature;

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::config::{NotifyConfig, Topic};
use crate::state_dir::StateDir;
use crate::store::{Store, StoreError};
use courier::Verdict;
use desktop::Desktop;
use message::{Notice, Origin, body};
use sender::Sender;

/// Why nobody is told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The database did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The HTTP client could not be made.
    #[error("cannot make an HTTP client")]
    Client {
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("cannot start the thread that notifies")]
    Start {
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl NotifyError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Client { .. } => Some(
                "webhooks need the system's certificates: install the package ca-certificates"
                    .to_owned(),
            ),
            Self::Start { .. } => Some("look at the limits of this user: `ulimit -a`".to_owned()),
        }
    }
}

/// The thread that tells; dropping it has it say what is left to say, for a few seconds.
#[derive(Debug)]
pub struct Notifier {
    ending: watch::Sender<bool>,
    urgent: mpsc::UnboundedSender<Notice>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    /// Begins to tell, where anybody is to be told.
    pub fn start(state: &StateDir, config: &NotifyConfig) -> Result<Option<Self>, NotifyError> {
        if config.webhooks.0.is_empty() && !config.desktop {
            return Ok(None);
        }
        let store = Store::open(&state.database())?;
        let client = courier::client().map_err(|source| NotifyError::Client { source })?;
        let sender = Sender::new(store, client, Origin::of(state), config)?;
        let runtime = runtime()?;
        let (ending, ends) = watch::channel(false);
        let (urgent, pressed) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("notify".to_owned())
            .spawn(move || {
                runtime.block_on(sender.work(ends, pressed));
                // What looks up a name may take longer than anybody waits.
                runtime.shutdown_background();
            })
            .map_err(|source| NotifyError::Start { source })?;
        Ok(Some(Self { ending, urgent, thread: Some(thread) }))
    }

    /// A way to tell what the database cannot take.
    pub fn urgent(&self) -> Urgent {
        Urgent(self.urgent.clone())
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // A thread that has ended tells nothing more, which is as wanted.
        let _ = self.ending.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells what cannot be recorded, as that the disk is full; this is lost with the process.
#[derive(Debug, Clone)]
pub struct Urgent(mpsc::UnboundedSender<Notice>);

impl Urgent {
    /// Says what the daemon waits for.
    pub fn waiting(&self, words: &str) {
        // Who ends hears nothing more.
        let _ = self.0.send(Notice::now(Topic::Waiting, words));
    }
}

fn runtime() -> Result<Runtime, NotifyError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| NotifyError::Start { source })
}

/// How a test went.
#[derive(Debug)]
pub struct Tested {
    /// Whom it was sent to, without what opens it.
    pub place: String,
    /// What came back.
    pub answer: Result<String, String>,
    /// How long that took.
    pub took: Duration,
}

/// Sends a test to everybody, once each.
pub fn test(state: &StateDir, config: &NotifyConfig) -> Result<Vec<Tested>, NotifyError> {
    let notice = Notice::now(Topic::Test, "a test: whoever reads this is told of what happens");
    let mut tested = Vec::new();
    if config.desktop {
        let begun = Instant::now();
        let answer = Desktop::show_now(&notice).map(|()| "shown".to_owned());
        tested.push(Tested { place: "desktop".to_owned(), answer, took: begun.elapsed() });
    }
    let origin = Origin::of(state);
    let client = courier::client().map_err(|source| NotifyError::Client { source })?;
    let runtime = runtime()?;
    for hook in &config.webhooks.0 {
        let begun = Instant::now();
        let key = outgoing::loose_key(&notice, &origin, &hook.place());
        let body = body(&notice, &key, &origin, hook.format);
        let answer = match runtime.block_on(courier::send(&client, hook, &key, body)) {
            Verdict::Delivered(status) => Ok(status.to_string()),
            Verdict::Later { why, .. } | Verdict::Never { why } => Err(why),
        };
        tested.push(Tested { place: hook.place(), answer, took: begun.elapsed() });
    }
    runtime.shutdown_background();
    Ok(tested)
}
