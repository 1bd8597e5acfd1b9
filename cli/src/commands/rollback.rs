//! `chandler rollback`.

use clap::Args;
use serde_json::json;

use super::App;
use crate::engine::{Snapshot, roll_back, snapshots};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::lock;
use crate::output;
use crate::state_dir::StateDir;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The snapshot that the next job is to begin from; without one, they are listed
    #[arg(value_name = "SNAPSHOT")]
    snapshot: Option<String>,
}

pub(super) fn rollback(app: &App, args: &RollbackArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    let Some(name) = &args.snapshot else { return list(app, &state) };
    let _lock = lock::hold(&state)?;
    let store = Store::open(&state.database())?;
    let done = roll_back(&state, &store, name)?;
    let kept = match &done.replaced {
        Some(replaced) => format!(
            "; what was there is {}, which stays until you remove it",
            state.snapshots().join(replaced).display()
        ),
        None => String::new(),
    };
    let text = format!("snapshot {name} is in {} now{kept}\n", state.model().display());
    app.print(&text, &json!(done))?;
    Ok(Exit::Ok)
}

fn list(app: &App, state: &StateDir) -> Result<Exit, Failure> {
    let all = snapshots(state)?;
    let text = if all.is_empty() {
        "no snapshots yet: one a day is made after a job (daemon.keep_snapshots)\n".to_owned()
    } else {
        output::table(&rows(&all))
    };
    app.print(&text, &all)?;
    Ok(Exit::Ok)
}

fn rows(all: &[Snapshot]) -> Vec<Vec<String>> {
    let header = ["snapshot", "size", "learned last from", ""].map(str::to_owned).to_vec();
    let row = |snapshot: &Snapshot| {
        let job = snapshot.job.map_or_else(String::new, |job| format!("job {job}"));
        let place = if snapshot.in_place { "this is the model now" } else { "" };
        let size = chandler_vram::Bytes(snapshot.bytes).to_string();
        vec![snapshot.name.clone(), size, job, place.to_owned()]
    };
    std::iter::once(header).chain(all.iter().map(row)).collect()
}
