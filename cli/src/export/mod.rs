//! What the database holds, in the formats of others: CSV, JSON lines, Parquet, TensorBoard.

mod card;
mod error;
mod rows;
mod selection;
mod table;
mod tensorboard;

use std::path::{Path, PathBuf};

pub use card::{Facts, License, card};
pub use error::ExportError;
pub use rows::Subject;
pub use selection::Selection;
pub use table::{Destination, Format, write_table};
pub use tensorboard::EventFile;

use crate::store::Store;

/// Writes the event files of runs, each to a folder of its own in `folder`, as TensorBoard wants
/// them: `run-7/events.out.tfevents.…`. Says which files there are, and how many steps and
/// evaluations they hold.
pub fn write_events(
    store: &Store,
    selection: Selection,
    folder: &Path,
) -> Result<Vec<(PathBuf, u64)>, ExportError> {
    let runs = selection.runs(store)?;
    let write = |run: &crate::store::RunSummary| {
        tensorboard::write_run(store, run, &folder.join(run_folder(run.id)))
    };
    runs.iter().map(write).collect()
}

/// The name of a run's folder of event files.
pub fn run_folder(run_id: i64) -> String {
    format!("run-{run_id}")
}
