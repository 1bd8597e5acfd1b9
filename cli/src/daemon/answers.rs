//! What the daemon answers on its socket and over HTTP.

use std::sync::OnceLock;

use chandler_vram::{Ledger, NvmlMeter};

use crate::control::{LiveStatus, Request, Response};
use crate::daemon::controls::Controls;
use crate::daemon::live_memory::LiveMemory;
use crate::daemon::stop::StopReason;
use crate::priority::Priority;
use crate::queue::{self, QueueError};
use crate::state_dir::StateDir;
use crate::store::{Store, StoreError};

/// Answers requests from the threads of the control socket and of the HTTP server.
#[derive(Debug)]
pub struct Answers {
    state: StateDir,
    controls: Controls,
    ledger: Ledger,
    nvml: NvmlMeter,
    started_at: String,
    http: OnceLock<String>,
}

impl Answers {
    /// Answers for a daemon that began now and keeps these books.
    pub fn new(state: &StateDir, controls: &Controls, ledger: &Ledger) -> Self {
        Self {
            state: state.clone(),
            controls: controls.clone(),
            ledger: ledger.clone(),
            nvml: NvmlMeter::new(),
            started_at: jiff::Timestamp::now().to_string(),
            http: OnceLock::new(),
        }
    }

    /// Says from now on where the HTTP server listens, such as `http://127.0.0.1:7917`.
    pub fn tell_http(&self, url: &str) {
        // There is one server in the life of a daemon.
        let _ = self.http.set(url.to_owned());
    }

    /// The answer to `request`, which is acted upon.
    pub fn answer(&self, request: Request) -> Response {
        let answered = match request {
            Request::Status => return Response::Status(Box::new(self.status())),
            Request::Pause => self.pause(true),
            Request::Resume => self.pause(false),
            Request::Skip { job } => self.skip(job),
            Request::Stop => {
                self.controls.request_stop(StopReason::Shutdown);
                Ok("the daemon ends after the step that is going on".to_owned())
            }
            Request::Retry { job } => self.retry(job),
            Request::Priority { job, priority } => self.set_priority(job, priority),
            Request::EvalNow => self.eval_now(),
            Request::Look => {
                self.controls.wake();
                Ok("the daemon looks into the inbox".to_owned())
            }
        };
        match answered {
            Ok(message) => Response::Done { message },
            Err(error) => Response::Refused { error: error.to_string(), hint: error.hint() },
        }
    }

    fn status(&self) -> LiveStatus {
        LiveStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at.clone(),
            paused: self.controls.is_paused(),
            stopping: self.controls.stop().requested() == Some(StopReason::Shutdown),
            current: self.controls.current(),
            waiting: self.controls.waiting(),
            memory: LiveMemory::read(&self.ledger, &self.nvml),
            http: self.http.get().cloned(),
        }
    }

    fn pause(&self, paused: bool) -> Result<String, AnswerError> {
        self.store()?.set_paused(paused)?;
        self.controls.set_paused(paused);
        Ok(match (paused, self.controls.current()) {
            (true, Some(_)) => "the daemon pauses after the step that is going on",
            (true, None) => "the daemon is paused",
            (false, _) => "the daemon goes on",
        }
        .to_owned())
    }

    fn skip(&self, job: Option<i64>) -> Result<String, AnswerError> {
        let _queue = self.controls.hold_queue();
        let (id, name) = match (self.controls.skip(job), job) {
            (Some(found), _) => found,
            (None, None) => return Err(AnswerError::Idle),
            (None, Some(id)) => {
                (id, queue::skip_queued(&self.state, &self.store()?, id)?.file_name)
            }
        };
        Ok(format!("job {id} ({name}) is passed over"))
    }

    fn retry(&self, id: i64) -> Result<String, AnswerError> {
        let _queue = self.controls.hold_queue();
        let job = queue::retry(&self.state, &self.store()?, id)?;
        self.controls.wake();
        Ok(format!("job {id} ({}) is queued again", job.file_name))
    }

    fn set_priority(&self, id: i64, priority: Priority) -> Result<String, AnswerError> {
        let _queue = self.controls.hold_queue();
        let job = queue::set_priority(&self.store()?, id, priority)?;
        Ok(format!("job {id} ({}) has priority {priority}", job.file_name))
    }

    fn eval_now(&self) -> Result<String, AnswerError> {
        if self.controls.current().is_none() {
            return Err(AnswerError::Idle);
        }
        self.controls.request_eval();
        Ok("the model is evaluated after the step that is going on".to_owned())
    }

    /// A connection of this thread's own; the loop keeps another.
    fn store(&self) -> Result<Store, StoreError> {
        Store::open(&self.state.database())
    }
}

/// Why a request was not acted upon.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("the daemon works on no job")]
    Idle,
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AnswerError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Idle => Some("`chandler jobs` lists what waits".to_owned()),
            Self::Queue(error) => error.hint(),
            Self::Store(error) => error.hint(),
        }
    }
}
