//! `chandler add`.

use std::path::PathBuf;

use clap::Args;

use super::App;
use crate::control::{self, Request};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;
use crate::priority::Priority;
use crate::queue;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The training files, in the order in which they are to be learned from
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Before, among or after the others
    #[arg(long, value_enum, default_value = "normal")]
    priority: Priority,
}

pub(super) fn add(app: &App, args: &AddArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    state.create_folders()?;
    let store = Store::open(&state.database())?;
    let mut jobs = Vec::new();
    let added = args.files.iter().try_for_each(|file| {
        let job = queue::add_file(&state, &store, file, args.priority)?;
        if !app.json {
            output::print(&format!("job {}: {} ({})\n", job.id, job.file_name, job.priority))?;
        }
        jobs.push(job);
        Ok(())
    });
    // Those that were added stay so where another one is refused.
    if app.json && (added.is_ok() || !jobs.is_empty()) {
        output::print_json(&jobs)?;
    }
    // Without a daemon, the next one finds the files in the queue.
    let _ = control::ask(&state, &Request::Look);
    added.map(|()| Exit::Ok)
}
