//! Commands that steer a running daemon. Where the database is all that has to change, they work
//! without one.

use clap::Args;

use serde::Serialize;

use super::App;
use crate::control::{self, ControlError, Request, Response};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::priority::Priority;
use crate::queue;
use crate::state_dir::StateDir;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct SkipArgs {
    /// The job; without a number, the one that is being worked on
    job: Option<i64>,
}

#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// The job
    job: i64,
}

#[derive(Debug, Args)]
pub(super) struct PriorityArgs {
    /// The job
    job: i64,
    /// Its new priority
    priority: Priority,
}

/// What came of a request.
#[derive(Debug, Serialize)]
pub(crate) struct Acted {
    /// In a sentence.
    pub(crate) message: String,
    /// Whether a daemon is running, and did it.
    daemon: bool,
    /// The job that it was about, where one was named.
    job: Option<i64>,
}

pub(super) fn priority(app: &App, args: &PriorityArgs) -> Result<Exit, Failure> {
    let PriorityArgs { job, priority } = *args;
    tell(app, &Request::Priority { job, priority })
}

pub(super) fn pause(app: &App, paused: bool) -> Result<Exit, Failure> {
    tell(app, if paused { &Request::Pause } else { &Request::Resume })
}

pub(super) fn skip(app: &App, args: &SkipArgs) -> Result<Exit, Failure> {
    tell(app, &Request::Skip { job: args.job })
}

pub(super) fn retry(app: &App, args: &RetryArgs) -> Result<Exit, Failure> {
    tell(app, &Request::Retry { job: args.job })
}

pub(super) fn stop(app: &App) -> Result<Exit, Failure> {
    tell(app, &Request::Stop)
}

pub(super) fn eval_now(app: &App) -> Result<Exit, Failure> {
    tell(app, &Request::EvalNow)
}

fn tell(app: &App, request: &Request) -> Result<Exit, Failure> {
    let acted = act(&app.state()?, request)?;
    app.print(&format!("{}\n", acted.message), &acted)?;
    Ok(Exit::Ok)
}

/// Has the daemon do what is asked or, where none is running and the database is all that has to
/// change, does it.
pub(crate) fn act(state: &StateDir, request: &Request) -> Result<Acted, Failure> {
    let (message, daemon) = match control::ask(state, request) {
        Ok(Response::Done { message }) => (message, true),
        Ok(Response::Refused { error, hint }) => {
            return Err(Failure::new(Exit::Error, anyhow::anyhow!(error), hint));
        }
        Ok(Response::Status(_)) => {
            let error = anyhow::anyhow!("the daemon told its status, which was not asked for");
            let hint = "it may be of another version: `chandler stop` ends it".to_owned();
            return Err(Failure::new(Exit::Error, error, Some(hint)));
        }
        Err(error @ ControlError::NotRunning { .. }) => match without_daemon(state, request)? {
            Some(message) => (message, false),
            None => return Err(error.into()),
        },
        Err(error) => return Err(error.into()),
    };
    Ok(Acted { message, daemon, job: job_of(request) })
}

fn job_of(request: &Request) -> Option<i64> {
    match request {
        Request::Skip { job } => *job,
        Request::Retry { job } | Request::Priority { job, .. } => Some(*job),
        _ => None,
    }
}

/// What the database alone can do; `None` for what needs a daemon.
fn without_daemon(state: &StateDir, request: &Request) -> Result<Option<String>, Failure> {
    let store = || Store::open(&state.database());
    Ok(Some(match *request {
        Request::Pause => {
            store()?.set_paused(true)?;
            "no daemon is running; the next one starts paused".to_owned()
        }
        Request::Resume => {
            store()?.set_paused(false)?;
            "no daemon is running; the next one works".to_owned()
        }
        Request::Skip { job: Some(id) } => {
            let job = queue::skip_queued(state, &store()?, id)?;
            format!("job {id} ({}) is passed over", job.file_name)
        }
        Request::Retry { job: id } => {
            let job = queue::retry(state, &store()?, id)?;
            format!("job {id} ({}) is queued again", job.file_name)
        }
        Request::Priority { job: id, priority } => {
            let job = queue::set_priority(&store()?, id, priority)?;
            format!("job {id} ({}) has priority {priority}", job.file_name)
        }
        _ => return Ok(None),
    }))
}
