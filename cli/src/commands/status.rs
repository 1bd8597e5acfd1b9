//! `chandler status`.

use std::fmt::Write;
use std::io::IsTerminal;

use clap::Args;
use serde::Serialize;

use super::App;
use super::jobs::to_the_second;
use crate::alerts;
use crate::control::{self, ControlError, LiveStatus, Request, Response};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen;
use crate::state_dir::StateDir;
use crate::store::{Binding, Event, Job, JobState, Store};

const EVENTS: usize = 8;
/// The newest alerts, however long ago.
const ALERTS: usize = 3;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Show it over the whole screen, twice a second, with keys that steer the daemon
    #[arg(long)]
    watch: bool,
}

/// What `status --json` prints.
#[derive(Debug, Serialize)]
struct Status {
    state_dir: String,
    running: bool,
    paused: bool,
    daemon: Option<LiveStatus>,
    base_model: Option<Binding>,
    counts: serde_json::Map<String, serde_json::Value>,
    next: Vec<Job>,
    alerts: Vec<Event>,
    events: Vec<Event>,
}

pub(super) fn status(app: &App, args: &StatusArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    if args.watch {
        return watch(app, &state);
    }
    let status = collect(&state)?;
    app.print(&render(&status), &status)?;
    Ok(Exit::Ok)
}

fn watch(app: &App, state: &StateDir) -> Result<Exit, Failure> {
    let refused = |what: &str, hint: &str| {
        let error = anyhow::anyhow!(what.to_owned());
        Err(Failure::new(Exit::Usage, error, Some(hint.to_owned())))
    };
    if app.json {
        return refused(
            "--watch is for people and cannot print JSON",
            "`chandler status --json` prints what it shows, once",
        );
    }
    if !std::io::stdout().is_terminal() {
        return refused(
            "--watch needs a terminal, and standard output is none",
            "`chandler status` prints it once, `chandler status --json` for scripts",
        );
    }
    screen::watch(state)
}

fn collect(state: &StateDir) -> Result<Status, Failure> {
    let store = Store::open(&state.database())?;
    let daemon = match control::ask(state, &Request::Status) {
        Ok(Response::Status(live)) => Some(*live),
        Ok(_) | Err(ControlError::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let counts = store
        .count_jobs()?
        .into_iter()
        .map(|(job_state, count)| (job_state.to_string(), count.into()))
        .collect();
    Ok(Status {
        state_dir: state.root().display().to_string(),
        running: daemon.is_some(),
        paused: store.is_paused()?,
        daemon,
        base_model: store.binding()?,
        counts,
        next: store.jobs_in(JobState::Queued)?,
        alerts: store.recent_events_of(alerts::EVENT_KIND, ALERTS)?,
        events: store.recent_events(EVENTS)?,
    })
}

fn render(status: &Status) -> String {
    let mut text = format!("{}\n", status.state_dir);
    let paused = if status.paused { ", paused" } else { "" };
    let _ = match &status.daemon {
        Some(live) => {
            let ending = if live.stopping { ", ending after this step" } else { "" };
            writeln!(
                text,
                "daemon    running{paused}{ending}, pid {}, since {}",
                live.pid,
                to_the_second(&live.started_at)
            )
        }
        None => writeln!(text, "daemon    not running{paused}"),
    };
    if let Some(model) = &status.base_model {
        let _ = writeln!(text, "model     {} ({})", model.base_model, model.architecture);
    }
    if let Some(current) = status.daemon.as_ref().and_then(|live| live.current.as_ref()) {
        let _ = write!(
            text,
            "now       job {}, {}, {}",
            current.job_id, current.file_name, current.phase
        );
        if let Some(progress) = &current.progress {
            let _ = write!(
                text,
                ", step {}/{}  {}",
                progress.step,
                progress.total_steps,
                progress.line()
            );
        }
        text.push('\n');
    }
    if let Some(waiting) = status.daemon.as_ref().and_then(|live| live.waiting.as_ref()) {
        let _ = writeln!(text, "waiting   {waiting}");
    }
    if let Some(live) = &status.daemon {
        text += &live.memory.to_string();
    }
    let counts: Vec<String> =
        status.counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let _ = writeln!(text, "jobs      {}", counts.join(", "));
    for (turn, job) in status.next.iter().take(5).enumerate() {
        let lead = if turn == 0 { "next" } else { "" };
        let _ = writeln!(text, "{lead:<8}  job {}, {} ({})", job.id, job.file_name, job.priority);
    }
    text + &listed("alerts", &status.alerts) + &listed("events", &status.events)
}

fn listed(lead: &str, events: &[Event]) -> String {
    let mut text = String::new();
    for (turn, event) in events.iter().enumerate() {
        let lead = if turn == 0 { lead } else { "" };
        let job = event.job_id.map_or_else(String::new, |id| format!("job {id}: "));
        let _ = writeln!(text, "{lead:<8}  {}  {job}{}", to_the_second(&event.at), event.message);
    }
    text
}
