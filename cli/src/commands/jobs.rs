//! `chandler jobs`.

use clap::Args;

use super::App;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;
use crate::store::{Job, JobState, Store};

#[derive(Debug, Args)]
pub(super) struct JobsArgs {
    /// How many settled jobs to list
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
}

pub(super) fn jobs(app: &App, args: &JobsArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    let store = Store::open(&state.database())?;
    let mut jobs = store.jobs_in(JobState::Running)?;
    jobs.extend(store.jobs_in(JobState::Queued)?);
    jobs.extend(store.settled_jobs(args.limit)?);
    let text = if jobs.is_empty() {
        "no jobs yet: put a .jsonl file into inbox/, or `chandler add FILE`\n".to_owned()
    } else {
        output::table(&rows(&jobs))
    };
    app.print(&text, &jobs)?;
    Ok(Exit::Ok)
}

fn rows(jobs: &[Job]) -> Vec<Vec<String>> {
    let header = ["job", "state", "priority", "attempts", "queued", "file", "what happened"];
    std::iter::once(header.map(str::to_owned).to_vec())
        .chain(jobs.iter().map(|job| {
            vec![
                job.id.to_string(),
                job.state.to_string(),
                job.priority.to_string(),
                job.attempts.to_string(),
                to_the_second(&job.created_at),
                job.file_name.clone(),
                what_happened(job),
            ]
        }))
        .collect()
}

fn what_happened(job: &Job) -> String {
    let first_error = job.report.as_ref().and_then(|report| report.pointer("/errors/0"));
    first_error.and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}

/// A stored time in the local time zone, without fractions of a second.
pub(super) fn to_the_second(stored: &str) -> String {
    stored.parse::<jiff::Timestamp>().map_or_else(
        |_| stored.to_owned(),
        |time| {
            time.to_zoned_datetime(jiff::tz::TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        },
    )
}
