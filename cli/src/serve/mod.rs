//! Answers to requests in the form of OpenAI's API, by the model that is served.
//!
//! ```text
//! request.rs, fields.rs   what is asked
//! desk.rs                 the queue, and whether anything is answered now
//! offer.rs                which model
//! reader.rs               a thread: prompts become tokens, in the worker that stands ready
//! host.rs, answer.rs      a thread: owns the model, generates within a scope, tells the clients
//! batch.rs                who is answered side by side
//! speech.rs               text out of tokens, as far as it is sure
//! form.rs, refusal.rs     what is answered
//! ```
//!
//! In the daemon the model is there while somebody asks and no job is worked on: [`Guest`] is how
//! the job loop gets its memory back.

mod answer;
mod batch;
mod desk;
mod fields;
mod form;
mod host;
mod offer;
mod reader;
mod refusal;
mod request;
mod speech;

use std::cell::Cell;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use chandler_vram::Ledger;
use tokio::sync::mpsc::UnboundedReceiver;

pub(crate) use desk::Said;
pub(crate) use form::{Choice, DONE, Form, Usage, event};
pub(crate) use host::{LoadError, Tell};
pub(crate) use offer::{Offer, Source, context, name_of, newest, newest_or_base};
pub(crate) use refusal::Refusal;
pub(crate) use request::{Asked, Face};
pub(crate) use speech::Speech;

use crate::config::Config;
use crate::daemon::Guest;
use desk::Desk;
use host::{Host, Loaded};
use offer::Opened;
use reader::{Read, Reader};

/// Whoever answers requests. Dropping it ends what goes on.
pub struct Service {
    desk: Arc<Desk<Read>>,
    source: Source,
    grace: Duration,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

impl Service {
    /// Loads the model with the first request, and lets go of it when nobody asks for
    /// `serve.idle_seconds`.
    pub(crate) fn on_demand(
        config: &Config,
        ledger: &Ledger,
        source: Source,
        tell: Tell,
    ) -> io::Result<Self> {
        let config = config.clone();
        let idle = Duration::try_from_secs_f64(config.serve.idle_seconds).ok();
        let reader = Reader { config: config.clone(), source: Arc::clone(&source), open: None };
        let (ledger, told) = (ledger.clone(), Cell::default());
        let host = Host { config, ledger, tell, told, idle, loaded: None };
        Self::start(source, reader, host)
    }

    /// Loads the model at once, and keeps it.
    pub(crate) fn of(
        config: &Config,
        ledger: &Ledger,
        offer: Offer,
        tell: Tell,
    ) -> Result<Self, LoadError> {
        let (standing, opened) = Opened::open(config, offer.clone(), &|| false)?;
        let loaded = Some(Loaded::load(config, ledger, &opened)?);
        let source: Source = Arc::new(move || Ok(offer.clone()));
        let open = Some((standing, opened));
        let config = config.clone();
        let reader = Reader { config: config.clone(), source: Arc::clone(&source), open };
        let (ledger, told) = (ledger.clone(), Cell::default());
        let host = Host { config, ledger, tell, told, idle: None, loaded };
        let started = Self::start(source, reader, host);
        started.map_err(|source| LoadError::Thread { source })
    }

    fn start(source: Source, reader: Reader, host: Host) -> io::Result<Self> {
        let serve = &reader.config.serve;
        let grace = Duration::try_from_secs_f64(serve.grace_seconds).unwrap_or_default();
        let desk = Arc::new(Desk::new(serve.queue));
        let service = Self { desk: Arc::clone(&desk), source, grace, threads: Mutex::new(vec![]) };
        let at_desk = Arc::clone(&desk);
        service.spawn("serve-read", move || reader.work(&at_desk))?;
        service.spawn("serve-host", move || host.work(&desk))?;
        Ok(service)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Asks; what is said about it comes through the channel, and dropping that ends the answer.
    pub(crate) fn ask(&self, asked: Asked) -> Result<UnboundedReceiver<Said>, Refusal> {
        self.desk.submit(asked)
    }

    /// The model that is served.
    pub(crate) fn offer(&self) -> Result<Offer, Refusal> {
        (self.source)()
    }

    /// Requests that wait, and whether one is being answered.
    pub(crate) fn load(&self) -> (usize, bool) {
        self.desk.load()
    }

    /// Ends: who waits is refused, what goes on has `serve.grace_seconds`.
    pub(crate) fn end(&self) {
        self.desk.end(self.grace);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // What it had in hand is dropped either way.
            let _ = thread.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

impl Guest for Service {
    fn leave(&self, alive: &dyn Fn()) {
        self.desk.close(self.grace, alive);
    }

    fn may_return(&self) {
        self.desk.open();
    }
}
