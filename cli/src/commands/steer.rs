//! Commands that steer a running daemon. Where the database is all that has to change, they work
//! without one.

use clap::Args;

use super::App;
use crate::control::{self, ControlError, Request, Response};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;
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

pub(super) fn priority(app: &App, args: &PriorityArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    let PriorityArgs { job, priority } = *args;
    asked_or(&state, &Request::Priority { job, priority }, |store| {
        let job = queue::set_priority(store, job, priority)?;
        Ok(format!("job {} ({}) has priority {priority}", job.id, job.file_name))
    })
}

pub(super) fn pause(app: &App, paused: bool) -> Result<Exit, Failure> {
    let state = app.state()?;
    let request = if paused { Request::Pause } else { Request::Resume };
    asked_or(&state, &request, |store| {
        store.set_paused(paused)?;
        Ok(if paused {
            "no daemon is running; the next one starts paused"
        } else {
            "no daemon is running; the next one works"
        }
        .to_owned())
    })
}

pub(super) fn skip(app: &App, args: &SkipArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    let request = Request::Skip { job: args.job };
    match args.job {
        None => asked(&state, &request),
        Some(id) => asked_or(&state, &request, |store| {
            let job = queue::skip_queued(&state, store, id)?;
            Ok(format!("job {id} ({}) is passed over", job.file_name))
        }),
    }
}

pub(super) fn retry(app: &App, args: &RetryArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    asked_or(&state, &Request::Retry { job: args.job }, |store| {
        let job = queue::retry(&state, store, args.job)?;
        Ok(format!("job {} ({}) is queued again", job.id, job.file_name))
    })
}

pub(super) fn stop(app: &App) -> Result<Exit, Failure> {
    asked(&app.state()?, &Request::Stop)
}

pub(super) fn eval_now(app: &App) -> Result<Exit, Failure> {
    asked(&app.state()?, &Request::EvalNow)
}

/// Asks the daemon, which must be running.
fn asked(state: &StateDir, request: &Request) -> Result<Exit, Failure> {
    tell(control::ask(state, request)?)
}

/// Asks the daemon, or acts on the database where none is running.
fn asked_or(
    state: &StateDir,
    request: &Request,
    without: impl FnOnce(&Store) -> Result<String, Failure>,
) -> Result<Exit, Failure> {
    match control::ask(state, request) {
        Err(ControlError::NotRunning { .. }) => {
            let message = without(&Store::open(&state.database())?)?;
            output::print(&format!("{message}\n"))?;
            Ok(Exit::Ok)
        }
        answer => tell(answer?),
    }
}

fn tell(answer: Response) -> Result<Exit, Failure> {
    match answer {
        Response::Done { message } => output::print(&format!("{message}\n"))?,
        Response::Status(status) => output::print_json(&status)?,
        Response::Refused { error, hint } => {
            return Err(Failure::new(Exit::Error, anyhow::anyhow!(error), hint));
        }
    }
    Ok(Exit::Ok)
}
